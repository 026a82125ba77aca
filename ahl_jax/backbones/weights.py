"""Reads network weights from torch checkpoints and safetensors files, without torch.

No pickled code runs: see ``_pickle_values``, which reads the stream as data.
"""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from ahl_jax.backbones._pickle_values import FormatError, StorageRef, TensorRef, read_value
from ahl_jax.common.errors import UserError

# What torch's original format starts with: pickles of this number and of the format's version.
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001

MAX_BYTES = 2_000_000_000
"""Of a file; the largest network has 1.2 GB."""

_SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip

_Storages = Callable[[StorageRef], memoryview]


def read_torch_weights(path: Path) -> dict[str, np.ndarray]:
    """Reads the named tensors of a weights file, in the file's order.

    Understands ``torch.save`` files of both formats (zip, and the one before torch 1.6) and
    ``.safetensors``. A state dict may lie under the key ``state_dict``; the prefix ``module.`` of
    data-parallel training is removed. Entries that are not tensors (an epoch number, say) are left
    out. Nothing in the file is executed, and memory stays within a small multiple of its size.

    Args:
        path: the file.

    Returns:
        Tensor name to array of the stored shape and dtype; arrays may be read-only and strided.

    Raises:
        UserError: if the file cannot be read, is damaged, or holds anything but plain tensors.
    """
    path = Path(path)
    if not path.is_file():
        if path.is_dir():
            raise UserError(f"{path} is a folder; give a file in it, .pth or .safetensors")
        raise UserError(f"there is no weights file {path}; check the path")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FormatError(f"has more than {MAX_BYTES:,} bytes, which no supported network has")
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            return _named(_read_safetensors(data))
        if data.startswith(b"PK\x03\x04"):
            return _named(_read_zip(data))
        return _named(_read_legacy(data))
    except OSError as error:
        raise UserError(f"cannot read the weights file {path}: {error.strerror}") from error
    except FormatError as error:
        raise UserError(
            f"the weights file {path} {error}; bring a whole file with a plain state dict "
            "(torch.save, or .safetensors)"
        ) from error


def _read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    try:
        parts = safetensors.deserialize(data)
    except (safetensors.SafetensorError, ValueError) as error:
        raise FormatError("is damaged or is not a safetensors file") from error
    # safetensors.numpy knows no bfloat16 and safetensors.flax narrows int64; hence the table.
    if unknown := {part["dtype"] for _, part in parts} - _SAFETENSORS.keys():
        raise FormatError(f"has numbers of type {min(unknown)}, which no supported network uses")
    try:
        return {
            name: np.frombuffer(part["data"], _dtype(_SAFETENSORS[part["dtype"]])).reshape(
                part["shape"]
            )
            for name, part in parts
        }
    except (ValueError, OverflowError) as error:
        # Where there are no numbers, the other sides may be longer than NumPy's can be.
        raise FormatError("has a tensor of an impossible shape") from error


def _read_zip(data: bytes) -> dict[str, Any]:
    """The format since torch 1.6: FOLDER/data.pkl, and each storage in FOLDER/data/KEY."""
    budget = len(data)

    def member(archive: zipfile.ZipFile, name: str) -> bytes:
        nonlocal budget
        info = archive.getinfo(name)
        # torch never compresses. Compressed or overlapping members are how a small file would
        # claim gigabytes, so together they may not exceed the file.
        budget -= info.file_size
        if info.compress_type != zipfile.ZIP_STORED or budget < 0:
            raise FormatError("has compressed or overlapping parts, which torch never writes")
        return archive.read(info)

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            folders = [
                n.removesuffix("data.pkl") for n in names if n.split("/")[1:] == ["data.pkl"]
            ]
            if len(folders) != 1:
                raise FormatError("is a zip file without the data.pkl of a torch checkpoint")
            folder = folders[0]
            if f"{folder}byteorder" in names and member(archive, f"{folder}byteorder") != b"little":
                raise FormatError("was written on a big-endian machine, which is not supported")
            value, _ = read_value(io.BytesIO(member(archive, f"{folder}data.pkl")))
            blobs: dict[str, memoryview] = {}

            def storage(ref: StorageRef) -> memoryview:
                if ref.key not in blobs:
                    blobs[ref.key] = memoryview(member(archive, f"{folder}data/{ref.key}"))
                return blobs[ref.key]

            return _resolve(value, storage)
    except (
        zipfile.BadZipFile, zlib.error, KeyError, EOFError, struct.error, ValueError,
        RuntimeError, OverflowError,
    ) as error:  # fmt: skip
        if isinstance(error, FormatError):
            raise
        raise FormatError("is damaged or cut short") from error


