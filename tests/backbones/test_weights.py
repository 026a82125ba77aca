"""Weights files: what torch wrote is read exactly, and nothing in a hostile file runs."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from ahl_jax.backbones import read_torch_weights
from ahl_jax.common.errors import UserError
from tests.goldens.inputs import GOLDENS
from tests.goldens.torch_zip import number, numbers, text

_WHOLE = np.arange(24, dtype=np.float32)
PLAIN = {
    "whole": _WHOLE.reshape(2, 3, 4),
    "transposed": _WHOLE.reshape(4, 6).T,
    "window": _WHOLE.reshape(4, 6)[1:3, 2:5],
    "steps": _WHOLE[1::5],
    "half": np.array([0.5, -2.0, 65504.0], np.float16),
    "brain": np.array([[1.0, -3.140625]], ml_dtypes.bfloat16),
    "double": np.array([1e-300]),
    "long": np.array([2**40, -1]),
    "byte": np.array([0, 255], np.uint8),
    "bool": np.array([True, False, True]),
    "scalar": np.array(7),
    "empty": np.zeros((0, 3), np.float32),
    "parameter": np.ones(2, np.float32),
}
TRAINING = ["conv.weight", "conv.bias", "bn.weight", "bn.bias"]
TRAINING += ["bn.running_mean", "bn.running_var", "bn.num_batches_tracked"]


def _assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)


@pytest.mark.parametrize("name", ["zip.pth", "zip_protocol4.pth", "legacy.pth"])
def test_reads_what_torch_wrote(name: str) -> None:
    _assert_same(read_torch_weights(GOLDENS / name), PLAIN)


@pytest.mark.parametrize("name", ["training.pth", "training_legacy.pth"])
def test_finds_the_state_dict_of_a_data_parallel_training_run(name: str) -> None:
    found = read_torch_weights(GOLDENS / name)
    assert list(found) == TRAINING
    for index, value in enumerate(found.values()):
        assert (value == index).all()


def test_reads_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {name: value.copy() for name, value in PLAIN.items()}
    path.write_bytes(
        safetensors.numpy.save({f"module.{name}": value for name, value in tensors.items()})
    )
    found = read_torch_weights(path)
    _assert_same({name: found[name] for name in PLAIN}, PLAIN)


# Hostile and broken files. A file is built from the pickle of its state dict, in both formats.


def _zip(
    payload: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", payload)
        for key, blob in storages.items():
            archive.writestr(f"archive/data/{key}", blob)
    return buffer.getvalue()


def _legacy(payload: bytes, storages: dict[str, bytes]) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True}
    head = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, system)]
    body = b"".join(struct.pack("<q", len(blob) // 4) + blob for blob in storages.values())
    return b"".join(head) + payload + pickle.dumps(list(storages), 2) + body


FORMATS = pytest.mark.parametrize("build", [_zip, _legacy])
Build = Callable[[bytes, dict[str, bytes]], bytes]


def _state_dict(numel: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """Pickle of {"w": float32 tensor} as torch writes it, with any claims about its size."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    storage += number(numel) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset)
    tensor += numbers(shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text("w") + tensor + b"s."


def _refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_torch_weights(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@FORMATS
def test_hand_made_file_is_read(tmp_path: Path, build: Build) -> None:
    # Without this, the refusals below could be for the wrong reason.
    (tmp_path / "w.pth").write_bytes(
        build(_state_dict(6, 1, (2, 2), (1, 3)), {"0": np.arange(6, dtype="<f4").tobytes()})
    )
    found = read_torch_weights(tmp_path / "w.pth")
    np.testing.assert_array_equal(found["w"], [[1, 4], [2, 5]])


class _Evil:
    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@FORMATS
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_code_in_a_pickle_is_refused_and_not_run(
    tmp_path: Path, build: Build, protocol: int
) -> None:
    witness = tmp_path / "witness"
    for evil in (
        _Evil(os.mkdir, str(witness)),
        _Evil(eval, f"__import__('os').mkdir('{witness}')"),
    ):
        payload = pickle.dumps({"w": evil}, protocol)
        _refused(tmp_path / "w.pth", build(payload, {}))
        _refused(tmp_path / "w.pth", payload)
        assert not witness.exists()
    # The same bytes do run in an unpickler: the payload is live.
    pickle.loads(payload)
    assert witness.exists()


@FORMATS
@pytest.mark.parametrize(
    "payload",
    [
        b"\x80\x02(imkdir\n.",  # INST
        b"\x80\x02(cos\nmkdir\n" + text("x") + b"o.",  # OBJ
        b"\x80\x02cos\nmkdir\n" + text("x") + b"\x85\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x02cos\nsystem\n" + text("x") + b"\x85R.",
        b"\x80\x02ctorch\nload\n)R.",
        b"\x80\x02ccollections\nOrderedDict.fromkeys\n)R.",
        b"\x80\x02ccollections\nOrderedDict\n(K\x01tR.",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.",  # BUILD on a global
        b"\x80\x02)R.",
        b"\x80\x02R.",
        b"\x80\x02(R.",
        b"\x80\x02h\x05.",
        b"\x80\x02}" + b")\x85" * 50 + b"K\x01s.",  # a tuple as key
        b"\x80\x02}" + text("w") + b"K\x01s.",  # no tensor at all
        b"\x80\x02" + text("storage") + b"Q.",
        b"\x80\x02}(K\x01u.",  # an odd number of items
        b"\x80\x02.",
        b"",
    ],
)
def test_other_pickles_are_refused(tmp_path: Path, build: Build, payload: bytes) -> None:
    _refused(tmp_path / "w.pth", build(payload, {}))


@FORMATS
@pytest.mark.parametrize(
    ("numel", "offset", "shape", "strides"),
    [
        (4, 0, (5,), (1,)),  # longer than the storage
        (4, 1, (4,), (1,)),  # pushed over its end
        (4, 0, (2, 2), (3, 1)),  # strides over its end
        (4, 0, (2**40,), (0,)),  # expanded
        (4, 0, (2**40, 2**40), (0, 0)),
        (4, 0, (4,), (2**62,)),
        (4, 0, (4,), (-1,)),
        (4, 3, (4,), (-1,)),
        (4, -1, (4,), (1,)),
        (4, 0, (-4,), (1,)),
        (4, 0, (4,), (1, 1)),
        (4, 0, (1,) * 100, (1,) * 100),
        (4, 0, (0, 2**47, 2**47), (1, 1, 1)),
        (2**40, 0, (2**40,), (1,)),  # a storage that the file does not hold
        (2**62, 0, (4,), (1,)),
        (-4, 0, (4,), (1,)),
        (3, 0, (3,), (1,)),  # a storage longer than said
    ],
)
def test_false_sizes_are_refused_in_little_memory(
    tmp_path: Path, build: Build, numel: int, offset: int, shape: tuple, strides: tuple
) -> None:
    content = build(_state_dict(numel, offset, shape, strides), {"0": bytes(16)})
    tracemalloc.start()
    try:
        _refused(tmp_path / "w.pth", content)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_compressed_and_overlapping_zip_members_are_refused(tmp_path: Path) -> None:
    zeros = bytes(4 * 2**22)
    bomb = _zip(_state_dict(2**22, 0, (2**22,), (1,)), {"0": zeros}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**16
    tracemalloc.start()
    try:
        message = _refused(tmp_path / "w.pth", bomb)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()
    assert "compressed" in message


def test_a_flood_of_opcodes_is_refused(tmp_path: Path) -> None:
    message = _refused(tmp_path / "w.pth", _zip(b"\x80\x02" + b"}" * 2_100_000 + b".", {}))
    assert "far more values" in message


@FORMATS
def test_a_missing_storage_is_refused(tmp_path: Path, build: Build) -> None:
    _refused(tmp_path / "w.pth", build(_state_dict(4, 0, (4,), (1,)), {}))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in (b"", b"hello, I am a text file\n", b"PK\x03\x04", bytes(100), b"\x80" * 99):
        _refused(path, content)
    _refused(path, struct.pack("<Q", 2**63) + b"{}")
    header = b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    _refused(path, struct.pack("<Q", len(header)) + header + bytes(16))
    _refused(path, pickle.dumps({"w": [1.0, 2.0]}))
    with pytest.raises(UserError, match="no weights file"):
        read_torch_weights(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="is a folder"):
        read_torch_weights(tmp_path)


_GOLDEN = {
    name: (GOLDENS / name).read_bytes() for name in ("zip.pth", "legacy.pth", "training_legacy.pth")
}


@pytest.mark.parametrize("name", list(_GOLDEN))
def test_truncated_files_are_refused(tmp_path: Path, name: str) -> None:
    content = _GOLDEN[name]
    for length in range(0, len(content), 37):
        _refused(tmp_path / "w.pth", content[:length])
    _refused(tmp_path / "w.pth", content[:-1])


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    name=st.sampled_from(list(_GOLDEN)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damaged_files_give_tensors_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, changes: list[tuple[float, int]]
) -> None:
    content = bytearray(_GOLDEN[name])
    for place, byte in changes:
        content[int(place * (len(content) - 1))] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    path.write_bytes(content)
    try:
        found = read_torch_weights(path)
    except UserError:  # any other error fails the test
        return
    assert all(value.copy().nbytes <= len(content) for value in found.values())
