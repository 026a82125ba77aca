"""Pytrees of arrays, to host memory and back, bit for bit."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

PyTree = Any


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def to_host(leaf: Any) -> np.ndarray:
    """A copy of its own in host memory: the caller may donate the original right after."""
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.array(leaf)


def host_shape(leaf: Any) -> Any:
    """Shape and dtype of the leaf as ``to_host`` saves it."""
    if _is_key(leaf):
        return jax.eval_shape(jax.random.key_data, leaf)
    return leaf if hasattr(leaf, "shape") else np.array(leaf)


def from_host(value: np.ndarray, like: Any) -> Any:
    """The saved value as the type, and on the devices, of ``like``."""
    if isinstance(like, bool | int | float | complex):
        return type(like)(value.item())
    if isinstance(like, np.ndarray | np.generic):
        return like.dtype.type(value) if isinstance(like, np.generic) else value
    # A copy, as the array may be donated and numpy would keep the memory.
    array = jnp.array(value)
    if _is_key(like):
        array = jax.random.wrap_key_data(array, impl=_key_impl(like))
    sharding = getattr(like, "sharding", None)
    if sharding is not None and len(sharding.device_set) > 1:
        array = jax.device_put(array, sharding)
    return array


def _key_impl(like: Any) -> Any:
    """The generator of a PRNG key; inside a trace, as an abstract key does not tell it itself."""
    found = []

    def look(key: jax.Array) -> jax.Array:
        found.append(jax.random.key_impl(key))
        return key

    jax.eval_shape(look, like)
    return found[0]


def flat_host(state: PyTree) -> dict[str, np.ndarray]:
    """Every leaf by its path, as ``to_host`` gives it."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): to_host(leaf) for path, leaf in leaves}


def digest(tree: PyTree) -> str:
    """SHA-256 of the names, shapes, dtypes and bits of a pytree of numpy arrays."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        sha.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
        sha.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return sha.hexdigest()
