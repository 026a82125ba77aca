"""Building blocks that base detectors share."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def top_mean(values: Float[Array, "*b l"], fraction: float) -> Float[Array, "*b"]:
    """Mean of the largest ``fraction`` of the locations, at least one."""
    return _top(values, fraction)[0].mean(axis=-1)


def _top(values: Float[Array, "*b l"], fraction: float) -> tuple[Array, Array]:
    """The largest ``fraction`` of the values, at least one, and where they are."""
    return jax.lax.top_k(values, max(1, math.floor(values.shape[-1] * fraction)))


_FEW = 64
"""Outputs up to which the features are the wider operand by far."""


@jax.custom_vjp
def feature_product(x: Float[Array, "*n k"], kernel: Float[Array, "k c"]) -> Float[Array, "*n c"]:
    """``x @ kernel``, with a gradient for the kernel that reads the features as they lie.

    The products are of the features' dtype, forward and backward, and add up in the kernel's.
    """
    product = jnp.matmul(_rows(x), kernel.astype(x.dtype), preferred_element_type=kernel.dtype)
    return product.reshape(*x.shape[:-1], kernel.shape[1])


def _rows(x: Float[Array, "*n k"]) -> Float[Array, "m k"]:
    """One row axis: XLA transposes, hence copies, the operands of products over several axes."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return feature_product(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows, slopes = _rows(x), _rows(slope).astype(x.dtype)
    if slopes.shape[1] >= _FEW:
        product = jnp.matmul(rows.T, slopes, preferred_element_type=kernel.dtype)
    else:
        # With the features on the right they are read as they lie, which is 7 times as fast on a
        # CPU. The barrier keeps XLA from swapping them back.
        turned = jnp.matmul(slopes.T, rows, preferred_element_type=kernel.dtype)
        product = jax.lax.optimization_barrier(turned).T
    # Where the features are frozen nobody reads this one, and the compiler leaves it out.
    towards = jnp.matmul(slopes, kernel.T.astype(x.dtype), preferred_element_type=kernel.dtype)
    return towards.reshape(x.shape).astype(x.dtype), product


feature_product.defvjp(_forward, _backward)


def top_mean_of(
    score: Callable[[Float[Array, "b l c"]], Float[Array, "b l"]],
    features: Float[Array, "b l c"],
    fraction: float,
) -> Float[Array, " b"]:
    """``top_mean(score(features), fraction)``, with a gradient that is computed for those alone."""
    index = _top(jax.lax.stop_gradient(score(features)), fraction)[1]
    return score(jnp.take_along_axis(features, index[..., None], axis=1)).mean(1)


class FeatureLinear(nnx.Linear):
    """A linear layer on features; see ``feature_product``."""

    def __call__(
        self, inputs: Float[Array, "*n k"], out_sharding: None = None
    ) -> Float[Array, "*n c"]:
        """``inputs @ kernel + bias``, in the kernel's dtype."""
        del out_sharding
        product = feature_product(inputs, self.kernel[...])
        return product if self.bias is None else product + self.bias[...]
