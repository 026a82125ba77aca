"""Tiles: a photograph with small defects as several images, of which the worst counts."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from ahl_jax.common.errors import BadImageError
from ahl_jax.config.settings import SCALES, FeatureConfig
from ahl_jax.data.frame import Frame, square
from ahl_jax.data.images import seen_size
from ahl_jax.data.records import ImageSource
from ahl_jax.detectors.whitening import fit_whitening

_SHRINKING = 4
"""How many times smaller photographs may become without a word."""

_LOOKED_AT = 9
"""Photographs whose size is looked at; the median counts."""

_log = logging.getLogger(__name__)

_Array = TypeVar("_Array", np.ndarray, Array)


@dataclass(frozen=True)
class Tiles:
    """A grid of k square tiles, row after row, that overlap.

    Wherever maps of photographs are kept, those of a photograph's tiles stand one below the other:
    [n, k h, w, c].
    """

    rows: int = 1
    columns: int = 1
    overlap: float = 0
    """The share of a side that neighbours have in common."""

    @property
    def count(self) -> int:
        """How many tiles there are, k."""
        return self.rows * self.columns

    def extent(self, side: int) -> tuple[int, int]:
        """Width and height in pixels of the image that tiles of this side are cut from."""
        last = self.starts(self.columns, side)[-1], self.starts(self.rows, side)[-1]
        return round(last[0]) + side, round(last[1]) + side

    def cut(self, images: Shaped[_Array, "b H W c"], side: int) -> Shaped[_Array, "b*k h w c"]:
        """The tiles of images of that ``extent``."""
        if self.count == 1:
            return images
        tops, lefts = (
            [round(start) for start in self.starts(tiles, side)]
            for tiles in (self.rows, self.columns)
        )
        tiles = [images[:, y : y + side, x : x + side] for y in tops for x in lefts]
        xp = np if isinstance(images, np.ndarray) else jnp
        return self.apart(xp.concatenate(tiles, axis=1))

    def apart(self, maps: Shaped[_Array, "n k*h w ..."]) -> Shaped[_Array, "n*k h w ..."]:
        """Maps of photographs as those of their tiles."""
        if self.count == 1:
            return maps
        n, height, *others = maps.shape
        return maps.reshape(n * self.count, height // self.count, *others)

    def together(self, maps: Shaped[_Array, "n*k h w ..."]) -> Shaped[_Array, "n k*h w ..."]:
        """The inverse of ``apart``."""
        if self.count == 1:
            return maps
        n, height, *others = maps.shape
        return maps.reshape(n // self.count, height * self.count, *others)

    def worst(self, scores: Float[Array, " n*k"], *others: Array) -> list[Array]:
        """Of n photographs the highest score of a tile, and what belongs to that tile."""
        if self.count == 1:
            return [scores, *others]
        worst = scores.reshape(-1, self.count).argmax(1)

        def its(values: Array) -> Array:
            each = values.reshape(-1, self.count, *values.shape[1:])
            where = worst.reshape(-1, *(1 for _ in each.shape[1:]))
            return jnp.take_along_axis(each, where, axis=1)[:, 0]

        return [its(values) for values in (scores, *others)]

    def stitched(self, heat: Float[Array, "n*k h w"]) -> Float[Array, "n H W"]:
        """Heat maps of photographs from those of their tiles, the mean where these overlap."""
        if self.count == 1:
            return heat
        height, width = heat.shape[1:]
        down = _spread(height, self.starts(self.rows, height))
        along = _spread(width, self.starts(self.columns, width))
        tiles = heat.reshape(-1, self.rows, self.columns, height, width)
        return jnp.einsum("yrh,nrchw,xcw->nyx", down, tiles, along)

    def starts(self, tiles: int, side: int) -> Float[np.ndarray, " tiles"]:
        """Where the tiles of a line begin."""
        return np.arange(tiles) * side * (1 - self.overlap)


UNCUT = Tiles()
"""A photograph as it is."""


def tiles_of(config: FeatureConfig) -> Tiles:
    """The tiles that the settings ask for."""
    return Tiles(*config.tiles, config.tile_overlap)


def frame_of(config: FeatureConfig) -> Frame:
    """How photographs are read: at once in the size that all of their tiles need."""
    width, height = tiles_of(config).extent(config.image_size)
    return Frame(width, height, config.crop, config.keep_aspect)


def framing(config: FeatureConfig) -> dict[str, str]:
    """What tells images in parts from whole ones in the store's keys; empty for whole ones."""
    frame, tiles = frame_of(config), tiles_of(config)
    parts: dict[str, Frame | Tiles] = {"frame": frame} if frame != square(config.image_size) else {}
    parts |= {"tiles": tiles} if tiles.count > 1 else {}
    return {name: str(dataclasses.astuple(part)) for name, part in parts.items()}


