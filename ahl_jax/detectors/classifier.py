"""The base of detectors that classify whole images."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from ahl_jax.config.settings import DetectorConfig
from ahl_jax.detectors.heads import FeatureLinear
from ahl_jax.detectors.inputs import Inputs
from ahl_jax.detectors.protocol import Detector


class Classifier(Detector):
    """Globally averaged features -> hidden ReLU layer -> log odds of an anomaly.

    The scales share the weights; the score is their mean. A subclass says by its losses which
    images it learns from.
    """

    heads = ("anomaly",)

    def __init__(self, channels: int, config: DetectorConfig, *, rngs: nnx.Rngs):
        self.hidden = FeatureLinear(channels, config.hidden, rngs=rngs)
        self.out = nnx.Linear(config.hidden, 1, rngs=rngs)

    def _logit(self, features: Float[Array, "*n c"]) -> Float[Array, "*n 1"]:
        return self.out(jax.nn.relu(self.hidden(features)))

    def head_scores(
        self,
        inputs: Inputs,
        reference: Inputs,
        weights: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b 1"]:
        """The log odds, the mean over scales."""
        del reference, weights
        return self._logit(inputs.pooled).mean(1)

    def total_score(self, head_scores: Float[Array, "*b 1"]) -> Float[Array, "*b"]:
        """The log odds, which tell apart what would round to a probability of 1."""
        return head_scores[..., 0]

    def label_score(self, head_scores: Float[Array, "*b 1"]) -> Float[Array, "*b"]:
        """The probability of an anomaly."""
        return jax.nn.sigmoid(head_scores[..., 0])

    def location_maps(self, inputs: Inputs, reference: Inputs) -> tuple[Float[Array, "b h w"], ...]:
        """The log odds of every location, taken for a whole image."""
        del reference
        return inputs.maps_of(lambda x: self._logit(x)[..., 0])
