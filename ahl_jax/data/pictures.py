"""Image files as Pillow opens them: damaged PNGs, EXIF's turns, values of 16 bits."""

import contextlib
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Shaped
from PIL import ExifTags, Image

from ahl_jax.data.arrays import check_pixels
from ahl_jax.data.formats import ENCODED, open_encoded

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
"""The chunks of a PNG that decide its pixels."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientations but for the upright one; those from 5 on exchange width and height."""


@contextlib.contextmanager
def opened(
    source: Path | io.BytesIO,
    prepare: Callable[[Image.Image], object] | None = None,
    formats: Sequence[str] = ENCODED,
) -> Iterator[Image.Image]:
    """An encoded image, as Pillow opens it.

    Text and other parts of a PNG that its pixels do not need are passed over where they are damaged
    or too long for Pillow.

    Args:
        source: the file, or its content.
        prepare: what is done before anything else with the image, such as decoding it.
        formats: the formats that it may have.

    Raises:
        Exception: nearly any, as decoders do on damaged files.
    """
    with contextlib.ExitStack() as stack:
        # Given a path, Pillow may map the file, and then scrambles a TIFF that is on its side.
        file: IO[bytes] = source if isinstance(source, io.BytesIO) else source.open("rb")
        stack.enter_context(file)

        def image_of(encoded: IO[bytes]) -> Image.Image:
            image = stack.enter_context(open_encoded(encoded, formats))
            if prepare:
                prepare(image)
            return image

        try:
            image = image_of(file)
        except Exception:
            file.seek(0)
            content = file.read()
            if not content.startswith(_PNG):
                raise
            image = image_of(io.BytesIO(_pixels_alone(content)))
        yield image


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What brings the pixels of an image upright by its EXIF; None for nothing.

    Pillow turns a TIFF itself as it decodes it; then there is nothing left to do.
    """
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF, on which Pillow raises nearly anything
        return None


def mode_of(image: Image.Image) -> str:
    """What the pixels of a picture are, in words, from its head alone."""
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        return "with alpha"
    # Mode I has 32 bits per pixel, in which 16-bit values arrive.
    kind = "I" if image.mode.startswith("I") else image.mode
    names = {"1": "grey", "L": "grey", "P": "palette", "I": "16 bit", "F": "floating point"}
    return names.get(kind, kind)


def sideways(image: Image.Image) -> bool:
    """Whether an image that is not decoded yet says its sides in the order they are not seen in."""
    # Of a TIFF Pillow says the size that it has once it is turned.
    return turn_of(image) in list(_TURNS.values())[3:] and image.format != "TIFF"


def upright(picture: Image.Image) -> Image.Image:
    """A picture the right way up by its EXIF, decoded.

    Raises:
        Exception: nearly any, as ``opened`` does; one for more than ``MAX_PIXELS`` pixels too.
    """
    check_pixels(picture.width, picture.height)
    picture.load()
    turn = turn_of(picture)
    return picture if turn is None else picture.transpose(turn)


def values_of(picture: Image.Image) -> Shaped[np.ndarray, "h w *c"]:
    """The pixels of a picture: RGB of 8 bits, or grey of 16 bits or floats as they are.

    Raises:
        ValueError: for 32-bit values outside 0 to 65535.
    """
    if not picture.mode.startswith(("I", "F")):
        return np.asarray(picture.convert("RGB"))
    # 16-bit grey and floats, which Pillow's conversion to RGB would clip at 255.
    values = np.asarray(picture)
    if picture.mode == "I":
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit values outside 0 to 65535")
        # Values of 8 and of 16 bits both come in 32.
        values = values.astype(np.uint8 if values.max() <= 255 else np.uint16)
    return values


def _pixels_alone(content: bytes) -> bytes:
    """A PNG without the chunks that its pixels do not need, but with an EXIF that is whole."""
    kept, start = [_PNG], len(_PNG)
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        kind, chunk = content[start + 4 : start + 8], content[start:end]
        checksum = int.from_bytes(chunk[-4:], "big")
        if kind in _PNG_PIXELS or (kind == b"eXIf" and zlib.crc32(chunk[4:-4]) == checksum):
            kept.append(chunk)
        start = end
    return b"".join(kept)
