"""Heat maps as pictures: where in an image a detector sees what is not normal."""

import functools

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

_STRONGEST = 0.75
"""The share of the colour where the heat is greatest; the rest is the image."""


def upsampled(heat: Float[np.ndarray, "h w"], height: int, width: int) -> Float[np.ndarray, "H W"]:
    """A heat map at the size of an image, bilinear."""
    plane = Image.fromarray(np.ascontiguousarray(heat, np.float32))
    return np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR))


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
) -> UInt8[np.ndarray, "h w 3"]:
    """An image with its heat map over it: the hotter, the more of the colour.

    What is common in normal images stays cold, and their hottest location is drawn as half of the
    greatest heat, on a scale that has no end: so the hottest part of a defect can be told.

    Args:
        image: RGB.
        heat: the score of each location, of any resolution.
        scale: ``heat_scale``.
    """
    low, high = scale
    times = np.maximum(upsampled(heat, *image.shape[:2]) - low, 0) / max(high - low, 1e-12)
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
