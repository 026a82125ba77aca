"""Several seeds in one program: problems stacked along an axis that an epoch is vmapped over.

A seed's result is the one that it has alone, up to the rounding of differently batched products.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from ahl_jax.common.errors import UserError
from ahl_jax.detectors import Detector, Inputs
from ahl_jax.distributed.mesh import everywhere, put_sharded, seeds_apart
from ahl_jax.learning import learner as learning
from ahl_jax.learning.bank import HostBank
from ahl_jax.learning.learner import NO_BANK, EpochLog, Learner, TrainingData
from ahl_jax.learning.problem import Problem

_axes: dict[str, Any] = {f.name: 0 for f in dataclasses.fields(TrainingData)}
_DATA_AXES = TrainingData(**_axes | {"inputs": None})


def stack_problems(problems: Sequence[Problem]) -> tuple[Any, TrainingData]:
    """The initial states and the data of problems on one bank, with a leading seed axis.

    Raises:
        UserError: if the seeds differ in their numbers of images.
    """
    learner = problems[0].learner
    rest = [dataclasses.replace(p.data, inputs=NO_BANK) for p in problems]
    init = jax.jit(learner.init)
    states = [init(p.model, data, p.key) for p, data in zip(problems, rest, strict=True)]
    if len({tuple(leaf.shape for leaf in jax.tree.leaves(data)) for data in rest}) > 1:
        raise UserError(
            "the seeds differ in how many images can be read, so they cannot train in one program; "
            "replace the bad images, or train one seed at a time"
        )
    inputs = problems[0].data.inputs
    return stack(states), dataclasses.replace(stack(rest), inputs=inputs)


def scan_epochs(
    learner: Learner,
    states: Any,
    data: TrainingData,
    epochs: Int[Array, " e"],
    *,
    in_turn: bool = False,
) -> tuple[Any, EpochLog]:
    """Epochs of all seeds as one scan; jit it with the states donated.

    Args:
        learner: how to train.
        states: states with a leading seed axis.
        data: see ``stack_problems``.
        epochs: the epochs' numbers, from 0.
        in_turn: within an epoch, one seed after the other instead of a vmap over them. The same up
            to rounding, and faster where one seed keeps the device busy: on a CPU products with
            two batch axes take a third longer.

    Returns:
        The new states, and the logs with leading axes epoch and seed.
    """
    every_seed = jax.vmap(learner.epoch, in_axes=(0, _DATA_AXES, None))
    rest = dataclasses.replace(data, inputs=NO_BANK)

    def each_in_turn(states: Any, epoch: Array) -> tuple[Any, EpochLog]:
        def one(seed: tuple[Any, TrainingData]) -> tuple[Any, EpochLog]:
            own = dataclasses.replace(seed[1], inputs=data.inputs)
            return learner.epoch(seed[0], own, epoch)

        return jax.lax.map(one, (states, rest))

    def at_once(states: Any, epoch: Array) -> tuple[Any, EpochLog]:
        return every_seed(states, data, epoch)

    return jax.lax.scan(each_in_turn if in_turn else at_once, states, epochs)


@functools.cache
def compile_epochs(mesh: Mesh) -> jax.stages.Wrapped:
    """``scan_epochs``, compiled for the mesh; the states' memory is used again."""
    on_one_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"

    def in_turn(states: Any) -> bool:
        return on_one_cpu or jax.tree.leaves(states)[0].shape[0] == 1

    def epochs(learner: Learner, states: Any, data: TrainingData, numbers: Array) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return scan_epochs(learner, states, data, numbers, in_turn=in_turn(states))

    # Without the shardings the compiler would place its results as it likes, and a second call
    # would be compiled anew for that.
    return jax.jit(
        epochs,
        static_argnums=0,
        donate_argnums=1,
        out_shardings=(seeds_apart(mesh), everywhere(mesh)),
    )


def inference_references(data: TrainingData, mesh: Mesh) -> Inputs:
    """Each seed's ``TrainingData.inference_reference``, from a bank that is on the mesh."""
    return _references(mesh)(data)


@functools.cache
def _references(mesh: Mesh) -> jax.stages.Wrapped:
    def every_seed(data: TrainingData) -> Inputs:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.vmap(TrainingData.inference_reference, in_axes=(_DATA_AXES,))(data)

    return jax.jit(every_seed, out_shardings=everywhere(mesh))


def prepared(learner: Learner, states: Any, data: TrainingData, mesh: Mesh) -> Any:
    """The states with each seed's detector prepared, see ``Detector.prepare``.

    States and data are on the mesh.
    """
    if learner.functional.kind.prepare is Detector.prepare:
        return states
    return _preparation(mesh)(learner, states, data)


@functools.cache
def _preparation(mesh: Mesh) -> jax.stages.Wrapped:
    def every_seed(learner: Learner, states: Any, data: TrainingData) -> Any:
        def one(seed: tuple[Any, TrainingData]) -> Any:
            own = dataclasses.replace(seed[1], inputs=data.inputs)
            model = learner.model(seed[0])
            return learner.with_model(
                seed[0], learning.prepared(learner.functional, model, own, len(own.groups))
            )

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.lax.map(one, (states, dataclasses.replace(data, inputs=NO_BANK)))

    return jax.jit(every_seed, static_argnums=0, out_shardings=seeds_apart(mesh))


def one_seed(tree: Any, seed: int) -> Any:
    """The part of a stacked tree that belongs to one seed, on the host."""
    return jax.tree.map(lambda x: np.asarray(x)[seed] if _readable(x) else x[seed], tree)


def stack(trees: Sequence[Any]) -> Any:
    """Trees of equal structure and shapes as one, with a leading seed axis.

    Stacked on the host: an accelerator would compile a program for every shape.
    """

    def one(*leaves: Any) -> Array:
        if _readable(leaves[0]):
            return jax.device_put(np.stack([np.asarray(leaf) for leaf in leaves]))
        return jnp.stack(leaves)

    return jax.tree.map(one, *trees)


def _readable(leaf: Any) -> bool:
    """Whether NumPy can read an array: it reads neither keys nor what is traced."""
    key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return not key and not isinstance(leaf, jax.core.Tracer)


def spread(states: Any, data: "TrainingData", mesh: Mesh) -> tuple[Any, "TrainingData"]:
    """States and data with a leading seed axis, placed on the mesh.

    A bank that is still on the host goes to each device in its part alone; else it is padded to a
    multiple of the data shards, and nothing points at the padding. Of several processes all must
    give the same values, their parts of the bank aside.
    """

    def put(tree: Any, *axes: str) -> Any:
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.tree.map(lambda leaf: put_sharded(leaf, sharding), tree)

    placed = {
        field.name: put(getattr(data, field.name), *_AXES_OF.get(field.name, ("seed",)))
        for field in dataclasses.fields(data)
        if field.name != "inputs"
    }
    bank: Any = data.inputs
    if isinstance(bank, HostBank):
        bank = bank.put(NamedSharding(mesh, PartitionSpec("data")))
    else:
        shards = mesh.shape["data"]
        bank = put(jax.tree.map(lambda leaf: _padded(leaf, shards), bank), "data")
    return put(states, "seed"), dataclasses.replace(data, **placed, inputs=bank)


_AXES_OF: dict[str, tuple[str, ...]] = {
    "support": ("seed", "subset"),
    "query": ("seed", "subset"),
}


def _padded(leaf: jax.Array, multiple: int) -> jax.Array:
    more = -leaf.shape[0] % multiple
    return jnp.pad(leaf, [(0, more)] + [(0, 0)] * (leaf.ndim - 1)) if more else leaf
