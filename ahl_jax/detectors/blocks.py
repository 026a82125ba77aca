"""A function of many rows, some at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def in_blocks(function: Callable[[Array], Any], rows: Array, size: int) -> Any:
    """``function`` of n rows, with nothing beside them but what it gives and one block's work.

    Args:
        function: of some of the rows; gives arrays with a row for each.
        rows: [n, ...], in one program.
        size: of a block.
    """
    n, size = len(rows), max(1, min(size, len(rows)))

    def block(k: Array, found: Any) -> Any:
        # JAX moves the last block back until it fits, so some of its rows are computed twice.
        few = function(jax.lax.dynamic_slice_in_dim(rows, k * size, size))
        return jax.tree.map(
            lambda x, of_few: jax.lax.dynamic_update_slice_in_dim(x, of_few, k * size, 0),
            found, few,
        )  # fmt: skip

    shapes = jax.eval_shape(function, jax.ShapeDtypeStruct((size, *rows.shape[1:]), rows.dtype))
    found = jax.tree.map(lambda x: jnp.empty((n, *x.shape[1:]), x.dtype), shapes)
    return jax.lax.fori_loop(0, -(-n // size), block, found) if n else found
