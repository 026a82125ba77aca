"""MLEP: margin learning embedded prediction, for still images."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ahl_jax.config.settings import DetectorConfig
from ahl_jax.detectors.heads import FeatureLinear
from ahl_jax.detectors.inputs import Inputs
from ahl_jax.detectors.losses import Prior, triplet_loss, weighted_mean
from ahl_jax.detectors.protocol import ANOMALY, NORMAL, Detector

MARGIN = 1.0
"""Of the triplet loss: how much farther anomalies are to be from the normals' embedding."""


class MLEP(Detector):
    """Distance from the normals in an embedding, and the error of a prediction from it.

    After Liu et al., IJCAI 2019, who predict the next frame of a video from an embedding of the
    frames before it. A triplet margin loss keeps the embeddings of normals together and moves
    those of labelled anomalies away; the prediction learns from normals alone. Adapted to frozen
    features of still images:

    - with no next frame, the embedding predicts the globally averaged features that it comes from;
    - the anchor of all triplets is the embedding of the reference, the mean of some normals;
    - the score is distance + prediction error, where theirs is the prediction error alone.

    Features are brought to a root mean square of 1, so that both parts have a scale of their own.
    """

    heads = ("distance", "prediction")

    def __init__(self, channels: int, config: DetectorConfig, *, rngs: nnx.Rngs):
        self.encode = FeatureLinear(channels, config.hidden, rngs=rngs)
        self.decode = nnx.Linear(config.hidden, channels, rngs=rngs)

    def _embed(self, features: Float[Array, "*n c"]) -> Float[Array, "*n h"]:
        return jax.nn.relu(self.encode(_standard(features)))

    def _error(
        self, features: Float[Array, "*n c"], embedding: Float[Array, "*n h"]
    ) -> Float[Array, "*n"]:
        return jnp.square(self.decode(embedding) - _standard(features)).mean(-1)

    def head_scores(
        self,
        inputs: Inputs,
        reference: Inputs,
        weights: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b 2"]:
        """Mean squared distance and mean squared prediction error, each the mean over scales."""
        del weights
        embedding = self._embed(inputs.pooled)
        distance = _distance(embedding, self._embed(reference.pooled))
        error = self._error(inputs.pooled, embedding)
        return jnp.stack([distance.mean(1), error.mean(1)], axis=1)

    def losses(
        self,
        head_scores: Float[Array, "b 2"],
        labels: Int[Array, " b"],
        weights: Float[Array, " b"],
        prior: Prior,
    ) -> Float[Array, " 2"]:
        """The triplet loss, a mean over pairs, and the mean prediction error of normals."""
        del prior
        normals, anomalies = (jnp.where(labels == label, weights, 0) for label in (NORMAL, ANOMALY))
        distance, error = head_scores.T
        triplet = triplet_loss(distance, normals, anomalies, MARGIN)
        return jnp.stack([triplet, weighted_mean(error, normals)])

    def total_score(self, head_scores: Float[Array, "*b 2"]) -> Float[Array, "*b"]:
        """Distance + prediction error."""
        return head_scores.sum(-1)

    def label_score(self, head_scores: Float[Array, "*b 2"]) -> Float[Array, "*b"]:
        """The total score as a share of the margin, where anomalies are to be."""
        return self.total_score(head_scores) / MARGIN

    def location_maps(self, inputs: Inputs, reference: Inputs) -> tuple[Float[Array, "b h w"], ...]:
        """The total score of every location, taken for a whole image."""
        embeddings = inputs.at_locations(self._embed)
        errors = inputs.at_locations(lambda x: self._error(x, self._embed(x))[..., None])
        anchors = self._embed(reference.pooled)
        return tuple(
            grid.to_map(_distance(embedding, anchor) + error[..., 0])
            for grid, embedding, anchor, error in zip(
                inputs.grids, embeddings, anchors, errors, strict=True
            )
        )


def _standard(features: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
    """The features at a root mean square of 1, so that nothing overflows when it is squared."""
    largest = jnp.abs(features).max(-1, keepdims=True)
    scaled = features / jnp.maximum(largest, 1e-12)
    return scaled * jax.lax.rsqrt(jnp.square(scaled).mean(-1, keepdims=True) + 1e-12)


def _distance(a: Float[Array, "*n h"], b: Float[Array, "*#n h"]) -> Float[Array, "*n"]:
    return jnp.square(a - b).mean(-1)
