"""What a detector reads: feature maps in patch order, with everything constant computed once."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

PATCH = 3
"""Side of the residual head's patches, which do not overlap."""


@dataclass(frozen=True)
class Grid:
    """Height and width of a feature map whose locations are stored in patch order.

    In patch order the locations of the non-overlapping 3x3 patches come first, patch by patch, and
    those that no patch covers last. A 3x3 convolution with stride 3 is then a reshape and a matrix
    product, with no copy of the features. Where 3 does not divide a side, the patches are centred.
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
    data_fields=["locations", "pooled"],
    meta_fields=["grid"],
)
@dataclass(frozen=True)
class Scale:
    """The features of n images at one scale."""

    locations: Float[Array, "*n l c"]
    """Feature vectors in patch order."""

    pooled: Float[Array, "*n c"]
    """Global average over the locations."""

    grid: Grid

    @property
    def channels(self) -> int:
        """C."""
        return self.locations.shape[-1]

    def patches(self) -> Float[Array, "*n p k"]:
        """Non-overlapping 3x3 patches, flattened to k = 9 C; a view of ``locations``."""
        covered = self.locations[..., : self.grid.patches * PATCH**2, :]
        return covered.reshape(*covered.shape[:-2], self.grid.patches, -1)


Inputs = tuple[Scale, ...]
"""What a detector reads of n images: one ``Scale`` per scale, the larger first."""


def make_inputs(maps: Sequence[Float[Array | np.ndarray, "n h w c"]]) -> Inputs:
    """Feature maps, one array per scale, as a detector reads them (on the default device)."""

    def scale(features: Float[Array | np.ndarray, "n h w c"]) -> Scale:
        n, h, w, c = features.shape
        grid = Grid(h, w)
        locations = jnp.asarray(features).reshape(n, h * w, c)[:, grid.order]
        return Scale(locations, locations.mean(axis=1), grid)

    return tuple(scale(features) for features in maps)


def take(inputs: Inputs, index: Int[Array, "*b"]) -> Inputs:
    """The images at ``index``."""
    return jax.tree.map(lambda array: array[index], inputs)


def mean_of(inputs: Inputs, weights: Float[Array, " b"]) -> Inputs:
    """The weighted mean image of a batch, with no batch axis: the reference of a residual."""
    share = weights / weights.sum()
    return jax.tree.map(lambda array: jnp.tensordot(share, array, axes=1), inputs)
