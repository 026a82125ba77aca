"""The bank: the features of every training image, on the devices or streamed from the host.

Batches are index arrays into the bank. Where it fits, it goes to its devices once and for all, each
its own rows; where it does not, the compiled program asks the host for a batch's images as it goes.
"""

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from ahl_jax.detectors.inputs import Inputs, make_inputs

Maps = Sequence[Float[np.ndarray, "n h w c"]]
"""Feature maps of n images, one array per scale."""

Precision = Literal["float32", "bfloat16"]

_ALIGNMENT = 64

_ROWS = 64
"""Images arranged at a time, so that arranging takes next to no memory."""


class HostBank:
    """The bank as maps on the host, in memory or mapped from a file.

    Args:
        parts: the maps of the images, part after part.
        precision: what ``rows`` gives.
    """

    def __init__(self, parts: Sequence[Maps], precision: Precision):
        self.parts = parts
        self.dtype = jnp.dtype(precision)
        self.ends = np.cumsum([len(part[0]) for part in parts])
        blank = [np.zeros((1, *m.shape[1:]), m.dtype) for m in parts[0]]
        self.one = make_inputs(blank, self.dtype)

    @property
    def channels(self) -> int:
        """C."""
        return self.one.channels

    @property
    def images(self) -> int:
        """How many there are."""
        return int(self.ends[-1])

    @property
    def nbytes(self) -> int:
        """Bytes that the whole bank takes on a device."""
        return self.images * self.one.nbytes

    def rows(self, index: Int[np.ndarray | Array, "*b"]) -> Inputs:
        """The images at ``index``, as host arrays; zeros where it is past the last image."""
        index = np.asarray(index)
        flat = index.ravel()
        found = jax.tree.map(lambda one: _empty((flat.size, *one.shape[1:]), one.dtype), self.one)
        of = np.searchsorted(self.ends, flat, side="right")
        for whole in jax.tree.leaves(found):
            whole[of == len(self.parts)] = 0
        for number, part in enumerate(self.parts):
            where = np.flatnonzero(of == number)
            local = flat[where] - (self.ends[number] - len(part[0]))
            for start in range(0, len(where), _ROWS):
                here = slice(start, start + _ROWS)
                few = make_inputs([m[local[here]] for m in part], self.dtype)
                for whole, some in zip(jax.tree.leaves(found), jax.tree.leaves(few), strict=True):
                    whole[where[here]] = some
        return jax.tree.map(lambda leaf: leaf.reshape(*index.shape, *leaf.shape[1:]), found)

    def on_device(self) -> Inputs:
        """The whole bank on the default device."""
        # Nobody else holds the host arrays, so on a CPU they may become the device's own.
        return jax.device_put(self.rows(np.arange(self.images)), may_alias=True)

    def put(self, sharding: NamedSharding) -> Inputs:
        """The bank on the devices of a sharding of its rows.

        Each device is given its own rows and never any others; the host arranges them for one
        device after the other. The bank is padded with zeros to a multiple of the data shards.
        """
        shards = sharding.mesh.shape["data"]
        rows = -(-self.images // shards) * shards
        devices_of = defaultdict(list)
        for device, index in sharding.addressable_devices_indices_map((rows,)).items():
            assert index is not None
            devices_of[index[0].indices(rows)].append(device)
        placed: list[Inputs] = []
        for own, devices in devices_of.items():
            part = self.rows(np.arange(*own))
            placed += [jax.device_put(part, device, may_alias=True) for device in devices]
            jax.block_until_ready(placed)

        def whole(one: np.ndarray, *parts: jax.Array) -> jax.Array:
            shape = (rows, *one.shape[1:])
            return jax.make_array_from_single_device_arrays(shape, sharding, parts)

        return jax.tree.map(whole, self.one, *placed)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that is aligned as XLA wants it; others it would copy."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["bank"])
@dataclass(frozen=True)
class Streamed:
    """A bank that stays on the host; in a compiled program ``take`` calls back for the images."""

    bank: HostBank

    @property
    def channels(self) -> int:
        """C."""
        return self.bank.channels

    @property
    def images(self) -> int:
        """How many there are."""
        return self.bank.images

    @property
    def nbytes(self) -> int:
        """Bytes that the whole bank would take on a device."""
        return self.bank.nbytes

    def take(self, index: Int[Array, "*b"]) -> Inputs:
        """The images at ``index``."""
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((*index.shape, *leaf.shape[1:]), leaf.dtype),
            self.bank.one,
        )
        # A vmap over subsets or seeds asks for all of their images in one call.
        return cast(
            Inputs, jax.pure_callback(self.bank.rows, shapes, index, vmap_method="expand_dims")
        )


FeatureBank = Inputs | Streamed | HostBank
"""The first two give a batch's images; the last has yet to be put on its devices."""


class SharedBank(NamedTuple):
    """A bank that several runs may share, and one run's place in it."""

    inputs: FeatureBank
    place: Int[np.ndarray, " b"]
    """Where the run's normals, anomalies and pseudo-anomalies are, in this order."""


def shared_bank(
    runs: Sequence[tuple[Maps, Maps, Maps]],
    precision: Precision = "float32",
    budget: float = np.inf,
) -> list[SharedBank]:
    """One bank of several runs' normals, anomalies and pseudo-anomalies, still on the host.

    Runs that hold the very same arrays of normals have them in the bank once.

    Args:
        runs: each run's maps.
        precision: dtype of the features; global averages are float32 in any case.
        budget: bytes that the bank may take on all of its devices; a larger one is streamed.
    """
    parts: list[Maps] = []
    starts: dict[int, int] = {}
    places = []
    total = 0
    for maps in (maps for run in runs for maps in run):
        if id(maps[0]) not in starts:
            starts[id(maps[0])] = total
            total += len(maps[0])
            parts.append(maps)
    for run in runs:
        place = [starts[id(maps[0])] + np.arange(len(maps[0])) for maps in run]
        places.append(np.concatenate(place))
    host = HostBank(parts, precision)
    inputs = host if host.nbytes <= budget else Streamed(host)
    return [SharedBank(inputs, place) for place in places]
