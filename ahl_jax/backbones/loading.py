"""Loading weights: from files of the user's, or from those that were imported once.

Imported weights are in the cache folder, one file per trunk.
"""

import dataclasses
import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from flax import nnx

from ahl_jax.backbones.folding import fold_batch_norm, parts, unfolded
from ahl_jax.backbones.trunk import Trunk, trunk_class, trunk_from_params
from ahl_jax.backbones.weights import MAX_BYTES, read_torch_weights
from ahl_jax.common.download import download
from ahl_jax.common.errors import UserError
from ahl_jax.common.files import alone, default_folder, replace_file, user_folder, writing
from ahl_jax.common.remote import url_of

_log = logging.getLogger(__name__)

_NO_ROOM = "make room there, or name another folder with `cache_dir`"


def load_trunk(
    name: str,
    weights: Path | None = None,
    cache_dir: Path | None = None,
    *,
    levels: int = 1,
    apart: bool = False,
) -> Trunk:
    """Loads a trunk's weights and folds the batch norm in.

    Args:
        name: key in ``TRUNKS``.
        weights: a state dict (.pth or .safetensors); None for those that were imported, else for
            the trunk's own.
        cache_dir: where imported weights are; see ``imported_file``.
        levels: how many of the network's levels the feature map is made of.
        apart: whether to keep the weights with their batch norm apart as well.

    Raises:
        UserError: if there is no such trunk, it has fewer levels or no batch norm to keep apart,
            there are no weights, or they are another network's.
    """
    cls = trunk_class(name)
    if apart and cls.batch_norm_epsilon is None:
        raise UserError(f"the trunk {name} has no batch norm to train; leave `batch_norm` out")
    trunk, tensors = _read(
        name, {"": weights} if weights else weights_files(name, cache_dir), levels
    )
    if not apart:
        return trunk
    return dataclasses.replace(trunk, unfolded=unfolded(nnx.eval_shape(cls), tensors))


def _read(
    name: str, files: Mapping[str, Path], levels: int = 1
) -> tuple[Trunk, dict[str, np.ndarray]]:
    """A trunk and the state dict of its official network, from files as of ``weights_files``."""
    cls = trunk_class(name)
    tensors = {
        prefix + key: tensor
        for prefix, file in files.items()
        for key, tensor in read_torch_weights(file).items()
    }
    try:
        tensors = cls.official_names(tensors) if hasattr(cls, "official_names") else tensors
        params = fold_batch_norm(nnx.eval_shape(cls), tensors, cls.batch_norm_epsilon, cls.unused)
    except ValueError as error:
        raise UserError(
            f"the weights file {' or '.join(map(str, files.values()))} does not fit {name}: "
            f"{error}; give weights of {name} with `trunk_weights`, or to `ahl weights import`"
        ) from error
    return trunk_from_params(name, params, levels), tensors


def weights_files(name: str, cache_dir: Path | None = None) -> dict[str, Path]:
    """The files that ``load_trunk`` reads where it is given none, by the prefixes of their names.

    Args:
        name: key in ``TRUNKS``.
        cache_dir: where imported weights are; see ``imported_file``.

    Raises:
        UserError: if there is none.
    """
    imported, cls = imported_file(name, cache_dir), trunk_class(name)
    if imported.is_file():
        return {"": imported}
    if hasattr(cls, "sides"):
        return {
            prefix: file
            for prefix, side in cls.sides.items()
            for file in weights_files(side, cache_dir).values()
        }
    if hasattr(cls, "default_weights"):
        return {"": cls.default_weights()}
    if cls.address is None:
        raise UserError(
            f"{name} needs weights that only their makers hand out, under a licence: bring the "
            f"file with `ahl weights import FILE --trunk {name}` or with `trunk_weights`"
        )
    file = cls.address.rpartition("/")[2]
    raise UserError(
        f"{name} needs {file}: run `ahl weights download {name}`, or bring the file with "
        f"`ahl weights import {file} --trunk {name}` or with `trunk_weights`"
    )


