"""A detector's inputs: feature maps in patch order, with everything constant computed once."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ahl_jax.detectors.whitening import Whitening

PATCH = 3
"""Side of the residual head's patches, which do not overlap."""


POOLINGS: tuple[Callable[..., Any], ...] = (
    lambda features, dtype: features.mean((1, 2), dtype=dtype),
    lambda features, dtype: features.std((1, 2), dtype=dtype),
    lambda features, dtype: features.max((1, 2)).astype(dtype),
)
"""Ways to sum up the locations of maps [n, h, w, c], of which detectors use the first ones."""


class Blocks(NamedTuple):
    """The blocks of pooled features that a detector reads: each pooling of each mean over views."""

    poolings: int
    """How many of ``POOLINGS``."""

    means: int
    """Into how many means over views the channels of the maps are divided."""

    @property
    def total(self) -> int:
        """How many blocks there are."""
        return self.poolings * self.means


def pool_blocks(
    maps: Sequence[Float[Array | np.ndarray, "n h w m*c"]], blocks: Blocks, dtype: DTypeLike
) -> list[Float[Array | np.ndarray, "n c"]]:
    """The first pooling of every mean, scale by scale, then the next pooling's."""
    means = zip(*(means_of(features, blocks.means) for features in maps), strict=True)
    each = [features for of_scales in means for features in of_scales]
    return [pool(features, dtype) for pool in POOLINGS[: blocks.poolings] for features in each]


def means_of(features: Float[Array | np.ndarray, "n h w m*c"], means: int) -> list[Any]:
    """Maps [n, h, w, c] of so many means over views, which are channels side by side, apart."""
    xp = np if isinstance(features, np.ndarray) else jnp
    return xp.split(features, means, -1)


