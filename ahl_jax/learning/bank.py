"""The bank: the features of every training image, on the devices or streamed from the host.

Batches are index arrays into the bank. Where it fits, it goes to its devices once and for all, each
its own rows; where it does not, the compiled program asks the host for a batch's images as it goes.
"""

import functools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Int

from ahl_jax.config.settings import Precision
from ahl_jax.detectors.inputs import Inputs, make_inputs
from ahl_jax.detectors.whitening import Whitening
from ahl_jax.distributed.part import WHOLE, Part
from ahl_jax.features.pooling import Maps

_ALIGNMENT = 64

_ROWS = 64
"""Images arranged at a time, so that arranging takes next to no memory."""


class HostBank:
    """A process's part of the bank as maps on the host, in memory or mapped from a file.

    Every process's part takes the same number of rows of the bank: as many as the largest needs,
    filled up to a multiple of its shards.

    Args:
        parts: the maps of this process's images, list after list.
        precision: what ``rows`` gives.
        part: which part this is.
        counts: how many images each process has; by default this one has all.
        whitening: what the features are whitened with.
    """

    def __init__(
        self,
        parts: Sequence[Maps],
        precision: Precision,
        part: Part = WHOLE,
        counts: Sequence[int] | None = None,
        whitening: Whitening | None = None,
    ):
        self.parts = parts
        self.whitening = whitening
        self.dtype = jnp.dtype(precision)
        self.ends = np.cumsum([len(part[0]) for part in parts])
        counts = [int(self.ends[-1])] if counts is None else counts
        self.images = int(sum(counts))
        """How many all processes have."""
        self.rows_each = -(-max(counts) // part.shards) * part.shards
        self.first = part.number * self.rows_each
        self.size = part.of * self.rows_each
        """Rows of the bank."""
        blank = [np.zeros((1, *m.shape[1:]), m.dtype) for m in parts[0]]
        self.one = make_inputs(blank, self.dtype, whitening)

    @property
    def channels(self) -> int:
        """C."""
        return self.one.channels

    @property
    def nbytes(self) -> int:
        """Bytes that the whole bank takes on its devices."""
        return self.size * self.one.nbytes

    def rows(self, index: Int[np.ndarray | Array, "*b"]) -> Inputs:
        """The images at ``index``, as host arrays; zeros where it is past the part's last image.

        Raises:
            IndexError: if another process has them.
        """
        index = np.asarray(index)
        flat = index.ravel() - self.first
        if flat.size and not 0 <= flat.min() <= flat.max() < self.rows_each:
            raise IndexError("these images are not in this process's part of the bank")
        found = jax.tree.map(lambda one: _empty((flat.size, *one.shape[1:]), one.dtype), self.one)
        of = np.searchsorted(self.ends, flat, side="right")
        for whole in jax.tree.leaves(found):
            whole[of == len(self.parts)] = 0
        for number, part in enumerate(self.parts):
            where = np.flatnonzero(of == number)
            local = flat[where] - (self.ends[number] - len(part[0]))
            for start in range(0, len(where), _ROWS):
                here = slice(start, start + _ROWS)
                few = make_inputs([m[local[here]] for m in part], self.dtype, self.whitening)
                for whole, some in zip(jax.tree.leaves(found), jax.tree.leaves(few), strict=True):
                    whole[where[here]] = some
        return jax.tree.map(lambda leaf: leaf.reshape(*index.shape, *leaf.shape[1:]), found)

    def on_device(self) -> Inputs:
        """The whole bank on the default device."""
        # Nobody else holds the host arrays, so on a CPU they may become the device's own.
        return jax.device_put(self.rows(np.arange(self.size)), may_alias=True)

    def whitened_by(self, whitening: Whitening | None) -> Inputs:
        """The whole bank on the default device, from now on with another whitening."""
        self.whitening = whitening
        return self.on_device()

    def put(self, sharding: NamedSharding) -> Inputs:
        """The bank on the devices of a sharding of its rows.

        Each device is given its own rows and never any others; the host arranges them for one
        device after the other. This process's devices must be those of its part.
        """
        devices_of = defaultdict(list)
        for device, index in sharding.addressable_devices_indices_map((self.size,)).items():
            assert index is not None
            devices_of[index[0].indices(self.size)].append(device)
        placed: list[Inputs] = []
        for own, devices in devices_of.items():
            shard = self.rows(np.arange(*own))
            placed += [jax.device_put(shard, device, may_alias=True) for device in devices]
            jax.block_until_ready(placed)

        def whole(one: np.ndarray, *shards: jax.Array) -> jax.Array:
            shape = (self.size, *one.shape[1:])
            return jax.make_array_from_single_device_arrays(shape, sharding, shards)

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

    def whitened_by(self, whitening: Whitening | None) -> "Streamed":
        """The same bank, from now on with another whitening; compiled programs see it too."""
        self.bank.whitening = whitening
        return self

    def release(self) -> None:
        """Let go of the features; JAX's caches keep the bank itself as long as the process."""
        self.bank.parts = ()

    def take(self, index: Int[Array, "*b"]) -> Inputs:
        """The images at ``index``, as the bank has them when the program runs."""
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
    *,
    part: Part = WHOLE,
    counts: Sequence[Int[np.ndarray, "p 3"]] | None = None,
    whitening: Whitening | None = None,
) -> list[SharedBank]:
    """One bank of several runs' normals, anomalies and pseudo-anomalies, still on the host.

    Runs that hold the very same arrays of normals have them in the bank once. Every process gives
    its part of each list and gets the same places, for which it must know what the others have.

    Args:
        runs: each run's maps.
        precision: dtype of the features; global averages are float32 in any case.
        budget: bytes that the bank may take on all of its devices; a larger one is streamed.
        part: which part of each list this process has.
        counts: of each run, how many images of each list every process has.
        whitening: what the features are whitened with.
    """
    if counts is None:
        counts = [np.array([[len(maps[0]) for maps in run]]) for run in runs]
    lists: dict[int, tuple[Maps, np.ndarray]] = {}
    for run, of_run in zip(runs, counts, strict=True):
        for maps, of_list in zip(run, np.transpose(of_run), strict=True):
            lists.setdefault(id(maps[0]), (maps, of_list))
    lengths = np.array([of_list for _, of_list in lists.values()])
    own = [maps for maps, _ in lists.values()]
    host = HostBank(own, precision, part, lengths.sum(0).tolist(), whitening)
    # Process by process, list after list.
    starts = host.rows_each * np.arange(part.of) + np.cumsum(lengths, axis=0) - lengths
    place = {
        key: np.concatenate([first + np.arange(n) for first, n in zip(*where, strict=True)])
        for key, *where in zip(lists, starts, lengths, strict=True)
    }
    inputs = host if host.nbytes <= budget else Streamed(host)
    return [
        SharedBank(inputs, np.concatenate([place[id(maps[0])] for maps in run])) for run in runs
    ]
