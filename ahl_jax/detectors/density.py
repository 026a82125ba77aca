"""Density: distances to the normal images, with a head for what labelled anomalies have in common.

It starts from closed forms, which training sharpens.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ahl_jax.config import SCALES, DetectorConfig
from ahl_jax.detectors.heads import top_mean
from ahl_jax.detectors.inputs import Inputs
from ahl_jax.detectors.protocol import DeviationDetector, Head

_TINY = 1e-6
"""Keeps the gradients of lengths finite at 0."""


class Density(DeviationDetector):
    """Distances on whitened features, in standard deviations of the normals.

    With z the whitened global averages of all scales and x_l the whitened features of a location,

    - density: the length of A z, at first a Mahalanobis distance to the normal images;
    - local: the mean length of the ``top_k`` longest x_l, averaged over the scales;
    - seen: the mean cosine between z and the z of each labelled anomaly.

    Each is standardised by its mean and standard deviation over normal images, so that all are on
    the scale of the deviation loss, and score = density + local / 2 + seen / 2. Trained are the
    metric A, at first the identity, and a gain for every channel of x_l. What z is compared with
    stays the mean of the labelled anomalies' directions: so few of them do not tell it any better.
    """

    whitened = True
    table = (
        Head("density", targets=(0, 1, 1)),
        Head("local", targets=(0, 1, 1), factor=0.5),
        Head("seen", targets=(0, 1, None), factor=0.5),
    )

    def __init__(self, channels: int, config: DetectorConfig, *, rngs: nnx.Rngs):
        del rngs
        self.metric = nnx.Param(jnp.zeros((SCALES * channels, SCALES * channels)))
        self.local_gain = nnx.Param(jnp.zeros(channels))
        self.direction = nnx.BatchStat(jnp.zeros(SCALES * channels))
        self.mean = nnx.BatchStat(jnp.zeros(SCALES + 2))
        self.deviation = nnx.BatchStat(jnp.ones(SCALES + 2))
        self.top_k = config.top_k
        self.margin = config.margin

    def calibrate(self, normals: Inputs, anomalies: Inputs) -> None:
        """The direction of the labelled anomalies, and the moments of all scores over normals.

        Without labelled anomalies the direction stays as it is: fine-tuning keeps that of the run
        it starts from, in whitened channels.
        """
        if len(anomalies.pooled):
            self.direction[...] = _unit(_flat(anomalies)).mean(0)
        raw = self._raw(normals)
        self.mean[...] = raw.mean(0)
        self.deviation[...] = jnp.maximum(raw.std(0), _TINY)

    def _lengths(self, locations: Float[Array, "*n l c"]) -> Float[Array, "*n l"]:
        precise = locations.astype(self.local_gain[...].dtype)
        return _length(jnp.square(precise) @ jnp.exp(2 * self.local_gain[...]))

    def _raw(self, inputs: Inputs) -> Float[Array, "b r"]:
        """Density, seen, and the local score of each scale, not standardised."""
        z = _flat(inputs)
        density = _length(jnp.square(z + z @ self.metric[...]).sum(-1))
        seen = _unit(z) @ self.direction[...]
        local = [top_mean(lengths, self.top_k) for lengths in inputs.at_locations(self._lengths)]
        return jnp.stack([density, seen, *local], axis=1)

    def head_scores(
        self,
        inputs: Inputs,
        reference: Inputs,
        weights: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b 3"]:
        """Scores in the order of ``heads``, in standard deviations of the normals."""
        del reference, weights
        scores = (self._raw(inputs) - self.mean[...]) / self.deviation[...]
        return jnp.stack([scores[:, 0], scores[:, 2:].mean(1), scores[:, 1]], axis=1)

    def location_maps(self, inputs: Inputs, reference: Inputs) -> tuple[Float[Array, "b h w"], ...]:
        """The length of every location's features, standardised as the local head's score is."""
        del reference
        moments = zip(self.mean[...][2:], self.deviation[...][2:], strict=True)
        scales = zip(inputs.grids, inputs.at_locations(self._lengths), moments, strict=True)
        return tuple(grid.to_map((x - mean) / deviation) for grid, x, (mean, deviation) in scales)


def _flat(inputs: Inputs) -> Float[Array, "b d"]:
    """The global averages, scale beside scale."""
    return inputs.pooled.reshape(*inputs.pooled.shape[:-2], -1)


def _length(squared: Float[Array, "*n"]) -> Float[Array, "*n"]:
    return jnp.sqrt(squared + _TINY**2)


def _unit(z: Float[Array, "b d"]) -> Float[Array, "b d"]:
    return z / _length(jnp.square(z).sum(-1, keepdims=True))
