"""FLOS: a classifier trained with the focal loss on the imbalanced set."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ahl_jax.detectors.classifier import Classifier
from ahl_jax.detectors.losses import Prior, focal_loss, weighted_mean
from ahl_jax.detectors.protocol import ANOMALY, NORMAL


class FLOS(Classifier):
    """Normals against labelled anomalies with the focal loss (Lin et al., ICCV 2017).

    It learns nothing from pseudo-anomalies. gamma is 2 as published; alpha is the inverse class
    frequency, because a fixed one would depend on how batches are balanced.
    """

    def losses(
        self,
        head_scores: Float[Array, "b 1"],
        labels: Int[Array, " b"],
        weights: Float[Array, " b"],
        prior: Prior,
    ) -> Float[Array, " 1"]:
        """The weighted mean focal loss of normals and labelled anomalies."""
        del prior
        normals, anomalies = (jnp.where(labels == label, weights, 0) for label in (NORMAL, ANOMALY))
        known = normals + anomalies
        alpha = weighted_mean(jnp.where(labels == NORMAL, 1.0, 0.0), known)
        each = focal_loss(head_scores[:, 0], (labels == ANOMALY).astype(known.dtype), alpha)
        return weighted_mean(each, known)[None]
