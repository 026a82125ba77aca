"""Whitening of features by the covariance of normal images, shrunk as Ledoit and Wolf do.

Distances between whitened features are Mahalanobis distances: what hardly varies among normal
images counts as much as what varies a lot.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float
from sklearn.covariance import ledoit_wolf

FLOOR = 1e-6
"""Smallest variance along any direction, as a share of the largest."""

ROUNDING = 1e-4
"""Deviation that float32 features may show by rounding alone, as a share of their size."""


class Whitening(NamedTuple):
    """The affine maps that whiten features of s scales with c channels, all float32.

    The matrices are the symmetric square roots of the inverse covariances, so of all whitening maps
    they change the features least.
    """

    mean: Float[np.ndarray | Array, "s c"]
    """Mean of the normals' global averages."""

    locations: Float[np.ndarray | Array, "s c c"]
    """For the features of single locations: whitens the global averages of each scale by itself."""

    averages: Float[np.ndarray | Array, "d d"]
    """For the global averages of all scales together, d = s c."""


def fit_whitening(averages: Float[np.ndarray, "n d"], scales: int) -> Whitening:
    """The whitening that makes the global averages of n normals uncorrelated.

    Args:
        averages: global averages, scale beside scale.
        scales: s, which divides d.
    """
    mean = averages.mean(0)
    size = float(np.sqrt(np.square(averages).mean()))
    centred = averages - mean
    parts = np.split(centred, scales, axis=1)
    return Whitening(
        mean.reshape(scales, -1).astype(np.float32),
        np.stack([_inverse_root(part, size) for part in parts]),
        _inverse_root(centred, size),
    )


def _inverse_root(centred: Float[np.ndarray, "n d"], size: float) -> Float[np.ndarray, "d d"]:
    """The symmetric inverse square root of the shrunk covariance of features of this size."""
    covariance, _ = ledoit_wolf(centred, assume_centered=True)
    values, vectors = np.linalg.eigh(covariance)
    floor = max(FLOOR * values[-1], (ROUNDING * size) ** 2)
    roots = np.sqrt(np.maximum(values, floor)) if floor > 0 else np.ones_like(values)
    return ((vectors / roots) @ vectors.T).astype(np.float32)
