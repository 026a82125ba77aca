"""Arrays as images: which shapes and values they may have, and resizing them."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: 300 MB of memory each, or an attack."""

Fit = Callable[[int, int], tuple[int, int]]
"""Width and height of an image to those of the result."""


def channels_checked(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "h w c"]:
    """The array with a channel axis, of one or three, if it has the shape of an image.

    Raises:
        ValueError: if it has not.
    """
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] == 2:
        raise ValueError(f"shape {array.shape}; it must be [h, w], [h, w, 1] or [h, w, 3 or more]")
    if array.shape[0] <= 4 < array.shape[2]:
        raise ValueError(f"shape {array.shape}, channels first; it must be [h, w, c]")
    check_pixels(array.shape[1], array.shape[0])
    return array[..., :3]


def levels(values: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    """Values as 0 to 255, by the rule that ``ahl_jax.data.images.read_image`` states.

    Returns:
        uint8 where they are whole, so that an image of floats is resized as the same one in 8 bits
        is; float32 otherwise.

    Raises:
        ValueError: for other values.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return values.astype(np.float32) / 257
    if values.dtype.kind != "f":
        raise ValueError(f"values of type {values.dtype}; use uint8, uint16 or floating point")
    if not np.isfinite(values).all():
        raise ValueError("values that are not finite")
    if values.min() < 0 or values.max() > 255:
        raise ValueError(
            f"values from {values.min():g} to {values.max():g}; floating point must be within "
            "0 to 1 or 0 to 255"
        )
    floats = values.astype(np.float32) * (255 if values.max() <= 1 else 1)
    whole = np.rint(floats)
    # Division by 255 and back leaves 8-bit values whole but for a rounding.
    return whole.astype(np.uint8) if np.abs(floats - whole).max() < 1e-3 else floats


def resized(values: Shaped[np.ndarray, "h w c"], fit: Fit) -> UInt8[np.ndarray, "h2 w2 3"]:
    """``levels``, one or three channels, resized as Pillow resizes images."""
    wanted = fit(values.shape[1], values.shape[0])
    if values.dtype == np.uint8:
        picture = Image.fromarray(
            np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))
        )
        return np.array(picture.resize(wanted, Image.Resampling.BILINEAR))
    planes = [
        Image.fromarray(np.ascontiguousarray(values[..., channel])).resize(
            wanted, Image.Resampling.BILINEAR
        )
        for channel in range(values.shape[2])
    ]
    stacked = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    rounded = np.clip(np.rint(stacked), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(rounded, (*rounded.shape[:2], 3)))


def check_pixels(width: int, height: int) -> None:
    """Refuse an image that is empty or too large.

    Raises:
        ValueError: saying how large it is.
    """
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels; at most {MAX_PIXELS:,} can be read")
