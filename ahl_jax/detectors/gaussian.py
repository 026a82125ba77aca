"""Gaussian: how far an image lies from the normal ones, as a normal distribution measures it."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ahl_jax.config.settings import DetectorConfig
from ahl_jax.detectors.inputs import Inputs
from ahl_jax.detectors.protocol import DeviationDetector, Head


class Gaussian(DeviationDetector):
    """Mahalanobis distance of the global averages, by Ledoit and Wolf's shrunk covariance.

    Whitened features have that covariance as their unit, so the distance is their length. There is
    nothing to train, and labelled anomalies are not looked at.
    """

    whitened = True
    trained = False
    table = (Head("distance", targets=(0, 1, 1)),)

    def __init__(self, channels: int, config: DetectorConfig, *, rngs: nnx.Rngs):
        del channels, rngs
        self.margin = config.margin

    def head_scores(
        self,
        inputs: Inputs,
        reference: Inputs,
        weights: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b 1"]:
        """The length of the whitened averages of all scales, one beside the other."""
        del reference, weights
        return jnp.linalg.norm(inputs.pooled, axis=(-2, -1))[:, None]

    def location_maps(self, inputs: Inputs, reference: Inputs) -> tuple[Float[Array, "b h w"], ...]:
        """The length of every location's whitened features."""
        del reference
        precise = inputs.pooled.dtype
        return inputs.maps_of(lambda x: jnp.linalg.norm(x.astype(precise), axis=-1))
