"""Ground truth: which pixels of an anomaly are anomalous, where a data set says so.

Prepared data sets have it in their records. In MVTec layout the mask of
``ROOT/test/CLASS/NAME.png`` is ``ROOT/ground_truth/CLASS/NAME_mask.png``, or the same without
``_mask``; in VisA's that of ``Data/Images/Anomaly/NAME.JPG`` is ``Data/Masks/Anomaly/NAME.png``.
"""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from ahl_jax.common.errors import BadImageError
from ahl_jax.data.arrays import check_pixels
from ahl_jax.data.records import ImageSource, InMemory, Record

_FOLDERS = {"test": "ground_truth", "Images": "Masks"}
"""The folder with the images -> the one beside it with their masks."""

_FORMATS = ("PNG", "BMP", "TIFF")


def read_mask(image: ImageSource, root: Path, size: int) -> Bool[np.ndarray, "size size"] | None:
    """The anomalous pixels of an anomaly, at the size that images are looked at.

    Args:
        image: the image of an anomaly.
        root: the data set's folder, or the file in it that lists the images; a mask that a link
            takes out of that folder is none.
        size: side of the result; the nearest pixel counts.

    Returns:
        None where the data set has no mask of it, or one in which nothing is marked.

    Raises:
        BadImageError: if the mask cannot be read.
    """
    source: Path | io.BytesIO | None
    if isinstance(image, InMemory):
        return None
    if isinstance(image, Record):
        content = image.ground_truth()
        source = io.BytesIO(content) if content else None
    else:
        source = _mask_file(image, root)
    if source is None:
        return None
    try:
        with Image.open(source, formats=_FORMATS) as picture:
            check_pixels(picture.width, picture.height)
            # Any value but 0 marks a pixel: masks of 0 and 1 are about too.
            marked = Image.fromarray(_nonzero(np.asarray(picture)))
        mask = np.asarray(marked.resize((size, size), Image.Resampling.NEAREST)) > 0
    except Exception as error:  # decoders raise nearly anything on damaged files
        where = image if isinstance(image, Record) else source
        raise BadImageError(
            f"the mask {where} cannot be read ({error}); replace or delete it"
        ) from error
    return mask if mask.any() else None


def _nonzero(values: np.ndarray) -> np.ndarray:
    marked = values if values.ndim == 2 else values[..., :3].max(-1)
    return (marked > 0).astype(np.uint8) * 255


def _mask_file(image: Path, root: Path) -> Path | None:
    """The mask of an image, by the place that it is in."""
    root = (root.parent if root.is_file() else root).resolve()
    for parent in image.parents:
        beside = parent.parent / _FOLDERS.get(parent.name, "")
        if parent.name in _FOLDERS and beside.is_dir():
            folder = beside / image.relative_to(parent).parent
            names = (f"{image.stem}_mask.png", f"{image.stem}.png", f"{image.stem}_mask.bmp")
            for name in names:
                path = folder / name
                if path.is_file() and path.resolve().is_relative_to(root):
                    return path
            return None
    return None
