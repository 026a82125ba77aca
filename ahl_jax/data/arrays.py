"""Arrays as images: which shapes and values they may have, and resizing them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: 300 MB of memory each, or an attack."""

Box = tuple[int, int, int, int]
"""A rectangle of pixels."""


class Placement(NamedTuple):
    """A part of an image, brought to a size and put into the middle of a canvas."""

    size: tuple[int, int]
    canvas: tuple[int, int]
    """Widths and heights."""

    box: Box | None = None
    """The part: left, top, right and bottom. None for the whole image."""

    @property
    def corner(self) -> tuple[int, int]:
        """Left and top of the part in the canvas."""
        return (self.canvas[0] - self.size[0]) // 2, (self.canvas[1] - self.size[1]) // 2


Fit = Callable[[int, int], Placement]
"""Width and height of an image to the place of it in the result."""

_MARGIN = 116
"""The grey around an image: about ImageNet's mean, which trunks take for nothing."""


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
    place = fit(values.shape[1], values.shape[0])
    if values.dtype == np.uint8:
        picture = Image.fromarray(
            np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))
        )
        return np.array(placed(picture, place))
    planes = [
        placed(Image.fromarray(np.ascontiguousarray(values[..., channel])), place)
        for channel in range(values.shape[2])
    ]
    stacked = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    rounded = np.clip(np.rint(stacked), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(rounded, (*rounded.shape[:2], 3)))


def placed(picture: Image.Image, place: Placement) -> Image.Image:
    """A picture where it belongs in a canvas."""
    resized = picture.resize(place.size, Image.Resampling.BILINEAR, place.box)
    if place.size == place.canvas:
        return resized
    bands = len(picture.getbands())
    canvas = Image.new(picture.mode, place.canvas, (_MARGIN,) * bands if bands > 1 else _MARGIN)
    canvas.paste(resized, place.corner)
    return canvas


def check_pixels(width: int, height: int) -> None:
    """Refuse an image that is empty or too large.

    Raises:
        ValueError: saying how large it is.
    """
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels; at most {MAX_PIXELS:,} can be read")
