"""The feature store: one small file per image, found by what it was computed from."""

import contextlib
import hashlib
import json
import math
import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
from jaxtyping import Float

from ahl_jax.common.files import default_folder, make_folder, replace_file, writing
from ahl_jax.common.remote import any_path, url_of
from ahl_jax.distributed.memory import on_host


class Store:
    """Feature maps on disk, content-addressed.

    Every entry appears whole or not at all, so several runs may share a folder, and may be killed
    at any time. Deleting the folder, or files in it, costs only the time to compute them again.

    Args:
        folder: Where the entries are, which may be in object storage; made if missing. By default
            ``default_folder()``.
        memory: Bytes that the arrays of ``empty`` may take in memory at a time; by default as
            ``on_host`` says.

    Raises:
        UserError: if the folder cannot be made.
    """

    def __init__(self, folder: Path | None = None, memory: float | None = None) -> None:
        self.folder = default_folder() if folder is None else any_path(folder)
        self._memory = on_host(None) if memory is None else memory
        with _writing(self.folder):
            make_folder(self.folder)

    def path(self, key: str) -> Path:
        """The file of an entry."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def empty(self, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
        """A float32 array to fill, in a file that is gone with it where memory does not suffice.

        Raises:
            UserError: if the disk has no room for it.
        """
        size = math.prod(shape) * 4
        if size <= self._memory:
            self._memory -= size
            array = np.empty(shape, np.float32)
            weakref.finalize(array, self._release, size)
            return array
        folder = None if url_of(self.folder) else self.folder
        with _writing(self.folder), tempfile.TemporaryFile(dir=folder) as file:
            # Without the room set aside, a full disk would end the process later on.
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.float32, "r+", shape=shape)

    def _release(self, size: int) -> None:
        self._memory += size

    def read(
        self, key: str, shapes: Sequence[tuple[int, ...]]
    ) -> tuple[Float[np.ndarray, "h w c"], ...] | None:
        """The maps of an entry, or None where it is missing, unreadable or of other shapes."""
        try:
            tensors = safetensors.numpy.load(self.path(key).read_bytes())
            maps = tuple(tensors[f"scale{i}"] for i in range(len(shapes)))
        except (OSError, KeyError, ValueError, safetensors.SafetensorError):
            return None
        fits = len(tensors) == len(shapes) and all(
            m.shape == shape and m.dtype == np.float32
            for m, shape in zip(maps, shapes, strict=True)
        )
        return maps if fits else None

    def write(self, key: str, maps: Sequence[Float[np.ndarray, "h w c"]]) -> None:
        """Writes an entry, in place of one that is there.

        Raises:
            UserError: if the disk is full or the folder cannot be written to.
        """
        path = self.path(key)
        content = safetensors.numpy.save(
            {f"scale{i}": np.ascontiguousarray(m, np.float32) for i, m in enumerate(maps)}
        )
        with _writing(self.folder):
            make_folder(path.parent)
            replace_file(path, content, durable=False)


def entry_key(**origin: str | int) -> str:
    """The key of an entry: SHA-256 over everything that decides its content."""
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()


def _writing(folder: Path) -> contextlib.AbstractContextManager[None]:
    return writing(folder, "make room there, or set AHL_CACHE to another folder", "features")