def warn_of_shrinking(
    images: Sequence[ImageSource], config: FeatureConfig, *, name: str = ""
) -> bool:
    """Say so where photographs shrink so much that small defects are lost, and the ways out.

    Args:
        images: photographs, some of which are looked at; those that cannot be read are passed over.
        config: how they are read.
        name: of the detector, where there are others.

    Returns:
        Whether they do.
    """
    frame, found = frame_of(config), []
    for i in np.linspace(0, len(images) - 1, min(len(images), _LOOKED_AT)).astype(int):
        with contextlib.suppress(BadImageError, ValueError):
            size, _ = seen_size(images[i])
            found.append((frame.shrinking(*size), size))
    if not found:
        return False
    shrinking, (width, height) = sorted(found)[len(found) // 2]
    if shrinking <= _SHRINKING:
        return False
    step = config.image_size * (1 - config.tile_overlap)
    _, _, wide, high = config.crop or (0, 0, width, height)
    rows, columns = (
        1 + max(0, math.ceil((side / _SHRINKING - config.image_size) / step))
        for side in (high, wide)
    )
    if rows <= config.tiles[0] and columns <= config.tiles[1]:
        return False  # Whole pixels make it a little more.
    _log.warning(
        "%sphotographs of %d x %d pixels become %.0f times smaller, and a defect of %.0f pixels "
        "becomes one: train with `tiles`, here %d %d, or with `crop` for the part that counts",
        f"{name}: " if name else "", width, height, shrinking, shrinking, rows, columns,
    )  # fmt: skip
    return True


def tiles_of_defects(
    tiles: Tiles,
    anomalies: Float[np.ndarray, "m*k d"],
    normals: Float[np.ndarray, "n*k d"],
    marked: Int[np.ndarray, "m k"],
    parts: Sequence[int] = (),
) -> Int[np.ndarray, " m"]:
    """The tile of each labelled anomaly that has the defect.

    That is the one with most of its marked pixels. Of several with as many, as where none is
    marked, it is the one that is farthest from normal ones.

    Args:
        tiles: the grid.
        anomalies: global averages of its tiles.
        normals: those of normal photographs.
        marked: ``marked_in`` each tile.
        parts: as for ``fit_whitening``.
    """
    whitening = fit_whitening(normals, SCALES, parts)
    far = np.linalg.norm(whitening.whitened(anomalies), axis=1).reshape(marked.shape)
    far[marked < marked.max(axis=1, keepdims=True)] = -1
    return np.arange(len(far)) * tiles.count + far.argmax(1)


def marked_in(config: FeatureConfig, marks: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, " k"]:
    """How many of a photograph's marked pixels each of its tiles shows.

    Args:
        config: how photographs are read.
        marks: the marked pixels of one.
    """
    tiles, frame, side = tiles_of(config), frame_of(config), config.image_size
    height, width = marks.shape
    seen = frame.seen(width, height)
    part, canvas = (np.reshape(share, (2, 2)) for share in seen)
    at = (np.argwhere(marks)[:, ::-1] + 0.5) / (width, height)
    at = at[((at >= part[0]) & (at <= part[1])).all(1)]
    share = canvas[0] + (at - part[0]) * np.ptp(canvas, axis=0) / np.ptp(part, axis=0)
    x, y = (share * (frame.width, frame.height)).T
    down, along = (
        (place >= starts[:, None]) & (place <= starts[:, None] + side)
        for place, starts in (
            (y, tiles.starts(tiles.rows, side)),
            (x, tiles.starts(tiles.columns, side)),
        )
    )
    return np.einsum("rn,cn->rc", down.astype(int), along.astype(int)).ravel()


def _spread(side: int, starts: Float[np.ndarray, " r"]) -> Float[np.ndarray, "y r side"]:
    """The weights of the cells of r tiles in a line that they cover, between which is linear."""
    cells = np.arange(round(float(starts[-1])) + side) + 0.5
    inside = cells[:, None] - starts
    place = np.clip(inside - 0.5, 0, side - 1)
    weights = np.maximum(1 - np.abs(place[..., None] - np.arange(side)), 0)
    weights *= ((inside >= 0) & (inside <= side))[..., None]
    return (weights / weights.sum((1, 2), keepdims=True)).astype(np.float32)
