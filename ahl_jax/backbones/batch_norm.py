"""Batch normalisation by the moments of weighted images."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class WeightedBatchNorm(nnx.Module):
    """Batch normalisation over images and patches, each image counted ``weights`` times.

    A balanced batch repeats its few anomalies. Computing each once and weighting its moments gives
    what the repeated batch would give; an image of no weight is padding.

    Args:
        features: channels.
        momentum: what a batch leaves of the running moments.
        epsilon: what is added to the variance.
        unbiased: whether the running variance takes the unbiased one, as in PyTorch; by default
            the biased one, as in Flax. A batch itself is divided by the biased one in both.
    """

    def __init__(
        self, features: int, momentum: float = 0.9, epsilon: float = 1e-5, unbiased: bool = False
    ):
        self.scale = nnx.Param(jnp.ones(features))
        self.shift = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))
        self.momentum = momentum
        self.epsilon = epsilon
        self.unbiased = unbiased

    def __call__(
        self,
        x: Float[Array, "b p c"],
        weights: Float[Array, " b"] | None = None,
    ) -> Callable[[Float[Array, "*n c"]], Float[Array, "*n c"]]:
        """The normalisation by the moments of ``x`` if ``weights`` are given, else the running."""
        if weights is None:
            mean, var = self.mean[...], self.var[...]
        else:
            count = weights.sum() * x.shape[1]
            share = weights / count
            mean = jnp.einsum("b,bpc->c", share, x)
            var = jnp.einsum("b,bpc->c", share, jnp.square(x - mean))
            keep = self.momentum
            spread = var * count / (count - 1) if self.unbiased else var
            self.mean[...] = keep * self.mean[...] + (1 - keep) * mean
            self.var[...] = keep * self.var[...] + (1 - keep) * spread
        gain = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return lambda y: (y - mean) * gain + self.shift[...]
