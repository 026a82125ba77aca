"""What fuzzing does not find by chance: files that were made to do harm."""

import gzip
import io
import json
import lzma
import os
import shutil
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ahl_jax import UserError, preset
from ahl_jax.backbones import read_torch_weights
from ahl_jax.common.files import alone, read_file, replace_file
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.builders.archives import unpack
from ahl_jax.data.prepared import load as load_prepared
from ahl_jax.data.remembered import Row, find
from ahl_jax.data.types import Dataset
from ahl_jax.inference.predictor import load
from ahl_jax.inference.threshold import read_calibration
from ahl_jax.run.again import tell_places
from ahl_jax.run.calibrate import recalibrate
from ahl_jax.storage.checkpoints import Checkpoints
from ahl_jax.storage.workdir import Workdir
from tests.data.builders.miniatures import ALL
from tests.runs import FinishedRun

BYTES = 64 * 2**20


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the user's that a stranger would like to read or to spoil."""
    (tmp_path / "home").mkdir()
    path = tmp_path / "home/secret"
    path.write_text("mine")
    return path


@pytest.fixture
def written(tmp_path: Path) -> Workdir:
    run = Workdir(tmp_path / "run")
    run.claim(preset("debug", "elpv", shots=3), overwrite=False)
    run.write_images([Row("a", "", "train", "0")])
    with Checkpoints(run.path) as checkpoints:
        w = {"w": np.arange(6, dtype=np.float32)}
        checkpoints.save(1, inference=w, state=w, metadata={})
    run.write_calibration('{"scores": [13.4, 90.6], "locations": [0.5, 1.5]}\n')
    return run


