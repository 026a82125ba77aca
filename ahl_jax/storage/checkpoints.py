"""Checkpoints of a run, in RUN/checkpoint, written by Orbax.

The trunk's parameters are saved once, with the detector that stage one had on top. Each epoch saves
two items that are read apart: ``inference``, all that scoring new images needs, and ``state``, all
that resuming the training needs. Arrays are saved from, and restored to, host memory, so a
checkpoint does not depend on the devices it was saved with. Each item has a SHA-256, as the storage
format does not notice every damaged byte. Of several processes only one reads and writes them.

For object storage, Orbax reads and writes a copy in a temporary folder. Checkpoints are uploaded as
they are, the object that marks a whole one last.
"""

import contextlib
import hashlib
import json
import logging
import math
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

from ahl_jax.common import remote
from ahl_jax.common.errors import UserError
from ahl_jax.common.files import reason, remove, writing
from ahl_jax.common.text import printable
from ahl_jax.distributed.host_arrays import digest, flat_host, from_host, host_shape, to_host

PyTree = Any

_PREFIX = "epoch"
_TEMPORARY = ".orbax-checkpoint-tmp"
"""Ending that Orbax gives the names of folders that it has not finished."""

_WHOLE = "_CHECKPOINT_METADATA"
"""The file of a checkpoint that Orbax writes last."""

_KEPT = 2

_DENSITY, _SPARE = 16, 2**30
"""Bytes of arrays that a byte of a checkpoint may stand for, and that any checkpoint may have."""


