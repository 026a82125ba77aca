"""One rule for each primitive of JAX: the nodes that compute it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import lax

from ahl_jax.inference.onnx.graph import Graph, Tensor, UnsupportedError, same_side

Rule = Callable[..., Sequence[Tensor]]
"""Takes the graph, the equation of the jaxpr, and its inputs."""

RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Enters a rule of one output for some primitives."""

    def enter(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
        for name in names:
            RULES[name] = lambda *args: [rule(*args)]
        return rule

    return enter


def _need(condition: bool, eqn: Any, what: str) -> None:
    if not condition:
        raise UnsupportedError(f"the primitive {eqn.primitive.name} {what}")


# Elementwise.

_SAME = {
    "abs": "Abs", "add": "Add", "add_any": "Add", "ceil": "Ceil", "cos": "Cos", "div": "Div",
    "erf": "Erf", "exp": "Exp", "floor": "Floor", "log": "Log", "logistic": "Sigmoid",
    "mul": "Mul", "neg": "Neg", "pow": "Pow", "sign": "Sign",
    "sin": "Sin", "sqrt": "Sqrt", "sub": "Sub", "tanh": "Tanh",
}  # fmt: skip
_COMPARED = {"eq": "Equal", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual",
             "lt": "Less", "lt_to": "Less"}  # fmt: skip
_LOGICAL = {"and": "And", "or": "Or", "xor": "Xor", "not": "Not"}


@_rule("max", "min")
def _bound(graph: Graph, eqn: Any, x: Tensor, y: Tensor) -> Tensor:
    x, y = sorted((x, y), key=lambda t: t.value is not None)
    if y.value is None or y.value.size > 1 or not np.issubdtype(y.dtype, np.floating):
        return graph.node({"max": "Max", "min": "Min"}[eqn.primitive.name], x, y)
    return graph.clip(x, **{{"max": "low", "min": "high"}[eqn.primitive.name]: y.value.item()})


@_rule(*_SAME)
def _same(graph: Graph, eqn: Any, *inputs: Tensor) -> Tensor:
    return graph.node(_SAME[eqn.primitive.name], *inputs)


@_rule(*_COMPARED)
def _compared(graph: Graph, eqn: Any, *inputs: Tensor) -> Tensor:
    return graph.node(_COMPARED[eqn.primitive.name], *inputs, dtype=bool)


@_rule("ne")
def _ne(graph: Graph, eqn: Any, *inputs: Tensor) -> Tensor:
    return graph.node("Not", graph.node("Equal", *inputs, dtype=bool))


@_rule(*_LOGICAL)
def _logical(graph: Graph, eqn: Any, *inputs: Tensor) -> Tensor:
    _need(inputs[0].dtype == bool, eqn, "of integers")
    return graph.node(_LOGICAL[eqn.primitive.name], *inputs)


@_rule("square")
def _square(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    return graph.node("Mul", x, x)


@_rule("integer_pow")
def _integer_pow(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    return graph.node("Pow", x, graph.constant(eqn.params["y"], x.dtype))


@_rule("rsqrt")
def _rsqrt(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    return graph.node("Reciprocal", graph.node("Sqrt", x))


@_rule("erfc")
def _erfc(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    return graph.node("Sub", graph.constant(1, x.dtype), graph.node("Erf", x))


@_rule("log1p")
def _log1p(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    return graph.node("Log", graph.node("Add", x, graph.constant(1, x.dtype)))


@_rule("clamp")
def _clamp(graph: Graph, eqn: Any, low: Tensor, x: Tensor, high: Tensor) -> Tensor:
    return graph.node("Min", graph.node("Max", x, low), high)


@_rule("select_n")
def _select(graph: Graph, eqn: Any, which: Tensor, *cases: Tensor) -> Tensor:
    _need(which.dtype == bool, eqn, "by an integer")
    return graph.node("Where", which, cases[1], cases[0], dtype=cases[0].dtype)


@_rule("convert_element_type")
def _convert(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    return graph.cast(x, eqn.params["new_dtype"])


@_rule("copy", "stop_gradient")
def _identity(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    return x


# Shapes.


@_rule("broadcast_in_dim")
def _broadcast(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    rank = len(eqn.params["shape"])
    kept = eqn.params["broadcast_dimensions"]
    return graph.unsqueeze(x, [axis for axis in range(rank) if axis not in kept])


@_rule("reshape")
def _reshape(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    return graph.reshape(_full(graph, eqn, x), eqn.outvars[0].aval.shape)


@_rule("squeeze")
def _squeeze(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    return graph.squeeze(x, eqn.params["dimensions"])


@_rule("transpose")
def _transpose(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    return graph.transpose(x, eqn.params["permutation"])


@_rule("slice")
def _slice(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    return graph.slice(_full(graph, eqn, x), starts, limits, strides)


@_rule("rev")
def _rev(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    axes = eqn.params["dimensions"]
    ends = [np.iinfo(np.int64).min] * len(axes)
    lists = map(graph.integers, ([-1] * len(axes), ends, axes, [-1] * len(axes)))
    return graph.node("Slice", x, *lists, shape=x.shape)


@_rule("concatenate")
def _concatenate(graph: Graph, eqn: Any, *inputs: Tensor) -> Tensor:
    shape, axis = eqn.outvars[0].aval.shape, eqn.params["dimension"]
    full = [graph.full(x, v.aval.shape) for x, v in zip(inputs, eqn.invars, strict=True)]
    full = [x for x in full if not same_side(x.shape[axis], 0)]
    return full[0] if len(full) == 1 else graph.node("Concat", *full, shape=shape, axis=axis)


@_rule("stack")
def _stack(graph: Graph, eqn: Any, *inputs: Tensor) -> Tensor:
    axis = eqn.params["axis"]
    full = [graph.full(x, v.aval.shape) for x, v in zip(inputs, eqn.invars, strict=True)]
    rows = [graph.unsqueeze(x, [axis]) for x in full]
    return graph.node("Concat", *rows, shape=eqn.outvars[0].aval.shape, axis=axis)


def _split(graph: Graph, eqn: Any, x: Tensor) -> Sequence[Tensor]:
    axis, x = eqn.params["axis"], _full(graph, eqn, x)
    bounds = np.cumsum([0, *eqn.params["sizes"]])
    parts = []
    for start, limit in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        starts, limits = [0] * len(x.shape), list(x.shape)
        starts[axis], limits[axis] = start, limit
        parts.append(graph.slice(x, starts, limits, [1] * len(x.shape)))
    return parts


RULES["split"] = _split


@_rule("pad")
def _pad(graph: Graph, eqn: Any, x: Tensor, value: Tensor) -> Tensor:
    low, high, between = zip(*eqn.params["padding_config"], strict=True)
    _need(not any(between), eqn, "between values")
    return graph.pad(_full(graph, eqn, x), value, low, high)


# Reductions and orders.

_REDUCED = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin",
            "reduce_prod": "ReduceProd"}  # fmt: skip


@_rule(*_REDUCED)
def _reduced(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    axes = graph.integers(eqn.params["axes"])
    op, shape = _REDUCED[eqn.primitive.name], eqn.outvars[0].aval.shape
    return graph.node(op, _full(graph, eqn, x), axes, shape=shape, keepdims=0)


@_rule("argmax", "argmin")
def _extreme(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    _need(len(eqn.params["axes"]) == 1, eqn, "of several axes")
    (axis,), shape = eqn.params["axes"], eqn.outvars[0].aval.shape
    op = {"argmax": "ArgMax", "argmin": "ArgMin"}[eqn.primitive.name]
    x = _full(graph, eqn, x)
    index = graph.node(op, x, shape=shape, dtype=np.int64, axis=axis, keepdims=0)
    return graph.cast(index, eqn.params["index_dtype"])


def _top_k(graph: Graph, eqn: Any, x: Tensor) -> Sequence[Tensor]:
    k, shape = eqn.params["k"], eqn.outvars[0].aval.shape
    values, index = graph.nodes(
        "TopK", _full(graph, eqn, x), graph.integers([k]),
        shapes=[shape, shape], dtypes=[x.dtype, np.int64], axis=eqn.params.get("axis", -1),
    )  # fmt: skip
    return values, graph.cast(index, eqn.outvars[1].aval.dtype)


RULES["top_k"] = _top_k


@_rule("sort")
def _sort(graph: Graph, eqn: Any, *inputs: Tensor) -> Tensor:
    _need(len(inputs) == 1, eqn, "of several arrays")
    (x,), axis = inputs, eqn.params["dimension"]
    x = _full(graph, eqn, x)
    return graph.nodes(
        "TopK", x, graph.integers([x.shape[axis]]), shapes=[x.shape, x.shape],
        dtypes=[x.dtype, np.int64], axis=axis, largest=0,
    )[0]  # fmt: skip


@_rule("cumsum")
def _cumsum(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    axis = graph.constant(eqn.params["axis"], np.int64)
    return graph.node("CumSum", _full(graph, eqn, x), axis, reverse=int(eqn.params["reverse"]))


@_rule("iota")
def _iota(graph: Graph, eqn: Any) -> Tensor:
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    _need(isinstance(shape[axis], int), eqn, "over images")
    count = graph.constant(np.arange(shape[axis]), eqn.params["dtype"])
    return graph.unsqueeze(count, [i for i in range(len(shape)) if i != axis])


# Products.


@_rule("dot_general")
def _dot(graph: Graph, eqn: Any, x: Tensor, y: Tensor) -> Tensor:
    (x_summed, y_summed), (x_batch, y_batch) = eqn.params["dimension_numbers"]
    x, y = (graph.full(t, v.aval.shape) for t, v in zip((x, y), eqn.invars, strict=True))
    shape = eqn.outvars[0].aval.shape
    dtype = eqn.outvars[0].aval.dtype
    x, y = graph.cast(x, dtype), graph.cast(y, dtype)
    if not x_batch and len(x_summed) == 1 and len(y.shape) == 2:
        x = _axes_last(graph, x, x_summed)
        y = _axes_last(graph, y, [axis for axis in (0, 1) if axis not in y_summed])
        if len(x.shape) == 4 and y.value is not None:
            return _pointwise(graph, x, y)
        return graph.node("MatMul", x, y, shape=shape)
    x_free = [i for i in range(len(x.shape)) if i not in {*x_summed, *x_batch}]
    y_free = [i for i in range(len(y.shape)) if i not in {*y_summed, *y_batch}]
    batch = [x.shape[i] for i in x_batch]
    left = graph.transpose(x, [*x_batch, *x_free, *x_summed])
    right = graph.transpose(y, [*y_batch, *y_summed, *y_free])
    rows, columns = _product(x.shape, x_free), _product(y.shape, y_free)
    summed = _product(x.shape, x_summed)
    left = graph.reshape(left, (*batch, rows, summed))
    right = graph.reshape(right, (*batch, summed, columns))
    found = graph.node("MatMul", left, right, shape=(*batch, rows, columns))
    return graph.reshape(found, shape)


def _pointwise(graph: Graph, x: Tensor, kernel: Tensor) -> Tensor:
    """Maps times a matrix, as a convolution: those around it are, in the same layout."""
    rows = graph.transpose(x, (0, 3, 1, 2))
    weights = graph.unsqueeze(graph.transpose(kernel, (1, 0)), (2, 3))
    shape = (x.shape[0], kernel.shape[1], *x.shape[1:3])
    return graph.transpose(graph.node("Conv", rows, weights, shape=shape), (0, 2, 3, 1))


@_rule("conv_general_dilated")
def _conv(graph: Graph, eqn: Any, x: Tensor, kernel: Tensor) -> Tensor:
    numbers: lax.ConvDimensionNumbers = eqn.params["dimension_numbers"]
    _need(set(eqn.params["lhs_dilation"]) == {1}, eqn, "of a dilated array")
    _need(eqn.params["batch_group_count"] == 1, eqn, "with groups of the batch")
    dtype = eqn.outvars[0].aval.dtype
    x = graph.cast(_full(graph, eqn, x), dtype)
    kernel = graph.cast(graph.full(kernel, eqn.invars[1].aval.shape), dtype)
    low, high = zip(*eqn.params["padding"], strict=True)
    back = np.argsort(numbers.out_spec).tolist()
    product = graph.node(
        "Conv",
        graph.transpose(x, numbers.lhs_spec),
        graph.transpose(kernel, numbers.rhs_spec),
        shape=tuple(eqn.outvars[0].aval.shape[i] for i in numbers.out_spec),
        strides=list(eqn.params["window_strides"]),
        dilations=list(eqn.params["rhs_dilation"]),
        pads=[*low, *high],
        group=eqn.params["feature_group_count"],
    )
    return graph.transpose(product, back)


@_rule("reduce_window_max")
def _max_pool(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    params, rank = eqn.params, len(x.shape)
    windows, strides = params["window_dimensions"], params["window_strides"]
    inner = [
        i for i in range(rank) if (windows[i], strides[i], *params["padding"][i]) != (1, 1, 0, 0)
    ]
    outer = [i for i in range(rank) if i not in inner]
    dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
    _need(len(outer) == 2 and not dilated, eqn, "over these windows")
    low, high = zip(*(params["padding"][i] for i in inner), strict=True)
    order = [*outer, *inner]
    pooled = graph.node(
        "MaxPool", graph.transpose(_full(graph, eqn, x), order),
        shape=tuple(eqn.outvars[0].aval.shape[i] for i in order),
        kernel_shape=[windows[i] for i in inner],
        strides=[strides[i] for i in inner],
        pads=[*low, *high],
    )  # fmt: skip
    return graph.transpose(pooled, np.argsort(order).tolist())


# Indices.


@_rule("gather")
def _gather(graph: Graph, eqn: Any, x: Tensor, index: Tensor) -> Tensor:
    numbers: lax.GatherDimensionNumbers = eqn.params["dimension_numbers"]
    sizes = eqn.params["slice_sizes"]
    x, index = (graph.full(t, v.aval.shape) for t, v in zip((x, index), eqn.invars, strict=True))
    of_images = [i for i in numbers.start_index_map if not isinstance(x.shape[i], int)]
    _need(not of_images, eqn, "of single images")
    if index.value is not None and index.value.ndim == 1:
        return _window(graph, eqn, x, index.value)
    x_axes, last = range(len(x.shape)), len(index.shape) - 1
    x_batch, index_batch = numbers.operand_batching_dims, numbers.start_indices_batching_dims
    picked = numbers.start_index_map
    whole = [i for i in x_axes if i not in {*picked, *x_batch}]
    _need(all(sizes[i] == 1 for i in picked), eqn, "of more than one value of an axis")
    _need(all(same_side(sizes[i], x.shape[i]) for i in whole), eqn, "of a part of an axis")
    index = graph.cast(index, np.int64)
    highest = graph.integers([x.shape[i] - 1 for i in picked])
    inside = graph.node("Min", graph.node("Max", index, graph.integers([0])), highest)

    # Which axis of the index (i) or of x (x) each axis of an array is.
    others = [("i", i) for i in range(last) if i not in index_batch]
    counts = tuple(index.shape[i] for _, i in others)
    if len(picked) == 1 and not x_batch:
        axis = picked[0]
        flat = graph.squeeze(inside, [last])
        shape = (*x.shape[:axis], *counts, *x.shape[axis + 1 :])
        found = graph.node("Gather", x, flat, shape=shape, axis=axis)
        has = [("x", i) for i in x_axes[:axis]] + others + [("x", i) for i in x_axes[axis + 1 :]]
    else:
        rows = graph.transpose(inside, [*index_batch, *(i for _, i in others), last])
        shape = (*(x.shape[i] for i in x_batch), *counts, *(x.shape[i] for i in whole))
        ordered = graph.transpose(x, [*x_batch, *picked, *whole])
        found = graph.node("GatherND", ordered, rows, shape=shape, batch_dims=len(x_batch))
        has = [("i", i) for i in index_batch] + others + [("x", i) for i in whole]

    dropped = {*numbers.collapsed_slice_dims, *x_batch}
    kept = iter([("x", i) for i in x_axes if i not in dropped])
    of_index = iter([("i", i) for i in range(last)])
    rank = len(eqn.outvars[0].aval.shape)
    wanted = [next(kept if i in numbers.offset_dims else of_index) for i in range(rank)]
    found = graph.transpose(found, [has.index(axis) for axis in wanted if axis in has])
    found = graph.unsqueeze(found, [i for i, axis in enumerate(wanted) if axis not in has])
    if eqn.params["mode"] != lax.GatherScatterMode.FILL_OR_DROP:
        return found
    valid = graph.cast(graph.node("Equal", index, inside, dtype=bool), np.int32)
    valid = graph.node(
        "ReduceMin", valid, graph.integers([last]), shape=index.shape[:last], keepdims=0
    )
    if valid.value is not None and valid.value.all():
        return found
    valid = graph.unsqueeze(graph.cast(valid, bool), numbers.offset_dims)
    fill = eqn.params["fill_value"]
    if fill is None:
        fill = np.nan if np.issubdtype(x.dtype, np.floating) else np.iinfo(x.dtype).min
    return graph.node("Where", valid, found, graph.constant(fill, x.dtype), dtype=x.dtype)


def _window(graph: Graph, eqn: Any, x: Tensor, start: np.ndarray) -> Tensor:
    """The one slice at a place that is known."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    starts, limits = [0] * len(x.shape), list(x.shape)
    for axis, first in zip(numbers.start_index_map, start.tolist(), strict=True):
        _need(0 <= first <= x.shape[axis] - sizes[axis], eqn, "of values past the end")
        starts[axis], limits[axis] = first, first + sizes[axis]
    part = graph.slice(x, starts, limits, [1] * len(x.shape))
    return graph.squeeze(part, numbers.collapsed_slice_dims)


def _full(graph: Graph, eqn: Any, x: Tensor) -> Tensor:
    """The first input, with nothing left to broadcast."""
    return graph.full(x, eqn.invars[0].aval.shape)


def _axes_last(graph: Graph, x: Tensor, axes: Sequence[int]) -> Tensor:
    return graph.transpose(x, [*(i for i in range(len(x.shape)) if i not in axes), *axes])


def _product(shape: Sequence[Any], axes: Sequence[int]) -> Any:
    product: Any = 1
    for axis in axes:
        product = product * shape[axis]
    return product
