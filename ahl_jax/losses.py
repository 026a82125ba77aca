"""The deviation loss: scores of normals stay at a Gaussian prior's mean, anomalies move away."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
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
