"""Ridge regression of labels on features, and of every image by the others, in closed form."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_PENALTY = 3.0
"""The penalty in shares of an image in the total variance, as left-out training images chose."""

_TINY = 1e-9
"""Least penalty, where all images are the same."""


class Ridge(NamedTuple):
    """A score that is linear in the features: near 0 for normals, near 1 for anomalies."""

    direction: Float[Array, " d"]
    """Score = z @ direction, up to a constant."""

    of_normals: Float[Array, " n"]
    """Scores of the normals."""

    unseen: Float[Array, " n"]
    """Those of the normals by fits without them."""

    without: Float[Array, "n m"]
    """Those by fits without the normal and without an anomaly."""

    own: Float[Array, " m"]
    """Scores of the anomalies by fits without them."""


# As an accelerator rounds by default, the covariance of many images may not be positive definite.
@jax.default_matmul_precision("highest")
def fit_ridge(
    normals: Float[Array, "n d"],
    anomalies: Float[Array, "m d"],
    pseudo: Float[Array, "p d"],
    colouring: Float[Array, "d d"],
) -> Ridge:
    """Fit ``w`` to the labels, 0 and 1, by weighted least squares with a penalty on its length.

    Normals weigh as much as all others together; labelled and pseudo-anomalies, where there are
    both, as much as each other. ``w`` is of the coloured features x = C^T z: with S their weighted
    covariance over N images, (S + 3 tr(S) / N) w = cov(x, label). An image's leverage h tells the
    fit without it (Cook and Weisberg, 1982): its residual is 1 / (1 - h) times as large, and those
    of two images solve two such equations.

    Args:
        normals: z of n normals, at least one.
        anomalies: z of m labelled anomalies.
        pseudo: z of p pseudo-anomalies.
        colouring: C.
    """
    n, m, p = len(normals), len(anomalies), len(pseudo)
    if not m + p:
        nothing = jnp.zeros(n, normals.dtype)
        return Ridge(jnp.zeros(normals.shape[1]), nothing, nothing, jnp.zeros((n, 0)), nothing[:0])
    kinds, positive = (m > 0) + (p > 0), 1 / 2
    w_normal, w_anomaly = (1 - positive) / n, positive / max(kinds * m, 1)
    weighted = (normals, w_normal), (anomalies, w_anomaly), (pseudo, positive / max(kinds * p, 1))
    mean = jnp.stack([weight * z.sum(0) for z, weight in weighted]).sum(0)
    products = jnp.stack([weight * (z.T @ z) for z, weight in weighted]).sum(0)
    scatter = products - jnp.outer(mean, mean)
    coloured = colouring.T @ scatter @ colouring
    penalty = jnp.maximum(_PENALTY * jnp.trace(coloured) / (n + m + p), _TINY)
    factor = jax.scipy.linalg.cho_factor(coloured + penalty * jnp.eye(len(coloured)))
    solved = colouring @ jax.scipy.linalg.cho_solve(factor, colouring.T)
    # The covariance of z with the label, which is 1 for anomalies of both kinds: the rest of the
    # sum over all images is that over the normals, with the other sign.
    direction = solved @ (w_normal * (n * mean - normals.sum(0)))
    towards = solved @ (anomalies - mean).T
    scores, own = (x @ direction - mean @ direction + positive for x in (normals, anomalies))
    pairs = 1 + normals @ towards - mean @ towards
    own_pairs = 1 + jnp.sum((anomalies - mean) * towards.T, axis=1)
    own_mean = solved @ mean
    lengths = jnp.sum((normals @ solved) * normals, axis=1)
    leverage = w_normal * (1 + lengths - 2 * normals @ own_mean + mean @ own_mean)
    own_leverage = w_anomaly * own_pairs
    residual, own_residual = -scores, 1 - own
    determinant = (1 - leverage)[:, None] * (1 - own_leverage)
    determinant -= w_normal * w_anomaly * jnp.square(pairs)
    without = (1 - own_leverage) * residual[:, None] + w_anomaly * pairs * own_residual
    without, own = -without / determinant, 1 - own_residual / (1 - own_leverage)
    if m + p == 1:
        # Without the only anomaly all labels are 0, and rounding alone would be left.
        without, own = jnp.zeros_like(without), jnp.zeros_like(own)
    return Ridge(direction, scores, -residual / (1 - leverage), without, own)
