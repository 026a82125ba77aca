"""Heat maps of fine features: how far each location is from those of normal images.

Fitted in closed form to normal images, whatever the detector is. Parts that always lie alike
gain by the mean of each location, as in PaDiM (Defard et al., 2020); the distance to the nearest of
many normal locations, as in PatchCore (Roth et al., CVPR 2022), holds where they do not. Labelled
anomalies add the direction that their hottest locations lie in.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ahl_jax.detectors.patchcore import greedy_coreset, squared_distances
from ahl_jax.detectors.whitening import ROUNDING

_LOCATIONS = 50_000
"""Locations of normal images that ``_NEIGHBOURS`` are chosen from: twice as many tell no more."""

_NEIGHBOURS = 2000
"""Locations of normal images that others are compared with: a greedy coreset holds what is rare,
such as the thread of a screw, and tells more than ten times as many drawn at random."""

_SHRINK = 10
"""How many images the mean over all locations counts as at each of them."""

_HOTTEST = 8
"""Most locations of a labelled anomaly that stand for its defect; a 32nd of a small image's."""

_PULL = 10
"""How much nearness to labelled defects counts beside distance, in square roots of channels: the
spread of a squared distance, of c independent channels, grows as the square root of c."""

_FLOOR = 1e-3
"""Smallest variance along any direction, as a share of their mean."""

_TINY = 1e-12
"""Smallest variance of all."""


class Localizer(NamedTuple):
    """What ``heat_of`` compares locations with, all float32."""

    mean: Float[np.ndarray | Array, "h w c"]
    """Of normal images, location by location."""

    whitening: Float[np.ndarray | Array, "c c"]
    """Whitens what is left without it."""

    neighbours: Float[np.ndarray | Array, "k c"]
    """Whitened features of normal locations."""

    direction: Float[np.ndarray | Array, " c"]
    """The whitened direction of labelled defects; zero without any."""


def fit_localizer(fine: Float[np.ndarray, "n h w c"]) -> Localizer:
    """The localizer of n normal images, at least one.

    Args:
        fine: their features.
    """
    (n, *_, channels), count = fine.shape, fine.size // fine.shape[-1]
    mean = fine.mean(0, dtype=np.float64)
    mean = (n * mean + _SHRINK * mean.mean((0, 1))) / (n + _SHRINK)
    # Image by image: a copy of all in float64 would be twice as large.
    moments, squares = np.zeros((channels, channels)), 0.0
    for image in fine:
        centred = (image - mean).reshape(-1, channels)
        moments += centred.T @ centred
        squares += np.square(image, dtype=np.float64).sum()
    values, vectors = np.linalg.eigh(moments / count)
    size = math.sqrt(squares / fine.size)
    least = max(_FLOOR * values.mean(), (ROUNDING * size) ** 2, _TINY)
    whitening = vectors / np.sqrt(np.maximum(values, least))
    some = np.random.default_rng(0).permutation(count)[:_LOCATIONS]
    means = mean.reshape(-1, channels)
    centred = fine.reshape(count, channels)[some] - means[some % len(means)]
    white = (centred @ whitening).astype(np.float32)
    chosen = np.asarray(_coreset(jnp.asarray(white), min(_NEIGHBOURS, len(white))))
    direction = np.zeros(channels, np.float32)
    return Localizer(
        mean.astype(np.float32), whitening.astype(np.float32), white[chosen], direction
    )


_coreset = jax.jit(greedy_coreset, static_argnums=1)


def pointed(localizer: Localizer, fine: Float[np.ndarray, "m h w c"]) -> Localizer:
    """The localizer with the direction of m labelled anomalies, at least one.

    The mean over the hottest locations of each, as unit vectors, so that one odd defect does not
    outweigh the others; short where defects are of several kinds, and shortened as the mean of few.

    Args:
        localizer: of the normal images.
        fine: their features.
    """
    m, *_, channels = fine.shape
    white = _whitened(localizer, jnp.asarray(fine))
    heat = np.asarray(squared_distances(white, jnp.asarray(localizer.neighbours))).reshape(m, -1)
    z = np.asarray(white).reshape(m, -1, channels)
    most = min(_HOTTEST, max(1, heat.shape[1] // 32))
    hottest = np.argsort(-heat, axis=1, kind="stable")[:, :most]
    hot = np.take_along_axis(z, hottest[..., None], axis=1)
    lengths = np.linalg.norm(hot, axis=-1, keepdims=True)
    mean = (hot / np.maximum(lengths, _TINY)).mean((0, 1))
    direction = _PULL * math.sqrt(channels) * m / (m + 1) * mean
    return localizer._replace(direction=direction.astype(np.float32))


def heat_of(localizer: Localizer, fine: Float[Array, "b h w c"]) -> Float[Array, "b h w"]:
    """How far each location of b images is from normal ones, and how near to labelled defects.

    The squared distance to the nearest normal location, as it is the logarithm of how unlikely a
    location is, up to a factor. Beside it the product with the direction of labelled defects, as
    the logarithm of how much likelier a shift along it makes the location. At least 0.
    """
    far, towards = far_and_towards(localizer, fine)
    return jnp.maximum(far + towards, 0)


def far_and_towards(
    localizer: Localizer, fine: Float[Array, "b h w c"]
) -> tuple[Float[Array, "b h w"], Float[Array, "b h w"]]:
    """The two parts of ``heat_of``: squared distances, and products with the direction."""
    z = _whitened(localizer, fine)
    towards = jnp.matmul(z, jnp.asarray(localizer.direction), precision=jax.lax.Precision.HIGHEST)
    return squared_distances(z, jnp.asarray(localizer.neighbours)), towards


def _whitened(localizer: Localizer, fine: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    centred = fine - localizer.mean
    return jnp.matmul(centred, localizer.whitening, precision=jax.lax.Precision.HIGHEST)
