"""Whitening of features by the covariance of normal images, shrunk as Ledoit and Wolf do.

Distances between whitened features are Mahalanobis distances: what hardly varies among normal
images counts as much as what varies a lot.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

FLOOR = 1e-6
"""Smallest variance along any direction, as a share of the largest."""

ROUNDING = 1e-4
"""Deviation that float32 features may show by rounding alone, as a share of their size."""

_ROWS = 4096
"""Images in float64 at a time, so that whitening many takes next to no memory."""


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

    sizes: Float[np.ndarray | Array, " d"] | None = None
    """For every average the root of its level's total variance; earlier versions had none."""

    def colouring(self) -> Float[np.ndarray, "d d"]:
        """The inverse of the first pooling's matrix, up to the sizes of the levels.

        Whitened averages times it are the averages less their mean, all levels of the same size.
        """
        matrix = np.asarray(self.averages, np.float64)[: self.averages.shape[1]]
        sizes = 1.0 if self.sizes is None else np.asarray(self.sizes, np.float64)
        return (np.linalg.inv(matrix) / sizes).astype(np.float32)

    def of_first(self, poolings: int) -> "Whitening":
        """That of the first poolings alone."""
        scales, side = len(self.locations), self.averages.shape[1]
        mean, averages = self.mean[: poolings * scales], self.averages[: poolings * side]
        return self._replace(mean=mean, averages=averages)

    def whitened(self, pooled: Float[np.ndarray | Array, "n p*d"]) -> Any:
        """Pooled features, scale beside scale, then the next pooling's; NumPy's or JAX's."""
        if isinstance(pooled, np.ndarray) and len(pooled) > _ROWS:
            found = np.empty_like(pooled)  # All rows at once would take three times as much.
            for start in range(0, len(pooled), _ROWS):
                rows = slice(start, start + _ROWS)
                found[rows] = self.whitened(pooled[rows])
            return found
        matrices = self.averages.reshape(-1, *[self.averages.shape[1]] * 2)
        centred = (pooled - self.mean.reshape(-1)).reshape(-1, *matrices.shape[:2])
        white = centred.swapaxes(0, 1) @ matrices
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
        parts: channels of each level, as often as c has them; by default all are one level's.
        poolings: p, which is 1 where they are global averages alone.
    """
    mean = pooled.mean(0, dtype=np.float64)
    c = pooled.shape[1] // (poolings * scales)
    means = c // sum(parts) if parts else 1
    levels = np.tile(np.asarray(parts, int), scales * means)
    by_scale = [slice(k * c, (k + 1) * c) for k in range(scales)]
    first, *others = np.split(pooled, poolings, axis=1)
    (*locations, averages), sizes = _roots(first, levels, [*by_scale, slice(None)])
    more = [_roots(features, levels, [slice(None)])[0][0] for features in others]
    return Whitening(
        mean.reshape(poolings * scales, -1).astype(np.float32),
        np.stack(locations),
        np.concatenate([averages, *more]),
        sizes.astype(np.float32),
    )


def _roots(
    features: Float[np.ndarray, "n d"], parts: Int[np.ndarray, " p"], which: Sequence[slice]
) -> tuple[list[Float[np.ndarray, "k k"]], Float[np.ndarray, " d"]]:
    """The matrices that whiten some of the features each, and the sizes of their parts."""
    mean = features.mean(0, dtype=np.float64)
    variances = sum(np.square(rows).sum(0) for rows in _in_blocks(features, mean))
    size = np.sqrt((np.square(mean) + variances / len(features)).mean())
    sizes = _part_sizes(variances, parts)

    def root(of: slice) -> Float[np.ndarray, "k k"]:
        whitening = _inverse_root(features[:, of], mean[of], sizes[of], size / sizes[of].max())
        return (whitening / sizes[of, None]).astype(np.float32)

    return [root(of) for of in which], sizes


def _part_sizes(
    variances: Float[np.ndarray, " d"], parts: Int[np.ndarray, " p"]
) -> Float[np.ndarray, " d"]:
    """For every feature the root of its part's total variance, as a share of the largest."""
    if not len(parts):
        return np.ones(len(variances))
    sizes = np.sqrt([part.sum() for part in np.split(variances, np.cumsum(parts)[:-1])])
    sizes = np.where(sizes > 0, sizes / max(sizes.max(), 1e-30), 1)
    return np.repeat(sizes, parts)


def _in_blocks(
    features: Float[np.ndarray, "n d"],
    mean: Float[np.ndarray, " d"],
    sizes: Float[np.ndarray, " d"] | float = 1.0,
) -> Iterator[Float[np.ndarray, "b d"]]:
    """The features less their mean, in sizes, in float64."""
    for start in range(0, len(features), _ROWS):
        yield (features[start : start + _ROWS] - mean) / sizes


def _inverse_root(
    features: Float[np.ndarray, "n d"],
    mean: Float[np.ndarray, " d"],
    sizes: Float[np.ndarray, " d"],
    size: float,
) -> Float[np.ndarray, "d d"]:
    """The symmetric inverse square root of the covariance, shrunk as Ledoit and Wolf (2004) do.

    Args:
        features: in float32 or float64.
        mean: that of each feature.
        sizes: what to divide each feature by, at first.
        size: of the features, which tells how large their rounding is.
    """
    n, d = features.shape
    if n < d:
        centred = (features - mean) / sizes
        products = centred @ centred.T
        fourths = np.square(np.diagonal(products)).sum()
    else:
        products, fourths = np.zeros((d, d)), 0.0
        for rows in _in_blocks(features, mean, sizes):
            products += rows.T @ rows
            fourths += np.square(np.square(rows).sum(1)).sum()
    # Their d^2, b^2 and m times d. X X^T and X^T X have the same trace and the same length.
    total = np.trace(products) / n
    length = np.square(products / n).sum()
    apart = length - total**2 / d
    noise = fourths / n**2 - length / n
    shrinkage = min(noise, apart) / apart if noise > 0 and apart > 0 else 0.0
    values, vectors = np.linalg.eigh(products)
    others = shrinkage * total / d
    if n < d:
        # All other directions vary alike, as the shrinkage leaves them.
        kept = values > FLOOR**2 * values[-1]
        values, vectors = values[kept], centred.T @ (vectors[:, kept] / np.sqrt(values[kept]))
    values = (1 - shrinkage) * values / n + others
    if n >= d:
        others = np.inf  # There are none.
    floor = max(FLOOR * values.max(initial=0), (ROUNDING * size) ** 2)
    if floor <= 0:
        return np.eye(d)
    inverse, rest = (1 / np.sqrt(np.maximum(each, floor)) for each in (values, others))
    root = (vectors * (inverse - rest)) @ vectors.T
    root[np.diag_indices(d)] += rest
    return root