READERS: dict[str, Callable[[Workdir], object]] = {
    "run.json": lambda run: run.config(),
    "images.csv": lambda run: run.images(),
    "checkpoint/calibration.json": lambda run: read_calibration(run.path / "checkpoint"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("made", ["link", "endless", "pipe", "folder", "deep"])
@pytest.mark.parametrize("name", READERS)
def test_a_runs_file_is_a_file_and_no_larger_than_it_may_be(
    written: Workdir, secret: Path, name: str, made: str
) -> None:
    path = written.path / name
    path.unlink()
    if made == "pipe":
        os.mkfifo(path)
    elif made == "folder":
        path.mkdir()
    elif made == "deep":
        path.write_text("[" * 10**6)
    else:
        path.symlink_to(secret if made == "link" else "/dev/zero")
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as caught:
            READERS[name](written)
        assert tracemalloc.get_traced_memory()[1] < BYTES
    finally:
        tracemalloc.stop()
    assert "mine" not in str(caught.value)


def test_a_text_has_a_largest_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(9))
    assert read_file(tmp_path / "a", 9) == bytes(9)
    os.truncate(tmp_path / "a", 2**40)
    with pytest.raises(ValueError, match="it has more than 9 bytes"):
        read_file(tmp_path / "a", 9)


@pytest.mark.parametrize("place", ["checkpoint", "checkpoint/epoch_1", "checkpoint/epoch_1/d"])
def test_a_link_in_a_checkpoint_is_not_followed(written: Workdir, secret: Path, place: str) -> None:
    path = written.path / place
    shutil.rmtree(path, ignore_errors=True)
    path.symlink_to(secret.parent)
    with pytest.raises(UserError, match=f"{place} is a link or a device"):
        load(written.path)
    with pytest.raises(UserError, match="is a link or a device"):
        recalibrate(written.path, [])
    assert os.listdir(secret.parent) == ["secret"]


def test_a_checkpoint_of_another_size_than_its_files_is_refused(written: Workdir) -> None:
    item = written.path / "checkpoint/epoch_1/inference"
    shutil.rmtree(item)
    # As zarr keeps it without the database, an array without any chunk is its fill value.
    (item / "w").mkdir(parents=True)
    about = {"chunks": [2**40], "compressor": None, "dtype": "<f4", "fill_value": None}
    about |= {"filters": None, "order": "C", "shape": [2**40], "zarr_format": 2}
    (item / "w/.zarray").write_text(json.dumps(about))
    key = {"key_metadata": [{"key": "w", "key_type": 2}]}
    value = {"value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False}}
    described = {"tree_metadata": {"('w',)": key | value}, "use_ocdbt": False, "use_zarr3": False}
    (item / "_METADATA").write_text(json.dumps(described))
    with (
        Checkpoints(written.path, read_only=True) as checkpoints,
        pytest.raises(UserError, match=r"inference says that it has 4,398,046,511,104 bytes"),
    ):
        checkpoints.restore_inference()
    elsewhere = {"key_metadata": [{"key": "../../../../home/w", "key_type": 2}]} | value
    (item / "_METADATA").write_text(json.dumps(described | {"tree_metadata": {"x": elsewhere}}))
    with (
        Checkpoints(written.path, read_only=True) as checkpoints,
        pytest.raises(UserError, match="is damaged"),
    ):
        checkpoints.restore_inference()


def test_nothing_is_written_through_a_link(tmp_path: Path, secret: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("report.html", ".report.html.tmp", ".lock"):
        (run / name).symlink_to(secret)
    replace_file(run / "report.html", "new")
    assert (run / "report.html").read_text() == "new"
    with pytest.raises(OSError, match="is a link"), alone(run, lambda: None):
        pass
    assert secret.read_text() == "mine"


def test_images_are_found_by_what_a_stranger_lists_alone_if_they_are_images(
    tmp_path: Path, secret: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in (data / "a.png", tmp_path / "home/b.png"):
        Image.new("L", (9, 9)).save(path)
    shutil.copy(tmp_path / "home/b.png", tmp_path / "home/c")
    (data / "link.png").symlink_to(tmp_path / "home/b.png")
    from ahl_jax.data.images import image_digest

    known, of_secret = (image_digest(path)[:16] for path in (data / "a.png", secret))
    names = ["a.png", "../home/b.png", "link.png", "../home/c", str(tmp_path / "home/c"), "x\0.png"]
    names += [str(secret), "../home/secret", "/dev/zero", "/dev/stdin", ""]
    rows = [Row(name, "cut", "test", known) for name in names]
    rows += [Row(str(secret), "cut", "test", of_secret), Row(str(secret), "cut", "unused", "")]
    found = find(rows, Dataset("d", (), (), {}), DataConfig(str(data)), by_name=False)
    assert [sample.path for sample in found.split.test] == [data / "a.png"]
    assert found.split.unused == ()


def test_the_folders_that_a_run_names_are_told(
    written: Workdir, secret: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = preset("debug", str(secret.parent))
    written.write_images([Row("a.png", "", "train", "0"), Row("/else/b.png", "", "test", "0")])
    with caplog.at_level("INFO", "ahl_jax"):
        tell_places(written, here)
    assert caplog.messages == [
        f"reading the images that {written.path} names, in {secret.parent} and /else"
    ]


def _tar(members: dict[str, int], pax: dict[str, str] | None = None) -> bytes:
    """Members of zeros, by their sizes."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:", format=tarfile.PAX_FORMAT) as packed:
        for name, size in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = size, pax or {}
            packed.addfile(member, io.BytesIO(bytes(size)))
    return content.getvalue()


def _overlapping() -> bytes:
    """A zip whose every member is the same megabytes of zeros, which it holds once."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("0", bytes(2**24))
        (first,) = packed.infolist()
        for number in range(1, 200):
            again = zipfile.ZipInfo(str(number))
            for field in ("CRC", "compress_size", "file_size", "header_offset", "compress_type"):
                setattr(again, field, getattr(first, field))
            packed.filelist.append(again)
        packed._didModify = True
    return content.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "x.zip": _overlapping,
    # Of a header of any length; tarfile would read it at once.
    "x.tar.xz": lambda: lzma.compress(_tar({"a": 1}, {"comment": "0" * 2**24}), preset=0),
    # Of what follows the end.
    "x.tar.gz": lambda: gzip.compress(_tar({"a": 1}) + bytes(2**25), 9),
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_archive_of_far_more_than_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "from").mkdir()
    content = BOMBS[name]()
    (tmp_path / "from" / name).write_bytes(content)
    monkeypatch.setattr("ahl_jax.data.builders.archives._SPARE", 2**24)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="far more than images"):
            unpack(tmp_path / "from", ["x"], tmp_path / "into")
        assert tracemalloc.get_traced_memory()[1] < BYTES / 4
    finally:
        tracemalloc.stop()


def test_a_prepared_data_set_imports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ahl_jax.data.builders import builder_class
    from ahl_jax.data.prepare import prepare

    monkeypatch.setenv("AHL_DATA", str(tmp_path / "prepared"))
    monkeypatch.setattr(builder_class("headct"), "COUNTS", {})
    ALL["headct"](tmp_path / "headct")
    (folder,) = prepare("headct", tmp_path / "headct")
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path('ran').touch()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    features = folder / "features.json"
    text = features.read_text()
    for old, new in (
        ("tensorflow_datasets.core.features.text_feature.Text", "evil.Text"),
        ("tensorflow_datasets.core.features.features_dict.FeaturesDict", "evil.Dict"),
        ("{", '{"type": "evil.Text", "content": {},'),
    ):
        assert old in text
        features.write_text(text.replace(old, new, 1))
        with pytest.raises(UserError, match="another kind"):
            load_prepared(DataConfig("headct")).train_normals[0].read()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [
    b")" + b"q\x00h\x00h\x00\x86" * 100,  # Of two of those before, a hundred times.
    b"]" + b"q\x00h\x00h\x00\x86" * 100,
    b")" + b"\x85" * 30_000,  # One in the other.
    b"]q\x00h\x00a",  # In itself.
    b"(" * 30_000,
    b"r\xff\xff\xff\xff" * 1000,
    b"\x8b\xff\xff\xff\x7f" + bytes(100),  # A number of 2 GiB.
])  # fmt: skip
def test_a_pickle_is_read_in_no_time(tmp_path: Path, value: bytes) -> None:
    began = time.monotonic()
    for payload in (value, b"}X\x01\x00\x00\x00w" + value + b"s"):
        for content in (b"\x80\x02" + payload + b".", torch_zip(b"\x80\x02" + payload + b".")):
            (tmp_path / "w.pth").write_bytes(content)
            with pytest.raises(UserError):
                read_torch_weights(tmp_path / "w.pth")
    assert time.monotonic() - began < 20


def torch_zip(payload: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        packed.writestr("archive/data.pkl", payload)
    return content.getvalue()


def test_weights_of_no_numbers_may_have_no_impossible_shape(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for shape in ("[0, 9223372036854775807, 9]", "[0, 18446744073709551615]"):
        header = f'{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}'.encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(UserError, match=r"impossible shape|is damaged"):
            read_torch_weights(path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_weights_have_a_largest_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("ahl_jax.backbones.weights.MAX_BYTES", 2**20)
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 2**40)
    with pytest.raises(UserError, match="no supported network has"):
        read_torch_weights(tmp_path / name)


@pytest.mark.parametrize("changed", ["1e9 pixels", "a size", "figures", "no settings", "hidden"])
def test_a_checkpoint_whose_settings_do_not_fit_is_refused(
    finished: FinishedRun, tmp_path: Path, changed: str
) -> None:
    run = shutil.copytree(finished.workdir, tmp_path / "run")
    (about,) = run.glob(f"checkpoint/epoch_{finished.metrics['epochs']}/metadata/metadata")
    values = json.loads(about.read_text())
    del values["sha256"]["metadata"]
    metadata = values["metadata"]
    if changed == "no settings":
        metadata["config"] = [1]
    elif changed == "figures":
        metadata["seconds"] = "<script>"
    elif changed == "hidden":
        metadata["config"]["detector"]["hidden"] = 10**12
    else:
        name, value = ("tiles", [10**6, 10**6]) if "pixels" in changed else ("image_size", 6400)
        metadata["config"]["features"][name] = value
    about.write_text(json.dumps(values))
    began = time.monotonic()
    with pytest.raises(UserError, match=r"is of no detector|saved settings"):
        load(run)
    assert time.monotonic() - began < 20
