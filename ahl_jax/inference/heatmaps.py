"""Heat maps as pictures: where in an image a detector sees what is not normal."""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from ahl_jax.data.frame import WHOLE, Seen, pixels

_STRONGEST = 0.75
"""The share of the colour where the heat is greatest; the rest is the image."""

_FINEST = 1024
"""Pixels of an image's longer side at which regions are told apart; a location is larger."""

_TOUCHING = np.ones((3, 3))

_GREY, _BLACK, _WHITE = 128, 0, 255
_BAR, _BAR_HEIGHT, _TEXT, _LINE = 320, 12, 13, 17
"""Pixels of the legend: the bar, the letters, and from one line to the next."""


class Region(NamedTuple):
    """A connected part of an image whose locations are above some score."""

    left: int
    top: int
    width: int
    height: int
    """Of the rectangle around it, in pixels of the image."""

    area: float
    """Its share of the image's pixels."""

    peak: float
    """The score of its hottest location."""


def upsampled(
    heat: Float[np.ndarray, "h w"], height: int, width: int, seen: Seen = WHOLE
) -> Float[np.ndarray, "H W"]:
    """A heat map at the size of a photograph, bilinear.

    Args:
        heat: of what the detector saw.
        height: the photograph's.
        width: the photograph's.
        seen: which part of it that was; all else is as cold as the coldest location there.
    """
    plane = Image.fromarray(np.ascontiguousarray(heat, np.float32))
    left, top, right, bottom = (round(at) for at in pixels(seen.photograph, width, height))
    size = max(1, right - left), max(1, bottom - top)
    part = plane.resize(size, Image.Resampling.BILINEAR, pixels(seen.canvas, *plane.size))
    if size == (width, height):
        return np.asarray(part)
    whole = Image.new("F", (width, height), float(np.asarray(part).min()))
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
    level: float | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """An image with its heat map over it: the hotter, the more of the colour.

    What is common in normal images stays cold, and their hottest location is drawn as half of the
    greatest heat, on a scale that has no end: so the hottest part of a defect can be told.

    Args:
        image: RGB.
        heat: the score of each location, of any resolution.
        scale: ``heat_scale``.
        seen: the part of the image that the map is of.
        level: the score of locations around which a line is drawn; None for no line.
    """
    low, high = scale
    height, width, _ = image.shape
    values = upsampled(heat, height, width, seen)
    times = np.maximum(values - low, 0) / max(high - low, 1e-12)
    drawn = _tinted(image, 1 - 1 / (1 + times**2))
    return drawn if level is None else outlined(drawn, values > level)


def beside(
    image: UInt8[np.ndarray, "h w 3"],
    heat: Float[np.ndarray, "h2 w2"],
    scale: tuple[float, float],
    seen: Seen,
    level: float | None,
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """An image, the same with its heat map over it, side by side, and a legend below.

    The arguments are those of ``overlay``.
    """
    height, width, _ = image.shape
    words = legend(outline=level is not None)
    gap = max(2, width // 64)
    shape = (height + gap + len(words), max(2 * width + gap, words.shape[1]), 3)
    canvas = np.full(shape, 255, np.uint8)
    canvas[:height, :width] = image
    canvas[:height, width + gap : 2 * width + gap] = overlay(image, heat, scale, seen, level)
    canvas[height + gap :, -words.shape[1] :] = words
    return canvas


def regions(
    heat: Float[np.ndarray, "h w"], level: float, height: int, width: int, seen: Seen = WHOLE
) -> list[Region]:
    """The regions of an image that are hotter than a level, the hottest first.

    Args:
        heat: its heat map.
        level: a location's score.
        height: the image's, in pixels.
        width: the image's.
        seen: the part of the image that the map is of.
    """
    share = min(1, _FINEST / max(height, width))
    values = upsampled(heat, max(1, round(height * share)), max(1, round(width * share)), seen)
    labels, count = ndimage.label(values > level, structure=_TOUCHING)
    numbers = np.arange(1, count + 1)
    peaks = ndimage.maximum(values, labels, numbers)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:] / labels.size
    down, across = height / values.shape[0], width / values.shape[1]
    found = []
    for (rows, columns), area, peak in zip(ndimage.find_objects(labels), areas, peaks, strict=True):
        left, right = int(columns.start * across), int(np.ceil(columns.stop * across))
        top, bottom = int(rows.start * down), int(np.ceil(rows.stop * down))
        found.append(Region(left, top, right - left, bottom - top, float(area), float(peak)))
    return sorted(found, key=lambda region: -region.peak)


def outlined(
    image: UInt8[np.ndarray, "h w 3"], marks: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """An image with a line around what is marked, white and, on its outer side, black."""
    line = marks & ~ndimage.binary_erosion(marks, _TOUCHING, border_value=1)
    rim = ndimage.binary_dilation(marks, _TOUCHING) & ~marks
    drawn = image.copy()
    drawn[line], drawn[rim] = _WHITE, _BLACK
    return drawn


@functools.cache
def legend(*, outline: bool) -> UInt8[np.ndarray, "h w 3"]:
    """The colours of ``overlay`` in a row, with what they mean in words.

    Args:
        outline: whether the scale is that of good parts, and what is hotter than 99.9 % of their
            locations has a line around it; else the scale is the image's own.
    """
    bar = np.full((_BAR_HEIGHT, _BAR, 3), _GREY, np.uint8)
    bar = _tinted(bar, np.broadcast_to(np.linspace(0, 1, _BAR), bar.shape[:2]))
    ends = ("as in good parts", "far hotter") if outline else ("coolest here", "hottest here")
    lines = 2 if outline else 1
    canvas = np.full((_BAR_HEIGHT + 4 + lines * _LINE, _BAR, 3), _WHITE, np.uint8)
    canvas[2 : 2 + _BAR_HEIGHT] = bar
    picture = Image.fromarray(canvas)
    draw, font, below = ImageDraw.Draw(picture), ImageFont.load_default(_TEXT), _BAR_HEIGHT + 3
    for at, anchor, words in ((0, "la", ends[0]), (_BAR, "ra", ends[1])):
        draw.text((at, below), words, "black", font, anchor)
    if outline:
        middle = _BAR // 2
        draw.line([(middle - 1, 2), (middle - 1, _BAR_HEIGHT + 1)], "black")
        draw.line([(middle, 2), (middle, _BAR_HEIGHT + 1)], "white")
        words = "outlined: hotter than 99.9 % of good parts' surface"
        draw.text((middle, below + _LINE), words, "black", font, "ma")
    return np.asarray(picture)


def _tinted(
    image: UInt8[np.ndarray, "h w 3"], level: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """An image with the colours of levels from 0 to 1 over it."""
    colours = _colours()[np.rint(level * 255).astype(int)]
    share = (_STRONGEST * level)[..., None]
    return np.rint((1 - share) * image + share * colours).astype(np.uint8)


@functools.cache
def _colours() -> Float[np.ndarray, "256 3"]:
    """From blue over yellow to red, 0 to 255."""
    # Imported late: it takes a second.
    from matplotlib import colormaps

    return np.asarray(colormaps["turbo"](np.arange(256))[:, :3]) * 255
