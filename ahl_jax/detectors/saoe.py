"""SAOE: a classifier with synthetic anomalies and outlier exposure."""

import optax
from jaxtyping import Array, Float, Int

from ahl_jax.detectors.classifier import Classifier
from ahl_jax.detectors.losses import Prior, weighted_mean
from ahl_jax.detectors.protocol import NORMAL


class SAOE(Classifier):
    """Normals against labelled and pseudo-anomalies with cross-entropy.

    A competitor in open-set supervised anomaly detection (Ding, Pang and Shen, CVPR 2022), which
    joins synthetic anomalies to outlier exposure (Hendrycks et al., ICLR 2019). Outlier exposure
    takes outliers from other data sets. There is no such data here, so the pseudo-anomalies play
    both parts: synthetic anomalies, and the outliers that the classifier is exposed to.
    """

    def losses(
        self,
        head_scores: Float[Array, "b 1"],
        labels: Int[Array, " b"],
        weights: Float[Array, " b"],
        prior: Prior,
    ) -> Float[Array, " 1"]:
        """The weighted mean cross-entropy of all images."""
        del prior
        logits = head_scores[:, 0]
        targets = (labels != NORMAL).astype(logits.dtype)
        return weighted_mean(optax.sigmoid_binary_cross_entropy(logits, targets), weights)[None]
