"""Turns a torch state dict into a trunk's parameters."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import PyTree

from ahl_jax.backbones.layers import Depthwise, Layer, Pointwise


def fold_batch_norm(
    module: nnx.Module,
    tensors: Mapping[str, np.ndarray],
    epsilon: float,
    unused: tuple[str, ...],
) -> PyTree:
    """Folds each convolution's inference batch norm into its kernel and a bias.

    Args:
        module: the trunk; only its structure is used.
        tensors: the torch state dict.
        epsilon: what the batch norm adds to the variance.
        unused: prefixes of names that the trunk has no use for.

    Returns:
        Nested dict of float32 NumPy arrays with the structure of the module's parameters.

    Raises:
        ValueError: naming the first tensor that is missing, of another shape, not finite or not
            expected.
    """
    params: dict[str, Any] = {}
    used: set[str] = set()

    def take(key: str, shape: tuple[int, ...]) -> np.ndarray:
        if key not in tensors:
            raise ValueError(f"it lacks {key}")
        tensor = tensors[key]
        if tensor.shape != shape:
            raise ValueError(f"{key} has shape {tensor.shape} where {shape} is needed")
        used.add(key)
        return tensor.astype(np.float64)

    for path, layer in nnx.iter_modules(module):
        if not isinstance(layer, Layer):
            continue
        convolution, norm = layer.source
        kernel = take(f"{convolution}.weight", layer.torch_shape)
        scale, shift, mean, variance = (
            take(f"{norm}.{part}", layer.torch_shape[:1])
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        with np.errstate(all="ignore"):  # bad values are reported below
            scale = scale / np.sqrt(variance + epsilon)
            folded = {
                "kernel": _layout(layer, kernel * scale[:, None, None, None]),
                "bias": shift - mean * scale,
            }
            folded = {key: value.astype(np.float32) for key, value in folded.items()}
        if not all(np.isfinite(value).all() for value in folded.values()):
            raise ValueError(f"{convolution} or {norm} has values that are not finite numbers")
        node = params
        for name in path:
            node = node.setdefault(str(name), {})
        node.update(folded)

    for key in tensors:
        # Counters that torch keeps for training.
        if (
            key not in used
            and not key.startswith(unused)
            and not key.endswith("num_batches_tracked")
        ):
            raise ValueError(f"it has {key[:80]!r}, which is not part of this network")
    return params


def _layout(layer: Layer, kernel: np.ndarray) -> np.ndarray:
    """From torch's [out, in / groups, height, width] to the layer's own layout."""
    if isinstance(layer, Depthwise):
        return kernel[:, 0].transpose(1, 2, 0)
    if isinstance(layer, Pointwise):
        return kernel[:, :, 0, 0].T
    return kernel.transpose(2, 3, 1, 0)
