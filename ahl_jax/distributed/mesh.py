"""Many devices, of one process or of several: the mesh, and what lies where on it.

The mesh has three axes. Everything with a seed or subset axis is sharded along it: base models
train apart and meet where g is updated. Along the ``data`` axis the bank of features is sharded by
images, and so is every batch; elsewhere the bank is on every device. The compiler partitions the
epoch from the shardings of its arguments and of the batches. On one device nothing changes.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from ahl_jax.common.errors import UserError
from ahl_jax.common.text import counted
from ahl_jax.distributed.part import Part

Tree = TypeVar("Tree")
Shared = TypeVar("Shared")
Own = TypeVar("Own")
Out = TypeVar("Out")

log = logging.getLogger(__name__)

AXES = ("seed", "subset", "data")

_COPY = "copy"
"""Along this axis all devices do the same; a mesh has it where a slice of TPUs needs it."""


def mesh_for(
    seeds: int, subsets: int, data_shards: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over as many devices as the seeds and subsets can be shared out among evenly.

    Of several processes each gives the same number of devices. Where the data shards can be shared
    out among the processes, each process has its own.

    Links between slices of TPUs are slow. So what exchanges least is shared out among several
    slices first: chips that do the same, then seeds, then subsets. Each slice has all data shards
    if they divide its chips, and each of its processes has all images.

    The TPU's compiler takes a number of chips that divides those of the slice, and of several
    processes all chips: there a fourth axis has the chips that do the same as others.

    Args:
        seeds: number of seeds.
        subsets: T.
        data_shards: number of parts of the images.
        devices: the devices to choose from; by default those of all processes.

    Raises:
        UserError: if the data shards do not fit the devices, or a process would have no part.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % data_shards:
        raise UserError(
            f"`data_shards` is {data_shards}, and {counted(len(devices), 'device')} cannot be "
            "divided by it; choose a divisor"
        )
    of_process: dict[tuple[int, int], list[jax.Device]] = defaultdict(list)
    for device in devices:
        of_process[_slice_of(device), device.process_index].append(device)
    of_process = dict(sorted(of_process.items()))
    processes, each = len(of_process), min(map(len, of_process.values()))
    tpu = devices[0].platform == "tpu"

    def fits(used: int) -> bool:
        if tpu:
            return len(devices) % used == 0
        return used % processes == 0 and used <= each * processes

    shape = largest_shape(seeds, subsets, data_shards, fits)
    if shape is None:
        raise UserError(
            f"{processes} processes with {each} devices each cannot share out {seeds} seeds, "
            f"{subsets} subsets and `data_shards={data_shards}` evenly; set `data_shards` or "
            f"`subsets` to a multiple of {processes}, or use fewer processes"
        )
    used = math.prod(shape)
    copies = len(devices) // used if tpu and processes > 1 else 1
    if used < len(devices):
        log.info(
            "%d of %d devices %s: %d seeds and %d subsets divide no further",
            used,
            len(devices),
            "are in use" if copies == 1 else "share the work, and the others do the same",
            seeds,
            subsets,
        )
    of_slice = len(devices) // _slices(devices)
    if of_slice % data_shards:
        log.warning(
            "%d data shards do not divide the %d chips of a slice: they exchange over the slow "
            "links between slices",
            data_shards,
            of_slice,
        )
    types = (AxisType.Auto,) * len(AXES)
    if processes == 1:
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices[:used])
    of_each = used * copies // processes
    chosen = np.array([own[:of_each] for own in of_process.values()], object)
    # Copies of one part of the data are in the processes that have it.
    if _parts_apart(data_shards, devices):
        ordered = chosen.reshape(data_shards, copies, *shape[:2]).transpose(2, 3, 0, 1)
    else:
        ordered = chosen.reshape(copies, *shape).transpose(1, 2, 3, 0)
    if copies == 1:
        return Mesh(ordered[..., 0], AXES, axis_types=types)
    return Mesh(ordered, (*AXES, _COPY), axis_types=(*types, AxisType.Auto))


def largest_shape(
    seeds: int, subsets: int, data_shards: int, fits: Callable[[int], bool]
) -> tuple[int, int, int] | None:
    """The shape of the mesh with the most devices whose number fits; None if there is none.

    Whole seeds need no communication, so of equal sizes the one with more of them is better.
    """
    shapes = [
        (a, b, data_shards)
        for a in _divisors(seeds)
        for b in _divisors(subsets)
        if fits(a * b * data_shards)
    ]
    return max(shapes, key=lambda abn: (math.prod(abn), abn[0]), default=None)


def own_part(data_shards: int) -> Part:
    """This process's part of the training images, where ``mesh_for`` has that many data shards.

    The first process has the first part, and so on; every process has all images where the data
    shards cannot be shared out among the processes, or there are several slices of TPUs.
    """
    if not _parts_apart(data_shards, jax.devices()):
        return Part(shards=data_shards)
    processes = jax.process_count()
    return Part(jax.process_index(), processes, data_shards // processes)


def _parts_apart(data_shards: int, devices: Sequence[jax.Device]) -> bool:
    """Whether each process has a part of the images of its own."""
    processes = len({device.process_index for device in devices})
    return data_shards % processes == 0 and _slices(devices) == 1


def _slices(devices: Sequence[jax.Device]) -> int:
    return len(set(map(_slice_of, devices)))


def _slice_of(device: jax.Device) -> int:
    """The number of its slice of TPUs; other devices, and a slice by itself, are one slice."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def put_everywhere(tree: Tree, mesh: Mesh) -> Tree:
    """Arrays of the host, whole on every device of the mesh; all processes give the same values."""
    return jax.tree.map(lambda leaf: put_sharded(leaf, everywhere(mesh)), tree)