def _read_legacy(data: bytes) -> dict[str, Any]:
    """The format before torch 1.6: five pickles, then for each storage its length and numbers."""
    stream = io.BytesIO(data)
    if data[:1] != b"\x80" or read_value(stream)[0] != _MAGIC:
        raise FormatError("is not a torch checkpoint")
    version, system = read_value(stream)[0], read_value(stream)[0]
    if version != _VERSION or type(system) is not dict or system.get("little_endian") is not True:
        raise FormatError("is of a version or a byte order that is not supported")
    value, refs = read_value(stream)
    keys = read_value(stream)[0]
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise FormatError("is damaged or is not a torch checkpoint")
    position = stream.tell()
    view = memoryview(data)
    blobs: dict[str, memoryview] = {}
    for key in keys:
        if key not in refs or key in blobs:
            raise FormatError("lists storages that no tensor uses")
        if view[position : position + 8] != struct.pack("<q", refs[key].numel):
            raise FormatError("is damaged or cut short")
        start = position + 8
        position = start + refs[key].numel * _dtype(refs[key].dtype).itemsize
        if position > len(data):
            raise FormatError("is damaged or cut short")
        blobs[key] = view[start:position]
    if not refs.keys() <= blobs.keys():
        raise FormatError("lacks the numbers of some of its tensors")
    return _resolve(value, lambda ref: blobs[ref.key])


def _tensors(value: Any) -> dict[Any, TensorRef]:
    """The tensors of a state dict, or of the one under ``state_dict``."""
    if type(value) is dict and type(value.get("state_dict")) is dict:
        value = value["state_dict"]
    if type(value) is not dict:
        raise FormatError("holds no state dict of tensors")
    tensors = {name: item for name, item in value.items() if isinstance(item, TensorRef)}
    if not tensors:
        raise FormatError("holds no state dict of tensors")
    return tensors


def _resolve(value: Any, storage: _Storages) -> dict[str, Any]:
    return {name: _array(ref, storage) for name, ref in _tensors(value).items()}


def _array(ref: TensorRef, storage: _Storages) -> np.ndarray:
    """A view of the storage's bytes: no copy, however many tensors share the storage."""
    blob, dtype = storage(ref.storage), _dtype(ref.storage.dtype)
    numel = ref.storage.numel
    if len(blob) != numel * dtype.itemsize:
        raise FormatError("is damaged or cut short")
    shape, strides = ref.shape, ref.strides
    # The last test refuses expanded tensors, whose copies would be larger than the file.
    if len(shape) != len(strides) or len(shape) > 8 or math.prod(shape) > numel:
        raise FormatError("has a tensor that does not fit its storage")
    if 0 in shape:
        if math.prod(n for n in shape if n) >= 2**48:  # NumPy's sizes would overflow
            raise FormatError("has a tensor that does not fit its storage")
        return np.empty(0, dtype).reshape(shape)
    if ref.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) >= numel:
        raise FormatError("has a tensor that does not fit its storage")
    # The stride of an axis of length one is arbitrary, and never used.
    steps = [s * dtype.itemsize if n > 1 else 0 for n, s in zip(shape, strides, strict=True)]
    return np.ndarray(shape, dtype, blob, ref.offset * dtype.itemsize, steps)


def _dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _named(tensors: dict[Any, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the prefix of data-parallel training."""
    named = {str(name).removeprefix("module."): tensor for name, tensor in tensors.items()}
    if len(named) != len(tensors):
        raise FormatError("holds two tensors of one name")
    return named
