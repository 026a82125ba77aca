"""The bank: the features of every training image, on the device or streamed from the host.

Batches are index arrays into the bank. Where it fits, it is on the device once and for all; where
it does not, the compiled program asks the host for a batch's images as it goes.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ahl_jax.config import Precision
from ahl_jax.detectors.inputs import Inputs, make_inputs

Maps = Sequence[Float[np.ndarray, "n h w c"]]
"""Feature maps of n images, one array per scale."""

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
        self.one = make_inputs([m[:1] for m in parts[0]], self.dtype)

    @property
    def images(self) -> int:
        """How many there are."""
        return int(self.ends[-1])

    @property
    def nbytes(self) -> int:
        """Bytes that the whole bank takes on a device."""
        return self.images * sum(leaf.nbytes for leaf in jax.tree.leaves(self.one))

    def rows(self, index: Int[np.ndarray | Array, "*b"]) -> Inputs:
        """The images at ``index``, as host arrays."""
        index = np.asarray(index)
        flat = index.ravel()
        found = jax.tree.map(lambda one: _empty((flat.size, *one.shape[1:]), one.dtype), self.one)
        of = np.searchsorted(self.ends, flat, side="right")
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
        return self.bank.one.channels

    @property
    def images(self) -> int:
        """How many there are."""
        return self.bank.images

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


FeatureBank = Inputs | Streamed
"""What ``take`` gives a batch's images from."""


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
    """One bank of several runs' normals, anomalies and pseudo-anomalies.

    Runs that hold the very same arrays of normals have them in the bank once.

    Args:
        runs: each run's maps.
        precision: dtype of the features; global averages are float32 in any case.
        budget: bytes that the bank may take on the device; a larger one is streamed.
    """
    parts: list[Maps] = []
    starts: dict[int, int] = {}
    places = []
    total = 0
    for run in runs:
        place = []
        for maps in run:
            key = id(maps[0])
            if key not in starts:
                starts[key] = total
                total += len(maps[0])
                parts.append(maps)
            place.append(starts[key] + np.arange(len(maps[0])))
        places.append(np.concatenate(place))
    host = HostBank(parts, precision)
    inputs = host.on_device() if host.nbytes <= budget else Streamed(host)
    return [SharedBank(inputs, place) for place in places]