def seeds_apart(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays with a leading seed axis."""
    return NamedSharding(mesh, PartitionSpec("seed"))


def everywhere(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device has."""
    return NamedSharding(mesh, PartitionSpec())


def from_bank(
    take: Callable[[Tree, jax.Array], Tree],
    bank: Tree,
    index: Int[jax.Array, " b"],
    *,
    same: bool = False,
) -> Tree:
    """``take(bank, index)`` where the bank may be divided among the devices of the ``data`` axis.

    Every device takes what it has of these images, and they add up to the batch. Left to itself,
    the compiler may put the whole bank on every device. Works only within ``jax.jit`` and the
    mesh (``jax.sharding.use_abstract_mesh``); without one it is ``take`` alone. Where
    ``over_subsets`` has given each device subsets of its own, each gets the images of its index.

    Args:
        take: images of a bank by their positions, which are the first axis of the result.
        bank: a pytree of arrays whose first axis is the images.
        index: positions in the bank.
        same: whether all devices give the same ones, wherever they are; it takes less then.
    """
    apart = _subsets_apart()
    if not apart and data_shards() == 1:
        return take(bank, index)

    def part(bank: Tree, index: Int[jax.Array, " b"]) -> Tree:
        rows = jax.tree.leaves(bank)[0].shape[0]
        here = index - jax.lax.axis_index("data") * rows
        mine = (here >= 0) & (here < rows)
        found = take(bank, jnp.clip(here, 0, rows - 1))
        return jax.tree.map(
            lambda leaf: jnp.where(jnp.expand_dims(mine, range(1, leaf.ndim)), leaf, 0), found
        )

    if apart and same:
        return jax.lax.psum(part(bank, index), "data")
    if apart:
        found = part(bank, jax.lax.all_gather(index, "data", tiled=True))
        return jax.tree.map(lambda leaf: jax.lax.psum_scatter(leaf, "data", tiled=True), found)
    split = PartitionSpec("data")
    return jax.shard_map(
        lambda bank, index: jax.lax.psum(part(bank, index), "data"),
        in_specs=(split, PartitionSpec()),
        out_specs=PartitionSpec(),
        axis_names={"data"},
    )(bank, index)


def split_images(batch: Tree) -> Tree:
    """A batch of images, divided among the devices of the ``data`` axis.

    Without it every device would compute the whole batch. As ``from_bank``, it needs the mesh to do
    anything. Under ``jax.vmap`` the axes that are mapped over stay as the compiler has them.

    Args:
        batch: a pytree of arrays whose first axis is the images. Where it is no multiple of
            ``data_shards()``, the compiler may leave the batch whole.
    """
    if data_shards() == 1:
        return batch

    def split(leaf: jax.Array) -> jax.Array:
        rest = (PartitionSpec.UNCONSTRAINED,) * (leaf.ndim - 1)
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec("data", *rest))

    return jax.tree.map(split, batch)


