"""Files as ``torch.save`` writes them, without torch."""

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}


def torch_zip(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A state dict of float32 and int64 tensors in the format since torch 1.6."""
    items = b"".join(
        text(name) + tensor(str(key), value) for key, (name, value) in enumerate(tensors.items())
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}(" + items + b"u.")
        for key, value in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{key}", value.tobytes())
    return buffer.getvalue()


def tensor(key: str, value: np.ndarray) -> bytes:
    """Pickle of a contiguous tensor whose storage has this key."""
    storage = b"(" + text("storage") + b"ctorch\n" + _STORAGES[str(value.dtype)].encode() + b"\n"
    storage += text(key) + text("cpu") + number(value.size) + b"tQ"
    strides = [step // value.itemsize for step in np.empty(value.shape, value.dtype).strides]
    shape = numbers(value.shape) + numbers(tuple(strides))
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + shape
    return rebuilt + b"\x89ccollections\nOrderedDict\n)RtR"


def number(value: int) -> bytes:
    """Pickle of an integer."""
    return pickle.dumps(value, 2)[2:-1]


def numbers(values: tuple[int, ...]) -> bytes:
    """Pickle of a tuple of integers."""
    return b"(" + b"".join(map(number, values)) + b"t"


def text(value: str) -> bytes:
    """Pickle of a short string."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()
