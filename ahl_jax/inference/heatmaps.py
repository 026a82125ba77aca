"""Heat maps as pictures: where in an image a detector sees what is not normal."""

import functools

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ahl_jax.data.frame import WHOLE, Seen, pixels

_STRONGEST = 0.75
"""The share of the colour where the heat is greatest; the rest is the image."""


def upsampled(
    heat: Float[np.ndarray, "h w"], height: int, width: int, seen: Seen = WHOLE
) -> Float[np.ndarray, "H W"]:
    """A heat map at the size of a photograph, bilinear.

    Args:
        heat: of what the detector saw.
        height: the photograph's.
        width: the photograph's.
        seen: which part of it that was; all else is as cold as the coldest location.
    """
    plane = Image.fromarray(np.ascontiguousarray(heat, np.float32))
    left, top, right, bottom = (round(at) for at in pixels(seen.photograph, width, height))
    size = max(1, right - left), max(1, bottom - top)
    part = plane.resize(size, Image.Resampling.BILINEAR, pixels(seen.canvas, *plane.size))
    if size == (width, height):
        return np.asarray(part)
    whole = Image.new("F", (width, height), float(heat.min()))
    whole.paste(part, (left, top))
    return np.asarray(whole)


def heat_scale(
    locations: tuple[float, float] | None, heat: Float[np.ndarray, "*n h w"]
) -> tuple[float, float]:
    """The location scores of an ordinary and of the hottest location of normal images.

    Args:
        locations: median and 99.9th percentile of normal images, if they are known.
        heat: the maps to draw, by whose own range they are guessed otherwise.
    """
    if locations is not None:
        return locations
    low, high = float(heat.min()), float(heat.max())
    return low, low + (high - low) / 8


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    heat: Float[np.ndarray, "h2 w2"],
    scale: tuple[float, float],
    seen: Seen = WHOLE,
) -> UInt8[np.ndarray, "h w 3"]:
    """An image with its heat map over it: the hotter, the more of the colour.

    What is common in normal images stays cold, and their hottest location is drawn as half of the
    greatest heat, on a scale that has no end: so the hottest part of a defect can be told.

    Args:
        image: RGB.
        heat: the score of each location, of any resolution.
        scale: ``heat_scale``.
        seen: the part of the image that the map is of.
    """
    low, high = scale
    height, width, _ = image.shape
    warmth = np.maximum(upsampled(heat, height, width, seen) - low, 0)
    times = warmth / max(high - low, 1e-12)
    level = 1 - 1 / (1 + times**2)
    colours = _colours()[np.rint(level * 255).astype(int)]
    share = (_STRONGEST * level)[..., None]
    return np.rint((1 - share) * image + share * colours).astype(np.uint8)


@functools.cache
def _colours() -> Float[np.ndarray, "256 3"]:
    """From blue over yellow to red, 0 to 255."""
    # Imported late: it takes a second.
    from matplotlib import colormaps

    return np.asarray(colormaps["turbo"](np.arange(256))[:, :3]) * 255