class Checkpoints:
    """The checkpoints in one working folder; a context manager, as saves run in the background.

    Args:
        workdir: The run's folder; checkpoints go to its subfolder ``checkpoint``.
        read_only: Change nothing on disk. Otherwise the folder is made if missing, and what a
            killed run left half-written is removed.

    Raises:
        UserError: if the folder cannot be made or written to, or has a link in it.
    """

    def __init__(self, workdir: Path, *, read_only: bool = False) -> None:
        # Orbax logs its progress, absent optional files, and every error that it also raises.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        workdir = remote.any_path(workdir)
        check_name(workdir)
        self._remote = remote.url_of(workdir) is not None
        self.folder = (workdir if self._remote else workdir.absolute()) / "checkpoint"
        self._here = self.folder
        if self._remote:
            self._temporary = tempfile.TemporaryDirectory(prefix="ahl_jax-")
            self._here = Path(self._temporary.name)
            self._download(read_only=read_only)
        self._trunk = self._here / "trunk"
        self._manager: ocp.CheckpointManager | None = None
        if not self._remote:
            _check_plain(self.folder)
        if read_only and not self._here.is_dir():
            return
        options = ocp.CheckpointManagerOptions(
            step_prefix=_PREFIX,
            preservation_policy=LatestN(_KEPT),
            read_only=read_only,
            create=False,
            multiprocessing_options=_this_process_alone(),
        )
        with _writing(self.folder):
            if not read_only:
                self._here.mkdir(parents=True, exist_ok=True)
                # Orbax would do it in the background, and could take what is being written for it.
                self._remove_unfinished()
            self._manager = ocp.CheckpointManager(self._here, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the saves under way.

        Raises:
            UserError: if one of them failed, as on a full disk.
        """
        if self._manager is not None:
            manager, self._manager = self._manager, None
            with self._saving():
                manager.close()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """As ``_writing``, and nothing unfinished stays where it fails."""
        try:
            with _writing(self.folder):
                yield
        except UserError:
            # Other threads of Orbax go on for a moment.
            for _ in range(10):
                self._remove_unfinished()
                time.sleep(0.2)
                if not self._unfinished():
                    break
            raise

    def _unfinished(self) -> list[Path]:
        return list(self._here.glob(f"*{_TEMPORARY}*"))

    def _remove_unfinished(self) -> None:
        for leftover in self._unfinished():
            shutil.rmtree(leftover, ignore_errors=True)

    def _download(self, *, read_only: bool) -> None:
        """Copy what is whole; remove what is not, unless nothing is to be changed."""
        found = remote.objects(self.folder)
        whole = {name.partition("/")[0] for name in found if name.endswith(f"/{_WHOLE}")}
        wanted = {name: each for name, each in found.items() if name.partition("/")[0] in whole}
        remote.download(self.folder, wanted, self._here)
        for name in {n.partition("/")[0] for n in found if "/" in n} - whole:
            if not read_only:
                remove(self.folder / name)

    def _upload(self, name: str) -> None:
        """Upload a checkpoint in the place of the one there; remove those that are gone."""
        if not self._remote:
            return
        # Without it, what is there no longer counts as whole.
        remove(self.folder / name / _WHOLE)
        remove(self.folder / name)
        files = [p.relative_to(self._here) for p in (self._here / name).rglob("*") if p.is_file()]
        first = [p.as_posix() for p in files if p.name != _WHOLE]
        remote.upload(self._here, first, self.folder)
        remote.upload(self._here, [f"{name}/{_WHOLE}"], self.folder)
        there = {n.partition("/")[0] for n in remote.objects(self.folder) if "/" in n}
        for gone in there - {path.name for path in self._here.iterdir()}:
            remove(self.folder / gone / _WHOLE)
            remove(self.folder / gone)

    def save_trunk(self, name: str, params: PyTree, detector: PyTree = None) -> None:
        """Saves the trunk's parameters, unless the same ones are there already.

        Args:
            name: The trunk's name.
            params: Nested dicts of arrays.
            detector: The same, of the detector that it was trained with; None saves none.

        Raises:
            UserError: if they cannot be written.
        """
        host = jax.tree.map(to_host, params)
        if self.has_trunk() and (detector is None or self.has_detector()):
            with contextlib.suppress(UserError):
                saved_name, saved = self.load_trunk()
                if saved_name == name and digest(saved) == digest(host):
                    return
        items = {} if detector is None else {"detector": jax.tree.map(to_host, detector)}
        args = _args({"name": name}, params=host, **items)
        with self._saving(), _checkpointer() as checkpointer:
            checkpointer.save(self._trunk, args=args, force=True)
            self._upload(self._trunk.name)

    def has_trunk(self) -> bool:
        """Whether a trunk is saved."""
        return self._trunk.is_dir()

    def has_detector(self) -> bool:
        """Whether the detector that the trunk was trained with is saved too."""
        return (self._trunk / "detector").is_dir()

    def load_detector(self) -> PyTree:
        """Reads the ``detector`` that ``save_trunk`` was given, with numpy arrays.

        Raises:
            UserError: if it is missing or damaged.
        """
        return self._read("trunk", "detector")[0]

    def load_trunk(self) -> tuple[str, PyTree]:
        """The trunk's name, and its parameters as nested dicts of numpy arrays.

        Raises:
            UserError: if they are missing or damaged.
        """
        params, metadata = self._read("trunk", "params")
        return metadata["name"], params

    def save(
        self, epoch: int, *, inference: PyTree = None, state: PyTree, metadata: dict[str, Any]
    ) -> None:
        """Starts to save one epoch, and returns as soon as the arrays are copied to the host.

        The checkpoint counts only once it is whole; then all but the newest two are removed. In
        object storage it is whole when this returns.
        Saving an epoch that is there already does nothing.

        Args:
            epoch: The epoch's number, larger than those saved before.
            inference: Nested dicts of arrays of at least one element; None saves none.
            state: Any pytree of arrays, typed PRNG keys and Python numbers.
            metadata: JSON types; returned with ``inference``.

        Raises:
            UserError: if this save, or the one before, cannot be written.
        """
        if self._manager is None:
            raise ValueError("these checkpoints are closed, or read-only")
        items = {} if inference is None else {"inference": jax.tree.map(to_host, inference)}
        args = _args(
            metadata,
            **items,
            # A flat dict: Orbax needs to know nothing of optimizer states and other containers.
            # It cannot save arrays of no elements, which their shape alone restores.
            state={key: leaf for key, leaf in flat_host(state).items() if leaf.size},
        )
        with self._saving():
            self._manager.wait_until_finished()
            if epoch not in self._manager.all_steps():
                self._manager.save(epoch, args=args)
                if self._remote:
                    self._manager.wait_until_finished()
                    self._upload(f"{_PREFIX}_{epoch}")

    def epochs(self) -> list[int]:
        """The epochs with a whole checkpoint, the newest last."""
        if self._manager is None:
            return []
        with _writing(self.folder):
            self._manager.wait_until_finished()
        return sorted(self._manager.all_steps())

    def latest_epoch(self) -> int | None:
        """The newest epoch with a whole checkpoint, or None."""
        return max(self.epochs(), default=None)

    def restore_state(self, like: PyTree, epoch: int | None = None) -> PyTree:
        """The training state of an epoch, bit for bit as it was saved.

        Args:
            like: A pytree with the structure, shapes and dtypes of the saved state, of arrays or
                ``jax.ShapeDtypeStruct``. A leaf that is sharded over several devices gives its
                sharding to the restored one.
            epoch: The epoch; by default the newest.

        Returns:
            A pytree like ``like``: JAX arrays and keys, numpy arrays, and Python numbers where it
            has them.

        Raises:
            UserError: if there is no such checkpoint, it is damaged, or it was saved with another
                structure, shape or dtype, hence with other settings or by another version.
        """
        name = self._name_of(epoch)
        saved, _ = self._read(name, "state")
        leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
        wanted = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
        abstract = {key: host_shape(leaf) for key, leaf in wanted.items()}
        for key, leaf in abstract.items():
            if leaf.size == 0:
                saved[key] = np.zeros(leaf.shape, leaf.dtype)
        differ = sorted(saved.keys() ^ wanted.keys()) or [
            key
            for key, leaf in abstract.items()
            if (saved[key].shape, saved[key].dtype) != (leaf.shape, leaf.dtype)
        ]
        if differ:
            raise UserError(
                f"the training state in {self.folder / name} was saved with other settings, or by "
                f"another version of ahl_jax ({differ[0]} does not fit); go on with what it was "
                "saved with, or train anew in another folder"
            )
        restored = [from_host(saved[key], leaf) for key, leaf in wanted.items()]
        return jax.tree.unflatten(treedef, restored)

    def restore_inference(self, epoch: int | None = None) -> tuple[PyTree, dict[str, Any]]:
        """Reads the ``inference`` and ``metadata`` that ``save`` was given, nothing of the state.

        Args:
            epoch: The epoch; by default the newest.

        Returns:
            Nested dicts of numpy arrays (tuples come back as lists), and the metadata.

        Raises:
            UserError: if there is no such checkpoint or it is damaged.
        """
        return self._read(self._name_of(epoch), "inference")

    def _name_of(self, epoch: int | None) -> str:
        latest = self.latest_epoch()
        if latest is None or self._manager is None:
            raise UserError(f"there is no checkpoint in {self.folder}; train first, or name the "
                            "folder that was given to the training")  # fmt: skip
        if epoch is not None and epoch not in self._manager.all_steps():
            raise UserError(f"there is no checkpoint of epoch {epoch} in {self.folder}; the newest "
                            f"is of epoch {latest}")  # fmt: skip
        return f"{_PREFIX}_{latest if epoch is None else epoch}"

    def _read(self, name: str, item: str) -> tuple[PyTree, dict[str, Any]]:
        return _read(self._here / name, item, self.folder / name)


def check_name(folder: Path) -> None:
    """Refuse a folder that the storage format cannot name.

    Raises:
        UserError: if its path is not UTF-8.
    """
    try:
        str(folder if remote.url_of(folder) else folder.absolute()).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the path of {printable(folder)} is not UTF-8, as checkpoints need; rename it, or "
            "name another folder"
        ) from error


def _args(metadata: dict[str, Any], **items: PyTree) -> ocp.args.Composite:
    """The items of one checkpoint: pytrees of numpy arrays, and a JSON item about them."""
    digests = {name: digest(tree) for name, tree in items.items()}
    digests["metadata"] = _digest_of(metadata)
    return ocp.args.Composite(
        metadata=ocp.args.JsonSave({"metadata": metadata, "sha256": digests}),
        **{name: ocp.args.PyTreeSave(tree) for name, tree in items.items()},
    )


def _check_plain(folder: Path) -> None:
    """Refuse links and devices in a folder that may be a stranger's, as they may lead anywhere.

    Raises:
        UserError: for the first one.
    """
    for path in (folder, *folder.rglob("*")):
        # Another process may remove what is being looked at.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            kind = path.lstat().st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                raise UserError(
                    f"{path} is a link or a device, which no checkpoint has; put the file or the "
                    "folder itself there"
                )


def _structure(checkpointer: ocp.Checkpointer, item: Path) -> PyTree:
    """What an item's _METADATA lists, of the size of its files and in its folder."""
    try:
        tree = checkpointer.metadata(item).item_metadata.tree
        leaves = jax.tree.leaves(tree)
        claimed = sum(
            np.dtype(leaf.dtype).itemsize * max(map(math.prod, (leaf.shape, *_chunks(leaf))))
            for leaf in leaves
        )
        names = [PurePosixPath(leaf.name) for leaf in leaves]
    except Exception as error:
        # Orbax gives None, or raises nearly anything.
        raise ValueError(f"{item.name}/_METADATA, or what it lists, cannot be read") from error
    if any(name.is_absolute() or ".." in name.parts for name in names):
        raise ValueError(f"{item.name}/_METADATA lists arrays of another folder")
    held = sum(path.stat().st_size for path in item.rglob("*") if path.is_file())
    if claimed > max(_SPARE, _DENSITY * held):
        raise ValueError(f"{item.name} says that it has {claimed:,} bytes, in {held:,} of files")
    return tree


def _chunks(leaf: Any) -> list[tuple[int, ...]]:
    """The shape of what an array is read in."""
    return [leaf.storage.chunk_shape] if leaf.storage and leaf.storage.chunk_shape else []


def _digest_of(metadata: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _checkpointer() -> ocp.Checkpointer:
    alone = _this_process_alone()
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _this_process_alone() -> ocp.options.MultiprocessingOptions:
    """Orbax is to wait for no other process, as it does by itself."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )


def _read(folder: Path, item: str, named: Path) -> tuple[PyTree, dict[str, Any]]:
    """One item of a checkpoint as numpy arrays, and the checkpoint's metadata.

    Args:
        folder: the checkpoint's, here.
        item: the item.
        named: what messages call the folder.
    """
    if not folder.is_dir():
        raise UserError(f"there is no checkpoint in {named}; train first, or name another folder")
    try:
        options = {"multiprocessing_options": _this_process_alone()}
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options), **options) as checkpointer:
            tree = _structure(checkpointer, folder / item)
            to_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            arrays = checkpointer.restore(
                folder / item, args=ocp.args.PyTreeRestore(restore_args=to_numpy)
            )
        with ocp.Checkpointer(ocp.JsonCheckpointHandler(**options), **options) as checkpointer:
            about = checkpointer.restore(folder / "metadata", args=ocp.args.JsonRestore())
        known, metadata = about["sha256"], about["metadata"]
        # Earlier versions had none of the metadata.
        if known.get("metadata", _digest_of(metadata)) != _digest_of(metadata):
            raise ValueError("the checksum of its metadata is wrong")
        if digest(arrays) != known[item]:
            raise ValueError(f"the checksum of {item} is wrong")
        return arrays, metadata
    except Exception as error:  # a damaged file can raise nearly anything
        raise UserError(
            f"the checkpoint in {named} is damaged ({reason(error)}); remove this folder to "
            "go on from an older checkpoint, if there is one, or train again"
        ) from error


def _writing(folder: Path) -> contextlib.AbstractContextManager[None]:
    """As ``writing``, for the errors that Orbax raises."""
    advice = "make room there, or name another folder"
    return writing(folder, advice, "checkpoints", (OSError, ValueError, RuntimeError))
