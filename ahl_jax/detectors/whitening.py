"""Whitening of features by the covariance of normal images, shrunk as Ledoit and Wolf do.

Distances between whitened features are Mahalanobis distances: what hardly varies among normal
images counts as much as what varies a lot.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

FLOOR = 1e-6
"""Smallest variance along any direction, as a share of the largest."""

ROUNDING = 1e-4
"""Deviation that float32 features may show by rounding alone, as a share of their size."""


class Whitening(NamedTuple):
    """The affine maps that whiten features of s scales, c channels and p poolings, all float32.

    The matrices are the symmetric square roots of the inverse covariances, so of all whitening maps
    they change the features least.
    """

    mean: Float[np.ndarray | Array, "p*s c"]
    """Mean of the normals' pooled features."""

    locations: Float[np.ndarray | Array, "s c c"]
    """For the features of single locations: whitens the global averages of each scale by itself."""

    averages: Float[np.ndarray | Array, "p*d d"]
    """For the pooled features of all scales together, d = s c: a matrix for each pooling."""

    def of_first(self, poolings: int) -> "Whitening":
        """That of the first poolings alone."""
        scales, side = len(self.locations), self.averages.shape[1]
        mean, averages = self.mean[: poolings * scales], self.averages[: poolings * side]
        return self._replace(mean=mean, averages=averages)

    def whitened(self, pooled: Float[np.ndarray | Array, "n p*d"]) -> Any:
        """Pooled features, scale beside scale, then the next pooling's; NumPy's or JAX's."""
        side = self.averages.shape[1]
        centred = (pooled - self.mean.reshape(-1)).reshape(pooled.shape[0], -1, side)
        white = centred.swapaxes(0, 1) @ self.averages.reshape(-1, side, side)
        return white.swapaxes(0, 1).reshape(pooled.shape)


def fit_whitening(
    pooled: Float[np.ndarray, "n p*d"], scales: int, parts: Sequence[int] = (), poolings: int = 1
) -> Whitening:
    """The whitening that makes the pooled features of n normals uncorrelated, each pooling's apart.

    The shrinkage pulls all variances towards one value. So the levels of a trunk, whose features
    differ in size, are first scaled to the same total variance.

    Args:
        pooled: pooled features, scale beside scale, then the next pooling's.
        scales: s, which divides d.
        parts: channels of each level, which add up to c; by default all are one level's.
        poolings: p, which is 1 where they are global averages alone.
    """
    mean = pooled.mean(0, dtype=np.float64)
    levels, c = np.tile(np.asarray(parts, int), scales), pooled.shape[1] // (poolings * scales)
    by_scale = [slice(k * c, (k + 1) * c) for k in range(scales)]
    first, *others = np.split(pooled, poolings, axis=1)
    *locations, averages = _roots(first, levels, [*by_scale, slice(None)])
    more = [_roots(features, levels, [slice(None)])[0] for features in others]
    return Whitening(
        mean.reshape(poolings * scales, -1).astype(np.float32),
        np.stack(locations),
        np.concatenate([averages, *more]),
    )


def _roots(
    features: Float[np.ndarray, "n d"], parts: Int[np.ndarray, " p"], which: Sequence[slice]
) -> list[Float[np.ndarray, "k k"]]:
    """The matrices that whiten some of the features each."""
    size = float(np.sqrt(np.square(features).mean(dtype=np.float64)))
    centred = features - features.mean(0, dtype=np.float64)
    sizes = _part_sizes(centred, parts)
    centred /= sizes  # In its place: of 100,000 normals a copy takes a gigabyte.

    def root(of: slice) -> Float[np.ndarray, "k k"]:
        some = np.ascontiguousarray(centred[:, of])
        whitening = _inverse_root(some, size / sizes[of].max())
        return (whitening / sizes[of, None]).astype(np.float32)

    return [root(of) for of in which]


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
    # Imported late: it takes a second, which those who fit nothing need not wait.
    from sklearn.covariance import ledoit_wolf, ledoit_wolf_shrinkage

    n, d = centred.shape
    if n < d:
        # All other directions vary alike, as the shrinkage leaves them.
        shrinkage = ledoit_wolf_shrinkage(centred, assume_centered=True)
        others = shrinkage * np.square(centred).sum() / (n * d)
        # A third of the time that singular values take.
        squares, left = np.linalg.eigh(centred @ centred.T)
        kept = squares > FLOOR**2 * squares[-1]
        squares, left = squares[kept], left[:, kept]
        vectors = centred.T @ (left / np.sqrt(squares))
        values = (1 - shrinkage) * squares / n + others
    else:
        covariance, _ = ledoit_wolf(centred, assume_centered=True)
        values, vectors = np.linalg.eigh(covariance)
        others = np.inf
    floor = max(FLOOR * values.max(initial=0), (ROUNDING * size) ** 2)
    if floor <= 0:
        return np.eye(d)
    inverse, rest = (1 / np.sqrt(np.maximum(each, floor)) for each in (values, others))
    root = (vectors * (inverse - rest)) @ vectors.T
    root[np.diag_indices(d)] += rest
    return root