def imported_file(trunk: str, cache_dir: Path | None = None) -> Path:
    """Where a trunk's imported weights are, once they are there.

    Args:
        trunk: its name.
        cache_dir: the folder that keeps features too; see ``default_folder``. Where that is in
            object storage, weights are in the one that the user has by default.
    """
    folder = cache_dir or default_folder()
    folder = user_folder(None) if url_of(folder) else folder
    return folder / "weights" / f"{trunk}.safetensors"


def import_weights(file: Path, name: str, cache_dir: Path | None = None) -> Path:
    """Keeps a trunk's weights, so that ``load_trunk`` finds them without a file.

    Args:
        file: a state dict (.pth or .safetensors).
        name: key in ``TRUNKS``.
        cache_dir: where they are kept; see ``imported_file``.

    Returns:
        The file that was written, in the place of an older one and in one step.

    Raises:
        UserError: if the weights do not fit the trunk, or nothing can be written.
    """
    return _keep(_fitting(file, name), name, cache_dir)


def download_weights(
    name: str, cache_dir: Path | None = None, sha256: str | None = None, *, progress: bool = True
) -> Path:
    """Downloads a trunk's official weights and keeps them, as ``import_weights`` does.

    A download that broke off goes on where it was.

    Args:
        name: key in ``TRUNKS``.
        cache_dir: where they are kept; see ``imported_file``.
        sha256: of the file, 64 hexadecimal digits; by default its first ones, where its name states
            them, else none.
        progress: show how far it is, on stderr.

    Returns:
        The file that was written.

    Raises:
        UserError: if the trunk's weights are in a package, the download fails, has another SHA-256
            or does not fit the trunk, or nothing can be written.
    """
    cls = trunk_class(name)
    address = cls.address
    if address is None:
        there = " and ".join(map(str, weights_files(name, cache_dir).values()))
        raise UserError(f"{name} has its weights in {there} already")
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise UserError(f"`sha256` is {sha256!r}; it must be 64 hexadecimal digits")
    file = address.rpartition("/")[2]
    stated = re.search(r"-([0-9a-f]{8})\.", file)
    expected = (sha256 or (stated[1] if stated else "")).lower()
    folder = imported_file(name, cache_dir or user_folder("AHL_CACHE")).parent / "downloads"
    part = folder / f"{file}.part"
    with (
        writing(folder, _NO_ROOM, "the download"),
        alone(folder, lambda: _log.info("another process downloads weights; waiting for it")),
    ):
        otherwise = f"bring the file with `ahl weights import {file} --trunk {name}`"
        download(address, part, MAX_BYTES, otherwise, progress=progress)
        with part.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        try:
            if not found.startswith(expected):
                raise UserError(
                    f"{address} has the SHA-256 {found}, which should "
                    f"{'be' if sha256 else 'start with'} {expected}; the download is removed"
                )
            tensors = _fitting(part, name)
        except UserError:
            part.unlink()
            raise
        if not expected:
            _log.warning(
                "nothing but the secure connection vouches for %s; its SHA-256 is %s", file, found
            )
        path = _keep(tensors, name, cache_dir)
        part.unlink()
    return path


def _fitting(file: Path, name: str) -> dict[str, np.ndarray]:
    """The tensors of a weights file that a trunk needs, in float32 or wider.

    Raises:
        UserError: if they do not fit.
    """
    _, tensors = _read(name, {"": file})
    return {
        # float32 holds the narrower ones exactly.
        key: np.ascontiguousarray(tensors[key], np.result_type(tensors[key], np.float32))
        for _, part in parts(nnx.eval_shape(trunk_class(name)))
        for key in part.tensors
    }


def _keep(tensors: dict[str, np.ndarray], name: str, cache_dir: Path | None) -> Path:
    # Not a folder that would be gone with the process.
    path = imported_file(name, cache_dir or user_folder("AHL_CACHE"))
    with writing(path.parent, _NO_ROOM, "weights"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, safetensors.numpy.save(tensors))
    return path
