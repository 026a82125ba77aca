"""Turns a torch state dict into a trunk's parameters."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Float, PyTree

from ahl_jax.backbones.layers import Depthwise, Layer, Linear, Pointwise, Tensor


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
    epsilon: float | None,
    unused: tuple[str, ...],
) -> PyTree:
    """Folds each convolution's inference batch norm into its kernel and a bias.

    Args:
        module: the trunk; only its structure is used.
        tensors: the torch state dict.
        epsilon: what the batch norm adds to the variance, where there is one.
        unused: prefixes of names that the trunk has no use for.

    Returns:
        Nested dict of float32 NumPy arrays with the structure of the module's parameters.

    Raises:
        ValueError: naming the first tensor that is missing, of another shape, not finite or not
            expected.
    """
    params: dict[str, Any] = {}
    used: set[str] = set()
    for path, part in parts(module):
        found = _arrays(part, tensors, epsilon)
        if not all(np.isfinite(value).all() for value in found.values()):
            named = dict.fromkeys(name.rsplit(".", 1)[0] for name in part.tensors)
            raise ValueError(f"{' or '.join(named)} has values that are not finite numbers")
        _at(params, path).update(found)
        used.update(part.tensors)
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
        tensors: a state dict that ``fold_batch_norm`` accepts; every layer has a batch norm.
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
        arrays = [params["kernel"], *params["norm"].values(), *stats["norm"].values()]
        of = ["kernel", *params["norm"], *stats["norm"]]
        double = (np.asarray(part, np.float64) for part in arrays)
        return _folded(_Source(**dict(zip(of, double, strict=True))), epsilon)
    return {name: fold(Unfolded(params[name], stats[name]), epsilon) for name in params}


def layers(module: nnx.Module) -> Iterator[tuple[tuple[str, ...], Layer]]:
    """The layers of a trunk, and where they are in its parameters."""
    for path, part in parts(module):
        if isinstance(part, Layer):
            yield path, part


def parts(module: nnx.Module) -> Iterator[tuple[tuple[str, ...], Layer | Tensor]]:
    """All that takes numbers from a state dict, and where they go in the trunk's parameters."""
    for path, part in list(nnx.iter_modules(module)):
        if isinstance(part, Layer | Tensor):
            yield tuple(map(str, path)), part


def _read(part: Layer | Tensor, tensors: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Its tensors in their order, float64; a kernel in the layer's own layout."""
    values: list[np.ndarray] = []
    for key, shape in part.tensors.items():
        if key not in tensors:
            raise ValueError(f"it lacks {key}")
        if tensors[key].shape != shape:
            raise ValueError(f"{key} has shape {tensors[key].shape} where {shape} is needed")
        values.append(tensors[key].astype(np.float64))
    return [_layout(part, values[0]), *values[1:]]


def _arrays(
    part: Layer | Tensor, tensors: Mapping[str, np.ndarray], epsilon: float | None
) -> dict[str, Float[np.ndarray, "..."]]:
    """Its parameters by name, float32."""
    values = _read(part, tensors)
    if epsilon is not None and isinstance(part, Layer) and part.source[1]:
        return _folded(_Source(*values), epsilon)
    names = ("kernel", "bias") if isinstance(part, Layer) else ("tensor",)
    with np.errstate(all="ignore"):
        return {n: value.astype(np.float32) for n, value in zip(names, values, strict=True)}


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


def _layout(part: Layer | Tensor, kernel: np.ndarray) -> np.ndarray:
    """From torch's [out, in / groups, height, width] to the layer's own layout."""
    if isinstance(part, Tensor):
        return kernel
    if isinstance(part, Depthwise):
        return kernel[:, 0].transpose(1, 2, 0)
    if isinstance(part, Linear):
        return kernel.T
    if isinstance(part, Pointwise):
        return kernel[:, :, 0, 0].T
    return kernel.transpose(2, 3, 1, 0)
