"""DICOM as a format of Pillow: the first picture of a file in 8 bits, as a viewer shows it."""

import io
import logging
from typing import Any

import numpy as np
import pydicom
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageFile
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import (
    apply_color_lut,
    apply_modality_lut,
    apply_voi,
    apply_windowing,
)
from pydicom.pixels.utils import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian

_DECODERS = ("pydicom", "pillow")
"""Those of pydicom's whose memory has a limit, whatever size the compressed data claims to have."""

_OF_FRAMES = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_SHOWING = ("PixelValueTransformationSequence", "FrameVOILUTSequence")


def register() -> None:
    """Lets Pillow open DICOM files."""
    # It logs tracebacks of damaged files, whose errors are told here.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    Image.register_open(DicomImage.format, DicomImage)


class DicomImage(ImageFile.ImageFile):
    """A DICOM file, whose pixels ``load`` decodes.

    Grey has mode L: values are rescaled, and the file's first window or table of values of interest
    maps them to 0 to 255; without one, the least and the greatest value are 0 and 255. MONOCHROME1,
    where the least value is white, is inverted. Colour has mode RGB.
    """

    format = "DICOM"
    format_description = "DICOM"

    def _open(self) -> None:
        assert self.fp is not None
        content = self.fp.read()
        # pydicom inflates all of such a file at once, to any size.
        if DeflatedExplicitVRLittleEndian.encode() in content:
            raise ValueError("DICOM that is deflated as a whole; save it without compression")
        self._data = pydicom.dcmread(io.BytesIO(content))
        if "PixelData" not in self._data:
            raise ValueError("DICOM without a picture")
        self._mode = "L" if self._data.PhotometricInterpretation.startswith("MONO") else "RGB"
        self._size = self._data.Columns, self._data.Rows

    def load(self) -> Any:
        """Decodes the pixels."""
        if self._im is None:
            self.im = Image.fromarray(_seen(self._data, self.mode)).im
        return Image.Image.load(self)


def _seen(data: pydicom.FileDataset, mode: str) -> UInt8[np.ndarray, "h w *c"]:
    stored = pixel_array(data, index=0, decoding_plugin=_decoder(data.file_meta.TransferSyntaxUID))
    if mode == "L":
        shown = _shown(stored, data)
        inverted = data.PhotometricInterpretation == "MONOCHROME1"
        return np.rint(255 * (1 - shown if inverted else shown)).astype(np.uint8)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, data)
    return (stored >> (8 * stored.dtype.itemsize - 8)).astype(np.uint8)


def _decoder(syntax: pydicom.uid.UID) -> str:
    """The name of a decoder for a transfer syntax; none is needed where nothing is compressed."""
    if not syntax.is_compressed:
        return ""
    available = get_decoder(syntax).available_plugins
    for name in _DECODERS:
        if name in available:
            return name
    raise ValueError(f"DICOM compressed as {syntax.name}; save it without compression")


def _shown(
    stored: Shaped[np.ndarray, "h w"], data: pydicom.FileDataset
) -> Float[np.ndarray, "h w"]:
    """Values as shares of the brightest one that is shown."""
    # Files with several frames have how these are shown elsewhere than others.
    for groups in _OF_FRAMES:
        for name in _SHOWING:
            if data.get(groups) and data[groups][0].get(name):
                data.update(data[groups][0][name][0])
    values = apply_modality_lut(stored, data)
    ends: Any = values.min(), values.max()
    if tables := data.get("VOILUTSequence"):
        values = apply_voi(values, data)
        ends = 0, 2 ** tables[0].LUTDescriptor[2] - 1
    elif data.get("WindowWidth"):
        with np.errstate(over="ignore"):
            values = apply_windowing(values, data)
            ends = apply_windowing(np.array([-np.inf, np.inf]), data)
    low, high = map(float, ends)
    return np.clip((values - low) / ((high - low) or 1), 0, 1)
