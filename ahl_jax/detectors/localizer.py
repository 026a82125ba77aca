"""Heat maps of fine features: how far each location is from those of normal images.

Fitted in closed form to normal images alone, whatever the detector is. Parts that always lie alike
gain by the mean of each location, as in PaDiM (Defard et al., 2020); the distance to the nearest of
many normal locations, as in PatchCore (Roth et al., CVPR 2022), holds where they do not.
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
    return Localizer(mean.astype(np.float32), whitening.astype(np.float32), white[chosen])


_coreset = jax.jit(greedy_coreset, static_argnums=1)


def heat_of(localizer: Localizer, fine: Float[Array, "b h w c"]) -> Float[Array, "b h w"]:
    """The squared distance of each location of b images to the nearest normal one.

    Squared, as it is the logarithm of how unlikely a location is, up to a factor.
    """
    centred = fine - localizer.mean
    z = jnp.matmul(centred, localizer.whitening, precision=jax.lax.Precision.HIGHEST)
    return squared_distances(z, jnp.asarray(localizer.neighbours))