def over_subsets(
    function: Callable[[Tree, Shared, Own], Out], bank: Tree, shared: Shared, own: Own
) -> Out:
    """``function(bank, shared, one)`` for each of the T subsets; each device computes its own ones.

    Left to itself, the compiler exchanges between subsets what it cannot divide (``top_k``). As
    ``from_bank``, it needs the mesh to do more than a vmap. Where the devices of the ``data`` axis
    can share out the subsets, they do, and exchange nothing but images of the bank: a device that
    divides each batch instead would have more subsets' parameters to update than images to see.

    Args:
        function: exchanges nothing between subsets; takes images by ``from_bank``.
        bank: what the ``data`` axis divides, or nothing.
        shared: what all subsets have.
        own: a pytree of arrays with a leading subset axis.

    Returns:
        What ``function`` returns, with a leading subset axis.
    """
    shape = jax.sharding.get_abstract_mesh().shape
    subsets = len(jax.tree.leaves(own)[0])
    axes = {name for name in ("subset", "data") if shape.get(name, 1) > 1}
    if subsets % math.prod(shape[name] for name in axes):
        axes &= {"subset"}

    def every(bank: Tree, shared: Shared, own: Own) -> Out:
        if axes and len(jax.tree.leaves(own)[0]) == 1:
            # An axis of one is not nothing to the compiler for TPUs: it copies for it.
            found = function(bank, shared, jax.tree.map(lambda leaf: leaf[0], own))
            return jax.tree.map(lambda leaf: leaf[None], found)
        return jax.vmap(function, in_axes=(None, None, 0))(bank, shared, own)

    if not axes:
        return every(bank, shared, own)
    split = PartitionSpec(tuple(name for name in ("subset", "data") if name in axes))
    return jax.shard_map(
        every,
        in_specs=(PartitionSpec(*axes & {"data"}), PartitionSpec(), split),
        out_specs=split,
        axis_names=axes,
        check_vma=False,
    )(bank, shared, own)


def on_every_subset(tree: Tree) -> Tree:
    """Arrays that all devices that share out subsets have whole; needs the mesh, as the others.

    For what is small but would be divided by the compiler.
    """
    shape = jax.sharding.get_abstract_mesh().shape
    if all(shape.get(name, 1) == 1 for name in ("subset", "data")):
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec()), tree)


def data_shards() -> int:
    """How many parts a batch of images is divided into, in the mesh that is in use."""
    return 1 if _subsets_apart() else jax.sharding.get_abstract_mesh().shape.get("data", 1)


def _subsets_apart() -> bool:
    """Whether the devices of the ``data`` axis have subsets of their own here."""
    return "data" in jax.sharding.get_abstract_mesh().manual_axes


def on_this_process(tree: Tree, mesh: Mesh) -> Tree:
    """Arrays on the mesh, as arrays that this process can read on its own.

    With several processes all must call it: values are gathered from all of them.
    """
    if jax.process_count() == 1:
        return tree
    whole = jax.jit(_same, out_shardings=everywhere(mesh))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)


def _same(tree: Tree) -> Tree:
    """At the top level, so that it is compiled once."""
    return tree


def put_sharded(leaf: Any, sharding: NamedSharding) -> Any:
    """An array of the host on the devices of a sharding; all processes give the same values.

    A shape alone only gets the sharding, so that programs for devices elsewhere can be compiled.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        bits = put_sharded(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
    # Each process gives its devices' parts; device_put would first compare the whole arrays.
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
