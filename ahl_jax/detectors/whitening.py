"""Whitening of features by the covariance of normal images, shrunk as Ledoit and Wolf do.

Distances between whitened features are Mahalanobis distances: what hardly varies among normal
images counts as much as what varies a lot.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int
from sklearn.covariance import ledoit_wolf, ledoit_wolf_shrinkage

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


def fit_whitening(
    averages: Float[np.ndarray, "n d"], scales: int, parts: Sequence[int] = ()
) -> Whitening:
    """The whitening that makes the global averages of n normals uncorrelated.

    The shrinkage pulls all variances towards one value. So the levels of a trunk, whose features
    differ in size, are first scaled to the same total variance.

    Args:
        averages: global averages, scale beside scale.
        scales: s, which divides d.
        parts: channels of each level, which add up to c; by default all are one level's.
    """
    mean = averages.mean(0)
    size = float(np.sqrt(np.square(averages).mean()))
    centred = averages - mean
    sizes = _part_sizes(centred, np.tile(np.asarray(parts, int), scales))
    centred = centred / sizes  # In its place: of 100,000 normals a copy takes a gigabyte.

    def root(of: slice) -> Float[np.ndarray, "k k"]:
        some = np.ascontiguousarray(centred[:, of])
        whitening = _inverse_root(some, size / sizes[of].max())
        return (whitening / sizes[of, None]).astype(np.float32)

    c = centred.shape[1] // scales
    return Whitening(
        mean.reshape(scales, -1).astype(np.float32),
        np.stack([root(slice(k * c, (k + 1) * c)) for k in range(scales)]),
        root(slice(None)),
    )


def _part_sizes(
    centred: Float[np.ndarray, "n d"], parts: Int[np.ndarray, " p"]
) -> Float[np.ndarray, " d"]:
    """For every feature the root of its part's total variance, as a share of the largest."""
    if not len(parts):
        return np.ones(centred.shape[1])
    blocks = np.split(centred, np.cumsum(parts)[:-1], axis=1)
    sizes = np.sqrt([np.square(block).sum() for block in blocks])
    sizes = np.where(sizes > 0, sizes / max(sizes.max(), 1e-30), 1)
    return np.repeat(sizes, parts)


def _inverse_root(centred: Float[np.ndarray, "n d"], size: float) -> Float[np.ndarray, "d d"]:
    """The symmetric inverse square root of the shrunk covariance of features of this size."""
    n, d = centred.shape
    if n < d:
        # All other directions vary alike, as the shrinkage leaves them.
        shrinkage = ledoit_wolf_shrinkage(centred, assume_centered=True)
        others = shrinkage * np.square(centred).sum() / (n * d)
        _, lengths, rows = np.linalg.svd(centred, full_matrices=False)
        values, vectors = (1 - shrinkage) * np.square(lengths[::-1]) / n + others, rows[::-1].T
    else:
        covariance, _ = ledoit_wolf(centred, assume_centered=True)
        values, vectors = np.linalg.eigh(covariance)
        others = np.inf
    floor = max(FLOOR * values[-1], (ROUNDING * size) ** 2)
    if floor <= 0:
        return np.eye(d)
    inverse, rest = (1 / np.sqrt(np.maximum(each, floor)) for each in (values, others))
    root = (vectors * (inverse - rest)) @ vectors.T
    root[np.diag_indices(d)] += rest
    return root