@dataclass(frozen=True)
class Grid:
    """Height and width of a feature map whose locations are stored in patch order.

    In patch order the locations of the non-overlapping 3x3 patches come first, patch by patch, and
    those that no patch covers last. A 3x3 convolution with stride 3 is then a matrix product.
    Where 3 does not divide a side, the patches are centred.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.height, self.width) < PATCH:
            raise ValueError(f"a feature map of {self.height}x{self.width} holds no 3x3 patch")

    @property
    def patches(self) -> int:
        """Number of patches."""
        return (self.height // PATCH) * (self.width // PATCH)

    @property
    def uncovered(self) -> int:
        """Number of locations outside of all patches."""
        return self.height * self.width - self.patches * PATCH**2

    @functools.cached_property
    def order(self) -> Int[np.ndarray, " l"]:
        """Row-major index of every location, in patch order."""
        index = np.arange(self.height * self.width).reshape(self.height, self.width)
        rows, columns = self.height // PATCH, self.width // PATCH
        top, left = (self.height % PATCH) // 2, (self.width % PATCH) // 2
        window = index[top : top + rows * PATCH, left : left + columns * PATCH]
        covered = window.reshape(rows, PATCH, columns, PATCH).transpose(0, 2, 1, 3).ravel()
        return np.concatenate([covered, np.setdiff1d(index.ravel(), covered)])

    def to_map(self, locations: Float[Array, "*b l"]) -> Float[Array, "*b h w"]:
        """Values in patch order, back as maps."""
        inverse = np.argsort(self.order)
        return locations[..., inverse].reshape(*locations.shape[:-1], self.height, self.width)

    def spread(self, patches: Float[Array, "*b p"]) -> Float[Array, "*b h w"]:
        """A value per patch as a map; locations outside of all patches take the nearest one's."""
        rows, columns = self.height // PATCH, self.width // PATCH
        maps = patches.reshape(*patches.shape[:-1], rows, columns)
        row = np.clip((np.arange(self.height) - (self.height % PATCH) // 2) // PATCH, 0, rows - 1)
        column = np.clip(
            (np.arange(self.width) - (self.width % PATCH) // 2) // PATCH, 0, columns - 1
        )
        return maps[..., row[:, None], column[None, :]]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["patches", "rest", "pooled"],
    meta_fields=["grids"],
)
@dataclass(frozen=True)
class Inputs:
    """The features of n images at all scales, the larger scale first.

    Every location is held once: most of them as patches, so that the residual head reads both
    scales in one matrix product and copies nothing, and the others apart.
    """

    patches: Float[Array, "*n p k"]
    """Non-overlapping 3x3 patches, scale after scale, flattened to k = 9 C."""

    rest: Float[Array, "*n r c"]
    """The locations that no patch covers, scale after scale."""

    pooled: Float[Array, "*n q c"]
    """Global average over the locations of each scale, at least float32. Where the features are
    whitened, the averages of all scales are whitened together, and more ``Blocks`` may follow, each
    over all scales."""

    grids: tuple[Grid, ...]

    @property
    def channels(self) -> int:
        """C."""
        return self.pooled.shape[-1]

    @property
    def images(self) -> int:
        """N, where there is one leading axis."""
        return self.pooled.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    def take(self, index: Int[Array, "*b"]) -> "Inputs":
        """The images at ``index``."""
        return jax.tree.map(lambda array: array[index], self)

    def at_patches(
        self, function: Callable[[Float[Array, "*n p k"]], Float[Array, "*n p h"]]
    ) -> tuple[Float[Array, "*n q h"], ...]:
        """``function`` of every flattened patch: one array per scale."""
        return self._by_scale(function(self.patches), [grid.patches for grid in self.grids])

    def at_locations(
        self, function: Callable[[Float[Array, "*n l c"]], Float[Array, "*n l h"]]
    ) -> tuple[Float[Array, "*n m h"], ...]:
        """``function`` of every location's feature vector: one array per scale, in patch order."""
        axis = self.patches.ndim - 2
        covered = self.patches.reshape(*self.patches.shape[:-2], -1, self.channels)
        inside = self._by_scale(function(covered), [g.patches * PATCH**2 for g in self.grids])
        outside = self._by_scale(function(self.rest), [g.uncovered for g in self.grids])
        return tuple(jnp.concatenate(parts, axis) for parts in zip(inside, outside, strict=True))

    def maps_of(
        self, function: Callable[[Float[Array, "*n l c"]], Float[Array, "*n l"]]
    ) -> tuple[Float[Array, "*n h w"], ...]:
        """``function`` of every location's feature vector: one map per scale."""
        values = self.at_locations(function)
        return tuple(grid.to_map(x) for grid, x in zip(self.grids, values, strict=True))

    def _by_scale(self, values: Array, counts: Sequence[int]) -> tuple[Array, ...]:
        """Values along the axis of patches or locations, cut into the scales."""
        return tuple(jnp.split(values, np.cumsum(counts)[:-1], self.patches.ndim - 2))


def make_inputs(
    maps: Sequence[Float[Array | np.ndarray, "n h w c"]],
    dtype: DTypeLike | None = None,
    whitening: Whitening | None = None,
) -> Inputs:
    """Feature maps, one array per scale, as a detector reads them.

    Args:
        maps: all of NumPy, which stays on the host, or all of JAX.
        dtype: of the patches and the rest; by default that of the maps.
        whitening: what to whiten the features with; by default they stay as they are. It tells
            which ``Blocks`` there are, too. Patches and rest are of the first mean alone.
    """
    xp = np if isinstance(maps[0], np.ndarray) else jnp
    dtype = dtype or maps[0].dtype
    precise = jnp.promote_types(maps[0].dtype, np.float32)
    grids = tuple(Grid(*m.shape[1:3]) for m in maps)
    blocks = Blocks(1, 1)
    if whitening is not None:
        rows, channels = whitening.mean.shape
        means = maps[0].shape[-1] // channels
        blocks = Blocks(rows // len(maps) // means, means)
    patches, rest = [], []
    for scale, (features, grid) in enumerate(zip(maps, grids, strict=True)):
        first = means_of(features, blocks.means)[0]
        n, h, w, c = first.shape
        flat = first.reshape(n, h * w, c)
        if whitening is not None:
            flat = (flat - whitening.mean[scale]) @ whitening.locations[scale]
        covered, others = np.split(grid.order, [grid.patches * PATCH**2])
        patches.append(flat[:, covered].reshape(n, grid.patches, PATCH**2 * c).astype(dtype))
        rest.append(flat[:, others].astype(dtype))
    averages = xp.stack(pool_blocks(maps, blocks, precise), 1)
    if whitening is not None:
        # Exported programs take any number of images, of which len() cannot speak.
        flat = averages.reshape(averages.shape[0], -1)
        averages = whitening.whitened(flat).reshape(averages.shape)
    return Inputs(xp.concatenate(patches, axis=1), xp.concatenate(rest, axis=1), averages, grids)


def to_maps(inputs: Inputs) -> tuple[Float[Array, "*n h w c"], ...]:
    """The inverse of ``make_inputs``."""
    locations = inputs.at_locations(lambda x: x)
    return tuple(
        jnp.moveaxis(grid.to_map(jnp.swapaxes(values, -1, -2)), -3, -1)
        for grid, values in zip(inputs.grids, locations, strict=True)
    )


def mean_of(inputs: Inputs, weights: Float[Array, " b"]) -> Inputs:
    """The weighted mean image of a batch, with no batch axis: the reference of a residual."""
    share = weights / weights.sum()

    def mean(array: Float[Array, "b ..."]) -> Float[Array, "..."]:
        precise = jnp.promote_types(array.dtype, share.dtype)
        return jnp.tensordot(share, array.astype(precise), axes=1).astype(array.dtype)

    return jax.tree.map(mean, inputs)
