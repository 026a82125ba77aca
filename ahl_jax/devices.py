"""Several devices: seeds and subsets spread over a mesh, so that the same run uses all of them.

Everything with a seed or subset axis is sharded along it; the bank of features is on every device.
The compiler partitions the epoch from the shardings of its arguments: base models train apart and
meet where g is updated. On one device nothing changes.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ahl_jax.learning import TrainingData
from ahl_jax.seeds import run_epochs

log = logging.getLogger(__name__)

AXES = ("seed", "subset")


def mesh_for(seeds: int, subsets: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over as many devices as the seeds and subsets can be shared out among evenly.

    Args:
        seeds: number of seeds.
        subsets: T.
        devices: the devices to choose from; by default all of this process.
    """
    devices = jax.local_devices() if devices is None else devices
    divisors = [
        (a, b) for a in _divisors(seeds) for b in _divisors(subsets) if a * b <= len(devices)
    ]
    # Whole seeds need no communication, so of equal sizes the one with more of them is better.
    shape = max(divisors, key=lambda ab: (math.prod(ab), ab[0]))
    used = math.prod(shape)
    if used < len(devices):
        log.info(
            "%d of %d devices are in use: %d seeds and %d subsets divide no further",
            used,
            len(devices),
            seeds,
            subsets,
        )
    return jax.make_mesh(
        shape, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=devices[:used]
    )


def spread(states: Any, data: TrainingData, mesh: Mesh) -> tuple[Any, TrainingData]:
    """States and data with a leading seed axis, placed on the mesh."""

    def put(tree: Any, *axes: str) -> Any:
        return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*axes)))

    placed = {
        field.name: put(getattr(data, field.name), *_AXES_OF.get(field.name, ("seed",)))
        for field in dataclasses.fields(data)
    }
    return put(states, "seed"), TrainingData(**placed)


def compile_epochs(mesh: Mesh) -> Callable[..., Any]:
    """``ahl_jax.seeds.run_epochs``, compiled for the mesh; the states' memory is used again."""
    seeds_apart = NamedSharding(mesh, PartitionSpec("seed"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    # Without these the compiler would place its results as it likes, and a second call would be
    # compiled anew for that.
    return jax.jit(
        run_epochs, static_argnums=0, donate_argnums=1, out_shardings=(seeds_apart, everywhere)
    )


_AXES_OF: dict[str, tuple[str, ...]] = {
    "inputs": (),
    "support": AXES,
    "query": AXES,
    "error_weights": AXES,
}


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
