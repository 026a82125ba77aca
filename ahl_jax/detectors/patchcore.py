"""PatchCore (Roth et al., CVPR 2022): distances to a memory of locations of normal images."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ahl_jax.config.settings import SCALES, DetectorConfig
from ahl_jax.detectors.inputs import Inputs, to_maps
from ahl_jax.detectors.protocol import DeviationDetector, Head

_PROJECTED = 128
"""Channels that the coreset is chosen by, as in the paper: random projections keep distances."""


class PatchCore(DeviationDetector):
    """The largest distance of one of an image's locations to the nearest one in memory.

    A location is the mean of its 3x3 neighbourhood, the scales one beside the other on the finest
    grid. The memory is a greedy coreset of those of all training normals: ``coreset`` times the one
    that is farthest from what is in it. There is nothing to train, and labelled anomalies are not
    looked at. The published re-weighting by the neighbours in memory is left out.
    """

    trained = False
    table = (Head("distance", targets=(0, 1, 1)),)

    def __init__(self, channels: int, config: DetectorConfig, *, rngs: nnx.Rngs):
        del rngs
        self.memory = nnx.BatchStat(jnp.zeros((config.coreset, SCALES * channels)))
        self.margin = config.margin

    def measure(self, inputs: Inputs) -> Float[Array, "b r"]:
        """All locations of an image, one after the other."""
        return _locations(inputs).reshape(inputs.images, -1)

    def prepare(
        self,
        normals: Float[Array, "n r"],
        anomalies: Float[Array, "m r"],
        pseudo: Float[Array, "p r"],
        groups: Int[Array, " n"],
        colouring: Float[Array, "d d"] | None = None,
    ) -> None:
        """Fill the memory."""
        del anomalies, pseudo, groups, colouring
        count, width = self.memory[...].shape
        locations = normals.reshape(-1, width)
        self.memory[...] = locations[greedy_coreset(locations, count)]

    def head_scores(
        self,
        inputs: Inputs,
        reference: Inputs,
        weights: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b 1"]:
        """The largest distance in each image."""
        del reference, weights
        return self._distances(inputs).max((1, 2))[:, None]

    def location_maps(self, inputs: Inputs, reference: Inputs) -> tuple[Float[Array, "b h w"], ...]:
        """The distances on the finest grid; the same on the other grids, where they are resized."""
        del reference
        distances = self._distances(inputs)
        return tuple(
            jax.image.resize(distances, (inputs.images, grid.height, grid.width), "bilinear")
            for grid in inputs.grids
        )

    def _distances(self, inputs: Inputs) -> Float[Array, "b h w"]:
        return jnp.sqrt(squared_distances(_locations(inputs), self.memory[...]))


def squared_distances(
    locations: Float[Array, "b h w d"], memory: Float[Array, "k d"]
) -> Float[Array, "b h w"]:
    """The squared distance of each location of b images to the nearest point in memory."""
    lengths = jnp.square(memory).sum(-1)

    def nearest(x: Float[Array, "h w d"]) -> Float[Array, "h w"]:
        # Squared distances are small differences of large numbers.
        product = jnp.matmul(x, memory.T, precision=jax.lax.Precision.HIGHEST)
        return (lengths - 2 * product).min(-1) + jnp.square(x).sum(-1)

    # One image at a time, as a batch's distances to all of the memory can be gigabytes.
    return jnp.maximum(jax.lax.map(nearest, locations), 0)


def greedy_coreset(points: Float[Array, "n d"], count: int) -> Int[Array, " count"]:
    """Which points a greedy k-centre choice takes, starting with the first one.

    Args:
        points: n points; of more than 128 dimensions 128 random projections count.
        count: how many to choose. Beyond n the first one is taken again and again.
    """
    if points.shape[1] > _PROJECTED:
        directions = jax.random.normal(
            jax.random.key(0), (points.shape[1], _PROJECTED), points.dtype
        )
        points = points @ (directions / _PROJECTED**0.5)

    def choose(nearest: Float[Array, " n"], _: None) -> tuple[Float[Array, " n"], Int[Array, ""]]:
        chosen = nearest.argmax()
        distance = jnp.square(points - points[chosen]).sum(1)
        return jnp.minimum(nearest, distance), chosen

    return jax.lax.scan(choose, jnp.full(len(points), jnp.inf, points.dtype), None, count)[1]


def _locations(inputs: Inputs) -> Float[Array, "b h w d"]:
    """Neighbourhood means of all scales on the grid of the finest, one beside the other."""
    finest = inputs.grids[0]
    scales: list[Array] = []
    for maps in to_maps(inputs):
        precise = maps.astype(inputs.pooled.dtype)
        padded = jnp.pad(precise, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
        h, w, channels = maps.shape[1:]
        around = sum(padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9
        shape = inputs.images, finest.height, finest.width, channels
        scales.append(jax.image.resize(around, shape, "bilinear"))
    return jnp.concatenate(scales, axis=-1)
