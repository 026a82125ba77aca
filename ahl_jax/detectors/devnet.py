"""DevNet: one head on the locations, trained with the deviation loss."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ahl_jax.config.settings import DetectorConfig
from ahl_jax.detectors.heads import FeatureLinear, top_mean
from ahl_jax.detectors.inputs import Inputs
from ahl_jax.detectors.protocol import DeviationDetector, Head


class DevNet(DeviationDetector):
    """A 1x1 convolution to one channel, absolute values, mean of the top locations."""

    table = (Head("anomaly", targets=(0, 1, 1)),)

    def __init__(self, channels: int, config: DetectorConfig, *, rngs: nnx.Rngs):
        self.locate = FeatureLinear(channels, 1, rngs=rngs)
        self.top_k = config.top_k
        self.margin = config.margin

    def _score(self, locations: Float[Array, "*b l c"]) -> Float[Array, "*b l"]:
        return jnp.abs(self.locate(locations)[..., 0])

    def head_scores(
        self,
        inputs: Inputs,
        reference: Inputs,
        weights: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b 1"]:
        """The mean over scales of the top locations' mean."""
        del reference, weights
        scales = [top_mean(scores, self.top_k) for scores in inputs.at_locations(self._score)]
        return jnp.stack(scales).mean(0)[:, None]

    def location_maps(self, inputs: Inputs, reference: Inputs) -> tuple[Float[Array, "b h w"], ...]:
        """|1x1 convolution| of every location."""
        del reference
        return inputs.maps_of(self._score)
