"""Building blocks that base detectors share."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def top_mean(values: Float[Array, "*b l"], fraction: float) -> Float[Array, "*b"]:
    """Mean of the largest ``fraction`` of the locations, at least one."""
    k = max(1, math.floor(values.shape[-1] * fraction))
    return jax.lax.top_k(values, k)[0].mean(axis=-1)


class WeightedBatchNorm(nnx.Module):
    """Batch normalisation over images and patches, each image counted ``weights`` times.

    A balanced batch repeats its few anomalies. Computing each once and weighting its moments gives
    what the repeated batch would give. The running moments are biased, as Flax's own are.
    """

    def __init__(self, features: int, momentum: float = 0.9, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(features))
        self.shift = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))
        self.momentum = momentum
        self.epsilon = epsilon

    def __call__(
        self,
        x: Float[Array, "b p c"],
        weights: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b p c"]:
        """Normalise with the batch's moments if ``weights`` are given, else the running ones."""
        if weights is None:
            mean, var = self.mean[...], self.var[...]
        else:
            share = weights / (weights.sum() * x.shape[1])
            mean = jnp.einsum("b,bpc->c", share, x)
            var = jnp.einsum("b,bpc->c", share, jnp.square(x - mean))
            keep = self.momentum
            self.mean[...] = keep * self.mean[...] + (1 - keep) * mean
            self.var[...] = keep * self.var[...] + (1 - keep) * var
        gain = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return (x - mean) * gain + self.shift[...]
