"""The losses of the base detectors.

The deviation loss keeps the scores of normals at a Gaussian prior's mean and moves anomalies away.
The focal and the triplet loss belong to the methods that AHL is compared with.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

PRIOR_DRAWS = 5000


class Prior(NamedTuple):
    """Mean and standard deviation that scores are measured against (mu_r and sigma_r)."""

    mean: Float[Array, ""]
    std: Float[Array, ""]


def draw_prior(key: Key[Array, ""], draws: int = PRIOR_DRAWS) -> Prior:
    """The prior of the deviation loss: moments of ``draws`` samples from N(0, 1)."""
    samples = jax.random.normal(key, (draws,))
    return Prior(samples.mean(), samples.std())


def deviation(scores: Float[Array, "*n"], prior: Prior) -> Float[Array, "*n"]:
    """dev(x) = (h(x) - mu_r) / sigma_r."""
    return (scores - prior.mean) / prior.std


def deviation_loss(
    scores: Float[Array, "*n"],
    targets: Float[Array, "*n"],
    prior: Prior,
    margin: float = 5.0,
) -> Float[Array, "*n"]:
    """The deviation loss of every score, not reduced.

    l_dev(x, y) = (1 - y) |dev(x)| + y max(0, margin - dev(x)).

    Args:
        scores: raw scores h(x).
        targets: 0 where the score is to stay at the prior's mean, 1 where it is to pass the margin.
        prior: moments that the scores are standardised with.
        margin: m, in standard deviations of the prior.
    """
    dev = deviation(scores, prior)
    return (1 - targets) * jnp.abs(dev) + targets * jax.nn.relu(margin - dev)


def weighted_mean(
    values: Float[Array, "b ..."], weights: Float[Array, "b ..."]
) -> Float[Array, "..."]:
    """Mean over the first axis, each value counted ``weights`` times; 0 where nothing counts."""
    return (weights * values).sum(0) / jnp.maximum(weights.sum(0), 1e-12)


def focal_loss(
    logits: Float[Array, "*n"],
    targets: Float[Array, "*n"],
    alpha: Float[Array, ""] | float,
    gamma: float = 2.0,
) -> Float[Array, "*n"]:
    """The alpha-balanced focal loss of every logit, not reduced (Lin et al., ICCV 2017, Eq. 5).

    FL = -alpha_t (1 - p_t)^gamma log p_t, where p_t is the probability given to the true class, and
    alpha_t is ``alpha`` where the target is 1, 1 - ``alpha`` where it is 0.

    Args:
        logits: log odds of target 1.
        targets: 0 or 1.
        alpha: share of target 1, from 0 to 1.
        gamma: how much easy examples are weighed down; 0 leaves the cross-entropy.
    """
    return optax.losses.sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma)


def triplet_loss(
    distances: Float[Array, " b"],
    positive: Float[Array, " b"],
    negative: Float[Array, " b"],
    margin: float = 1.0,
) -> Float[Array, ""]:
    """Mean of max(0, d_p - d_n + margin) over all pairs of a positive p and a negative n.

    Args:
        distances: from the anchor, which all triplets share.
        positive: how often each image counts as a positive, 0 where it is none.
        negative: how often each counts as a negative.
        margin: by how much a negative is to be farther away than a positive.

    Returns:
        0 where there is no positive or no negative.
    """
    each = jax.nn.relu(distances[:, None] - distances + margin)
    return weighted_mean(each.ravel(), jnp.outer(positive, negative).ravel())
