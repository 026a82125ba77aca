"""Nodes and constants of an ONNX graph, as they are collected."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ahl_jax.common.errors import UserError

_OPSET = 18
_IR_VERSION = 8
"""What ONNX Runtime 1.17 and later read, as tried."""

_ELEMENTWISE = {
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Cos", "Div", "Equal", "Erf", "Exp", "Floor",
    "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Log", "Max", "Min", "Mul", "Neg", "Not",
    "Or", "Pow", "Reciprocal", "Relu", "Sigmoid", "Sign", "Sin", "Sqrt", "Sub", "Tanh", "Where",
    "Xor",
}  # fmt: skip
"""Operators that do not care for the order of axes."""

Shape = tuple[Any, ...]
"""Sides of an array; each an int, or a symbolic dimension of JAX."""

_WIDER = {"uint16": "int64", "uint32": "int64"}
"""Types that runtimes lack arithmetic for, and the ones that hold their values."""


class UnsupportedError(UserError):
    """There is no ONNX for what a function computes."""

    def __init__(self, what: str) -> None:
        super().__init__(f"there is no export to ONNX of {what}; export it for JAX instead")


@dataclass(frozen=True, eq=False)
class Tensor:
    """An array of the graph, or a constant that is not in it yet.

    Attributes:
        shape: its sides. One may be 1 where JAX's array repeats it: ONNX broadcasts as NumPy does,
            so most broadcasts need no node.
        dtype: as the graph has it.
        name: its name in the graph; empty for a constant.
        value: of a constant.
    """

    shape: Shape
    dtype: np.dtype
    name: str = ""
    value: np.ndarray | None = field(default=None, repr=False)


class Graph:
    """A graph in the making.

    Equal nodes are one, nodes of constants are computed at once, and those that no output needs are
    left out.
    """

    def __init__(self) -> None:
        self._inputs: list[Tensor] = []
        self._defaults: list[onnx.TensorProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._made: dict[Any, tuple[Tensor, ...]] = {}
        self._constants: dict[Any, tuple[str, np.ndarray]] = {}
        self._transposed: dict[str, tuple[Tensor, Sequence[int]]] = {}
        self._clipped: dict[str, tuple[Tensor, float, float]] = {}

    def input(
        self, name: str, shape: Shape, dtype: Any, default: np.ndarray | None = None
    ) -> Tensor:
        """An input; one with a default may be left out when the model is run."""
        if default is not None:
            self._defaults.append(numpy_helper.from_array(np.asarray(default, dtype), name))
        self._inputs.append(Tensor(shape, np.dtype(dtype), name))
        return self._inputs[-1]

    def constant(self, value: Any, dtype: Any = None) -> Tensor:
        """A constant, of a type that graphs compute with."""
        array = np.asarray(value, dtype)
        array = array.astype(graph_dtype(array.dtype), copy=False)
        return Tensor(array.shape, array.dtype, value=array)

    def integers(self, values: Sequence[int]) -> Tensor:
        """A list of axes, sides or indices.

        Raises:
            UnsupportedError: if one is symbolic.
        """
        if symbolic := [value for value in values if not isinstance(value, int | np.integer)]:
            raise UnsupportedError(f"an index that is {symbolic[0]}, with n images")
        return self.constant(values, np.int64)

    def node(
        self,
        op: str,
        *inputs: Tensor | None,
        shape: Shape | None = None,
        dtype: Any = None,
        **attributes: Any,
    ) -> Tensor:
        """The output of a node.

        Args:
            op: the ONNX operator.
            inputs: its inputs; None leaves one out.
            shape: of the output; by default what NumPy's broadcasting makes of the inputs'.
            dtype: of the output; by default that of the first input.
            attributes: the operator's.
        """
        return self.nodes(op, *inputs, shapes=[shape], dtypes=[dtype], **attributes)[0]

    def nodes(
        self,
        op: str,
        *inputs: Tensor | None,
        shapes: Sequence[Shape | None],
        dtypes: Sequence[Any],
        **attributes: Any,
    ) -> tuple[Tensor, ...]:
        """As ``node``, of an operator with several outputs."""
        # Expanding a constant would only make the file larger.
        if op != "Expand" and all(t is None or t.value is not None for t in inputs):
            return tuple(map(self.constant, _computed(op, inputs, len(shapes), attributes)))
        if op in _ELEMENTWISE and (perm := self._layout(inputs)):
            back = [self._turned(t, perm) for t in inputs]
            found = self.node(op, *back, dtype=dtypes[0], **attributes)
            return (self.transpose(found, perm),)
        names = ["" if t is None else self._name(t) for t in inputs]
        key = op, tuple(names), tuple(sorted((k, repr(v)) for k, v in attributes.items()))
        if key not in self._made:
            given = [t for t in inputs if t is not None]
            together = broadcast(*(t.shape for t in given))
            self._made[key] = tuple(
                Tensor(
                    together if shape is None else shape,
                    np.dtype(dtype or given[0].dtype),
                    f"t{len(self._made)}_{i}",
                )
                for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
            )
            outputs = [t.name for t in self._made[key]]
            self._nodes.append(helper.make_node(op, names, outputs, **attributes))
        return self._made[key]

    def reshape(self, x: Tensor, shape: Shape) -> Tensor:
        """The same values in another shape, with at most one side that is no number."""
        if x.shape == shape:
            return x
        sides = [side if isinstance(side, int) else -1 for side in shape]
        if sides.count(-1) > 1:
            raise UnsupportedError(f"a reshape to {shape}")
        return self.node("Reshape", x, self.integers(sides), shape=shape)

    def transpose(self, x: Tensor, perm: Sequence[int]) -> Tensor:
        """The axes in another order."""
        x, before = self._source(x)
        perm = [before[i] for i in perm]
        if perm == list(range(len(perm))):
            return x
        found = self.node("Transpose", x, shape=tuple(x.shape[i] for i in perm), perm=perm)
        if found.name:
            self._transposed[found.name] = x, perm
        return found

    def unsqueeze(self, x: Tensor, axes: Sequence[int]) -> Tensor:
        """New axes of side 1, where ``axes`` are in the result."""
        if not axes:
            return x
        left = iter(x.shape)
        rank = len(x.shape) + len(axes)
        shape = tuple(1 if i in axes else next(left) for i in range(rank))
        return self.node("Unsqueeze", x, self.integers(axes), shape=shape)

    def squeeze(self, x: Tensor, axes: Sequence[int]) -> Tensor:
        """Without axes of side 1."""
        if not axes:
            return x
        shape = tuple(side for i, side in enumerate(x.shape) if i not in axes)
        return self.node("Squeeze", x, self.integers(axes), shape=shape)

    def slice(
        self, x: Tensor, starts: Sequence[int], limits: Sequence[Any], strides: Sequence[int]
    ) -> Tensor:
        """Every stride-th value from a start up to a limit, for each axis."""
        axes = [
            i
            for i, side in enumerate(x.shape)
            if (starts[i], strides[i]) != (0, 1) or not same_side(limits[i], side)
        ]
        if not axes:
            return x
        source, perm = self._source(x)
        shape = list(source.shape)
        for i in axes:
            shape[perm[i]] = -(-(limits[i] - starts[i]) // strides[i])
        lists = [[each[i] for i in axes] for each in (starts, limits, perm, strides)]
        part = self.node("Slice", source, *map(self.integers, lists), shape=tuple(shape))
        return self.transpose(part, perm)

    def pad(self, x: Tensor, value: Tensor, low: Sequence[int], high: Sequence[int]) -> Tensor:
        """So many values before and after each axis; fewer of its own where negative."""
        source, perm = self._source(x)
        pads = np.zeros((2, len(low)), int)
        pads[:, list(perm)] = low, high
        sides = zip(source.shape, *pads.tolist(), strict=True)
        shape = tuple(
            side if before == after == 0 else side + before + after for side, before, after in sides
        )
        padded = self.node("Pad", source, self.integers(pads.ravel().tolist()), value, shape=shape)
        return self.transpose(padded, perm)

    def cast(self, x: Tensor, dtype: Any) -> Tensor:
        """Values of another type."""
        dtype = graph_dtype(dtype)
        if x.dtype == dtype:
            return x
        return self.node("Cast", x, dtype=dtype, to=helper.np_dtype_to_tensor_dtype(dtype))

    def clip(self, x: Tensor, low: float = -np.inf, high: float = np.inf) -> Tensor:
        """Values no lower and no higher than two numbers; one after another are one node."""
        source, lowest, highest = self._clipped.get(x.name, (x, -np.inf, np.inf))
        if lowest <= high and low <= highest:
            x, low, high = source, max(low, lowest), min(high, highest)
        if (low, high) == (0, np.inf):
            found = self.node("Relu", x)
        else:
            bounds = [self.constant(v, x.dtype) if np.isfinite(v) else None for v in (low, high)]
            found = self.node("Clip", x, *bounds)
        if found.name:
            self._clipped[found.name] = x, low, high
        return found

    def full(self, x: Tensor, shape: Shape) -> Tensor:
        """The array with the sides that were left at 1 repeated."""
        if all(map(same_side, x.shape, shape)):
            return x
        parts = [
            self.integers([side]) if isinstance(side, int) else self._side(side) for side in shape
        ]
        target = self.node("Concat", *parts, shape=(len(shape),), dtype=np.int64, axis=0)
        return self.node("Expand", x, target, shape=shape)

    def _side(self, side: Any) -> Tensor:
        """The length, int64 [1], of a symbolic side: a multiple of one that an input has."""
        for x in self._inputs:
            for axis, one in enumerate(x.shape):
                times = side // one
                if isinstance(times, int) and same_side(times * one, side):
                    length = self.node(
                        "Shape", x, shape=(1,), dtype=np.int64, start=axis, end=axis + 1
                    )
                    return self.node("Mul", length, self.integers([times]))
        raise UnsupportedError(f"an array with a side of {side}")

    def model(self, outputs: dict[str, Tensor]) -> onnx.ModelProto:
        """The model with these outputs."""
        for name, tensor in outputs.items():
            self._nodes.append(helper.make_node("Identity", [self._name(tensor)], [name]))
        needed, nodes = set(outputs), []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                nodes.append(node)
        initializers = [
            numpy_helper.from_array(array, name)
            for name, array in self._constants.values()
            if name in needed
        ]
        graph = helper.make_graph(
            nodes[::-1],
            "ahl_jax",
            [_info(x.name, x) for x in self._inputs],
            [_info(name, x) for name, x in outputs.items()],
            self._defaults + initializers,
        )
        return helper.make_model(
            graph,
            producer_name="ahl_jax",
            ir_version=_IR_VERSION,
            opset_imports=[helper.make_opsetid("", _OPSET)],
        )

    def _name(self, x: Tensor) -> str:
        if x.name:
            return x.name
        if x.value is None:
            raise UnsupportedError(f"an empty array, {x.shape}")
        digest = hashlib.sha256(x.value.tobytes()).digest()
        key = x.dtype, x.shape, digest
        return self._constants.setdefault(key, (f"c{len(self._constants)}", x.value))[0]

    def _source(self, x: Tensor) -> tuple[Tensor, Sequence[int]]:
        """What ``x`` is a transpose of, and how; itself if of nothing."""
        return self._transposed.get(x.name, (x, range(len(x.shape))))

    def _layout(self, inputs: Sequence[Tensor | None]) -> Sequence[int] | None:
        """How all inputs that are no constants are transposed, if they are alike."""
        perms = [
            self._transposed[t.name][1] if t.name in self._transposed else None
            for t in inputs
            if t is not None and t.value is None and t.shape
        ]
        return perms[0] if perms and all(perm == perms[0] for perm in perms) else None

    def _turned(self, x: Tensor | None, perm: Sequence[int]) -> Tensor | None:
        """What gives ``x`` when it is transposed."""
        if x is None or not x.shape:
            return x
        x = self.reshape(x, (1,) * (len(perm) - len(x.shape)) + x.shape)
        return self.transpose(x, np.argsort(perm).tolist())


def broadcast(*shapes: Shape) -> Shape:
    """The shape that arrays of these have together."""
    rank = max(map(len, shapes))
    rows = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(
        next((side for side in sides if not same_side(side, 1)), 1)
        for sides in zip(*rows, strict=True)
    )


def graph_dtype(dtype: Any) -> np.dtype:
    """The type that a graph has for one of JAX."""
    dtype = np.dtype(dtype)
    return np.dtype(_WIDER.get(dtype.name, dtype))


def same_side(side: Any, other: Any) -> bool:
    """Whether two sides are known to be equal; of symbolic ones JAX may be unable to tell."""
    return str(side) == str(other)


def _computed(
    op: str, inputs: Sequence[Tensor | None], outputs: int, attributes: dict[str, Any]
) -> list[np.ndarray]:
    """What a node makes of constants."""
    names = ["" if t is None else f"x{i}" for i, t in enumerate(inputs)]
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], **attributes)
    given = {name: t.value for name, t in zip(names, inputs, strict=True) if t is not None}
    found: Any = ReferenceEvaluator(node, opsets={"": _OPSET}).run(None, given)
    return found


def _info(name: str, x: Tensor) -> onnx.ValueInfoProto:
    sides = [side if isinstance(side, int) else str(side) for side in x.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), sides)
