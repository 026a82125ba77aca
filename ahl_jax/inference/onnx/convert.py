"""Functions of JAX as ONNX models."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core

from ahl_jax.inference.onnx.graph import Graph, Tensor, UnsupportedError, same_side
from ahl_jax.inference.onnx.rules import RULES

_CALLS = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
"""Primitives that call a function, and their parameter that holds it."""


def to_onnx(
    function: Callable[..., Mapping[str, jax.Array]],
    constants: Any,
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    defaults: Mapping[str, np.ndarray],
) -> onnx.ModelProto:
    """The ONNX model of a function.

    Where a function differs by platform, the one for platforms without a name counts.

    Args:
        function: of the constants, and of the inputs in their order; gives arrays by name.
        constants: pytree of arrays that become part of the model.
        inputs: what the model takes, by name; sides may be symbolic, as those of ``jax.export``.
        defaults: of inputs that may be left out.

    Raises:
        UserError: if the function uses a primitive that has no rule.
    """
    graph = Graph()
    traced = jax.jit(function).trace(constants, *inputs.values())
    given = [graph.constant(x) for x in jax.tree.leaves(constants)] + [
        graph.input(name, x.shape, x.dtype, defaults.get(name)) for name, x in inputs.items()
    ]
    found = _run(graph, traced.jaxpr, given)
    # Leaves of a dict are in the order of its keys.
    return graph.model(dict(zip(sorted(traced.out_info), found, strict=True)))


def _run(graph: Graph, closed: core.ClosedJaxpr, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a function."""
    known: dict[Any, Tensor] = {}

    def read(x: Any) -> Tensor:
        if _empty(x):
            return Tensor(x.aval.shape, x.aval.dtype)
        return known[x] if isinstance(x, core.Var) else graph.constant(x.val, x.aval.dtype)

    jaxpr = closed.jaxpr
    known |= zip(jaxpr.constvars, map(graph.constant, closed.consts), strict=True)
    known |= zip(jaxpr.invars, inputs, strict=True)
    # What empty arrays are made of can be beyond ONNX, and what is not needed too.
    needed, equations = set(map(id, jaxpr.outvars)), []
    for eqn in reversed(jaxpr.eqns):
        if any(id(x) in needed and not _empty(x) for x in eqn.outvars):
            needed.update(map(id, eqn.invars))
            equations.append(eqn)
    for eqn in reversed(equations):
        known |= zip(eqn.outvars, _equation(graph, eqn, [*map(read, eqn.invars)]), strict=True)
    return [graph.full(read(x), x.aval.shape) for x in jaxpr.outvars]


def _empty(x: Any) -> bool:
    return any(same_side(side, 0) for side in x.aval.shape)


def _equation(graph: Graph, eqn: Any, inputs: list[Tensor]) -> Sequence[Tensor]:
    name, params = eqn.primitive.name, eqn.params
    if name in _CALLS:
        return _run(graph, params[_CALLS[name]], inputs)
    if name == "platform_index":
        return [graph.constant(params["platforms"].index(None), np.int32)]
    if name == "cond" and inputs[0].value is not None:
        branch = min(int(inputs[0].value), len(params["branches"]) - 1)
        return _run(graph, params["branches"][branch], inputs[1:])
    if name == "scan":
        return _scan(graph, eqn, inputs)
    if name not in RULES:
        raise UnsupportedError(f"the primitive {name}")
    return RULES[name](graph, eqn, *inputs)


def _scan(graph: Graph, eqn: Any, inputs: list[Tensor]) -> Sequence[Tensor]:
    """A loop as its steps one after the other; over images, of whatever number, all at once."""
    params = eqn.params
    fixed, carried = params["num_consts"], params["num_carry"]
    constants, state, items = (
        inputs[:fixed], inputs[fixed : fixed + carried], inputs[fixed + carried :]
    )  # fmt: skip
    shapes = [v.aval for v in eqn.invars]
    items = [
        graph.full(x, aval.shape) for x, aval in zip(items, shapes[fixed + carried :], strict=True)
    ]
    if not isinstance(params["length"], int):
        if carried:
            raise UnsupportedError("the primitive scan over images with a state")
        axes = [None] * fixed + [0] * len(items)
        mapped = jax.vmap(core.jaxpr_as_fun(params["jaxpr"]), axes)
        return _run(graph, jax.make_jaxpr(mapped)(*shapes), [*constants, *items])
    steps = []
    for i in range(params["length"])[:: -1 if params["reverse"] else 1]:
        index = graph.constant(i, np.int64)
        now = [graph.node("Gather", x, index, shape=x.shape[1:], axis=0) for x in items]
        found = _run(graph, params["jaxpr"], [*constants, *state, *now])
        state = found[:carried]
        steps.append([graph.unsqueeze(x, [0]) for x in found[carried:]])
    if params["reverse"]:
        steps.reverse()
    stacked = [
        graph.node("Concat", *parts, shape=(len(parts), *parts[0].shape[1:]), axis=0)
        for parts in zip(*steps, strict=True)
    ]
    return [*state, *stacked]
