"""Turns a torch state dict into a trunk's parameters."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Float, PyTree

from ahl_jax.backbones.layers import Depthwise, Layer, Pointwise


class Unfolded(NamedTuple):
    """A trunk whose batch norms are apart from its kernels, as nested dicts of arrays."""

    params: PyTree
    """Kernel of each layer, and its batch norm's scale and shift."""

    stats: PyTree
    """Its batch norm's running mean and variance."""


class _Source(NamedTuple):
    """The arrays of one layer in a state dict, float64."""

    kernel: Float[np.ndarray, "*k o"]
    scale: Float[np.ndarray, " o"]
    shift: Float[np.ndarray, " o"]
    mean: Float[np.ndarray, " o"]
    var: Float[np.ndarray, " o"]


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
    for path, layer in layers(module):
        folded = _folded(_read(layer, tensors), epsilon)
        if not all(np.isfinite(value).all() for value in folded.values()):
            convolution, norm = layer.source
            raise ValueError(f"{convolution} or {norm} has values that are not finite numbers")
        _at(params, path).update(folded)
        used.update(names(layer))
    for key in tensors:
        # Counters that torch keeps for training.
        if (
            key not in used
            and not key.startswith(unused)
            and not key.endswith("num_batches_tracked")
        ):
            raise ValueError(f"it has {key[:80]!r}, which is not part of this network")
    return params


def unfolded(module: nnx.Module, tensors: Mapping[str, np.ndarray]) -> Unfolded:
    """The same state dict with its batch norms apart; float32 NumPy arrays.

    Args:
        module: the trunk; only its structure is used.
        tensors: a state dict that ``fold_batch_norm`` accepts.
    """
    found = Unfolded({}, {})
    for path, layer in layers(module):
        source = _Source(*(value.astype(np.float32) for value in _read(layer, tensors)))
        norm = {"scale": source.scale, "shift": source.shift}
        _at(found.params, path).update(kernel=source.kernel, norm=norm)
        _at(found.stats, path).update(norm={"mean": source.mean, "var": source.var})
    return found


def fold(trunk: Unfolded, epsilon: float) -> PyTree:
    """Folds the running moments of a trunk into its kernels; as ``fold_batch_norm``."""
    params, stats = trunk
    if "kernel" in params:
        parts = [params["kernel"], *params["norm"].values(), *stats["norm"].values()]
        of = ["kernel", *params["norm"], *stats["norm"]]
        double = (np.asarray(part, np.float64) for part in parts)
        return _folded(_Source(**dict(zip(of, double, strict=True))), epsilon)
    return {name: fold(Unfolded(params[name], stats[name]), epsilon) for name in params}


def layers(module: nnx.Module) -> Iterator[tuple[tuple[str, ...], Layer]]:
    """The layers of a trunk, and where they are in its parameters."""
    for path, layer in list(nnx.iter_modules(module)):
        if isinstance(layer, Layer):
            yield tuple(map(str, path)), layer


def names(layer: Layer) -> list[str]:
    """The names of the layer's tensors in a torch state dict, in the order of ``_Source``."""
    convolution, norm = layer.source
    parts = ("weight", "bias", "running_mean", "running_var")
    return [f"{convolution}.weight", *(f"{norm}.{part}" for part in parts)]


def _read(layer: Layer, tensors: Mapping[str, np.ndarray]) -> _Source:
    values: list[np.ndarray] = []
    for key in names(layer):
        shape = layer.torch_shape[: 1 if values else None]
        if key not in tensors:
            raise ValueError(f"it lacks {key}")
        if tensors[key].shape != shape:
            raise ValueError(f"{key} has shape {tensors[key].shape} where {shape} is needed")
        values.append(tensors[key].astype(np.float64))
    return _Source(_layout(layer, values[0]), *values[1:])


def _folded(source: _Source, epsilon: float) -> dict[str, Float[np.ndarray, "..."]]:
    with np.errstate(all="ignore"):  # Bad values are for the caller to find.
        gain = source.scale / np.sqrt(source.var + epsilon)
        folded = {"kernel": source.kernel * gain, "bias": source.shift - source.mean * gain}
        return {name: value.astype(np.float32) for name, value in folded.items()}


def _at(tree: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The dict at a path, made where it is missing."""
    for name in path:
        tree = tree.setdefault(name, {})
    return tree


def _layout(layer: Layer, kernel: np.ndarray) -> np.ndarray:
    """From torch's [out, in / groups, height, width] to the layer's own layout."""
    if isinstance(layer, Depthwise):
        return kernel[:, 0].transpose(1, 2, 0)
    if isinstance(layer, Pointwise):
        return kernel[:, :, 0, 0].T
    return kernel.transpose(2, 3, 1, 0)
