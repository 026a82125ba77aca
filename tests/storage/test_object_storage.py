"""Runs, images, features and results in buckets of emulated services."""

import io
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ahl_jax.cli.main import main
from ahl_jax.common import remote
from ahl_jax.common.errors import UserError
from ahl_jax.common.files import alone, holder, remove, replace_file
from ahl_jax.common.remote import any_path, url_of
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.copies import copy_of, fetched, origin
from ahl_jax.data.open import load_dataset
from ahl_jax.features import Store
from ahl_jax.storage.checkpoints import Checkpoints


def _google() -> Iterator[dict[str, str]]:
    server = pytest.importorskip("gcp_storage_emulator.server")
    pytest.importorskip("gcsfs")
    port = _free_port()
    running = server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    running.start()
    yield {
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
        # It has no folders as objects.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    running.stop()


def _amazon() -> Iterator[dict[str, str]]:
    pytest.importorskip("flask_cors")
    server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    running = server.ThreadedMotoServer("127.0.0.1", _free_port(), verbose=False)
    running.start()
    yield {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{running.get_host_and_port()[1]}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    running.stop()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A bucket of either service, for this process and those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        # More connections than that wait seconds for an answer.
        patch.setattr(socketserver.TCPServer, "request_queue_size", 256)
        service = _google() if request.param == "gs" else _amazon()
        for name, value in next(service).items():
            patch.setenv(name, value)
        if request.param == "s3":
            remote.storage("s3://bucket").mkdir("bucket")
        yield any_path(f"{request.param}://bucket")
        next(service, None)


@pytest.fixture
def place(bucket: Path, request: pytest.FixtureRequest) -> Path:
    """A folder of the test's own."""
    return bucket / request.node.originalname


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("gs://bucket/a/b", "gs://bucket/a/b"),
        (Path("gs://bucket/a/b"), "gs://bucket/a/b"),
        ("s3://bucket/a/", "s3://bucket/a"),
        ("runs/elpv", None),
        (Path("/gs:/a"), None),
        ("x:/a", None),
    ],
)
def test_a_url_is_told_from_a_path(given, url):
    assert url_of(given) == url
    if url is None:
        assert any_path(given) == Path(given)


@pytest.mark.parametrize(
    "given", ["http://host/x", "gcs://bucket/x", "gs://", "gs://bucket/a*", "s3://bucket/../x"]
)
def test_other_urls_are_refused(given):
    with pytest.raises(UserError, match=r"is no path of this machine|cannot be used"):
        any_path(given)


def test_what_must_be_here_is_refused_elsewhere(bucket, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["export", f"{bucket}/run", f"{bucket}/detector.onnx"])
    assert capsys.readouterr().err == (
        f"ahl: FILE is {bucket}/detector.onnx; it has to be a path of this machine\n"
    )
    with pytest.raises(SystemExit, match="2"):
        main(["train", "elpv", "--workdir", f"{bucket}/run", "--tensorboard"])
    assert "--tensorboard cannot write to" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_object_is_replaced_and_removed(place):
    for name in ("run/a", "run/inner/b", "run/*[1].png", "run2/a"):
        replace_file(place / name, "old")
        replace_file(place / name, "new")
    assert (place / "run/inner/b").read_text() == "new"
    remove(place / "run")
    remove(place / "none")
    assert remote.objects(place).keys() == {"run2/a"}


def test_a_lock_keeps_others_out_until_its_holder_is_gone(place, monkeypatch):
    monkeypatch.setattr(remote, "_BEAT", 0.15)
    monkeypatch.setattr(remote, "_PATIENCE", 0.9)

    def busy() -> None:
        raise UserError(f"busy{holder(place)}")

    with alone(place, busy):  # noqa: SIM117
        # Longer than patience, as it is renewed.
        with pytest.raises(UserError, match=f"busy .process {os.getpid()} on "), alone(place, busy):
            pass
    assert not remote.objects(place)
    replace_file(place / ".lock", "1 elsewhere killed")
    with alone(place, busy):
        assert holder(place).startswith(f" (process {os.getpid()} ")


def test_who_has_lost_a_lock_is_interrupted(place, monkeypatch):
    monkeypatch.setattr(remote, "_BEAT", 0.1)

    def lose() -> None:
        with alone(place, lambda: None):
            # Again and again: one may come between the holder's look at the lock and its beat.
            for _ in range(40):
                replace_file(place / ".lock", "1 elsewhere other")
                time.sleep(0.25)

    # A shell that starts the tests in the background has it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            lose()
    finally:
        signal.signal(signal.SIGINT, before)
    assert (place / ".lock").read_text() == "1 elsewhere other"


def test_checkpoints_are_whole_or_absent(place):
    params = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3)}
    with Checkpoints(place) as checkpoints:
        checkpoints.save_trunk("lite0", params)
        for epoch in (1, 2, 3):
            state = {"w": params["w"] * epoch}
            checkpoints.save(epoch, inference=state, state=state, metadata={"epoch": epoch})
    names = {name.split("/")[1] for name in remote.objects(place)}
    assert names == {"trunk", "epoch_2", "epoch_3"}
    # As by a kill in the middle of an upload.
    remove(place / "checkpoint" / "epoch_3" / "_CHECKPOINT_METADATA")
    with Checkpoints(place, read_only=True) as checkpoints:
        assert checkpoints.epochs() == [2]
        arrays, metadata = checkpoints.restore_inference()
        np.testing.assert_array_equal(arrays["w"], params["w"] * 2)
        assert metadata == {"epoch": 2}
        assert checkpoints.load_trunk()[0] == "lite0"
    with Checkpoints(place):
        assert not any("epoch_3" in name for name in remote.objects(place))


def test_features_are_kept(place):
    store, maps = Store(place), [np.ones((2, 2, 3), np.float32)]
    assert store.read("ab12", [(2, 2, 3)]) is None
    store.write("ab12", maps)
    (found,) = Store(place).read("ab12", [(2, 2, 3)])
    np.testing.assert_array_equal(found, maps[0])
    filled = store.empty((3, 3))
    filled[:] = 1


def test_a_copy_follows_the_bucket(place, tmp_path, monkeypatch, weave):
    monkeypatch.setenv("AHL_DATA", str(tmp_path))
    images = sorted((weave / "train" / "good").glob("*.png"))[:3]
    for image in images:
        replace_file(place / image.name, image.read_bytes())
    replace_file(place / "[1]?.png", images[0].read_bytes())
    replace_file(place / "checkpoint.log", "no image")
    here = fetched(str(place))
    assert here == copy_of(place)
    names = {image.name for image in images}
    assert {path.name for path in here.iterdir()} == {*names, "[1]?.png"}
    assert origin(here / "x.png") == f"{place}/x.png"
    kept = (here / images[1].name).stat()
    remove(place / images[0].name)
    remove(place / "[1]?.png")
    replace_file(place / images[2].name, images[0].read_bytes())
    fetched(str(place))
    assert {path.name for path in here.iterdir()} == {image.name for image in images[1:]}
    assert (here / images[2].name).read_bytes() == images[0].read_bytes()
    assert (here / images[1].name).stat() == kept


def test_a_table_lists_images_of_a_bucket(place, tmp_path, monkeypatch, weave):
    monkeypatch.setenv("AHL_DATA", str(tmp_path))
    images = sorted((weave / "train" / "good").glob("*.png"))[:3]
    for image in images:
        replace_file(place / "good" / image.name, image.read_bytes())
    lines = [f"good/{image.name},normal,train" for image in images]
    replace_file(place / "images.csv", "\n".join(["path,label,split", *lines]))
    dataset = load_dataset(DataConfig(f"{place}/images.csv"))
    assert [origin(path) for path in dataset.train_normals] == [
        f"{place}/good/{image.name}" for image in images
    ]
    with pytest.raises(UserError, match="neither a folder nor a CSV file"):
        load_dataset(DataConfig(f"{place}/none"))


def _ahl(*words: object) -> list[str]:
    return [sys.executable, "-m", "ahl_jax", *map(str, words)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_lives_in_a_bucket(place, tmp_path, monkeypatch, weave):
    """Trained, killed, resumed, evaluated, reported and used, all in the bucket."""
    monkeypatch.setenv("AHL_DATA", str(tmp_path))
    monkeypatch.setenv("AHL_CACHE", f"{place}/cache")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    # Not every small program goes to the bucket.
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    data = place / "data"
    files = list(weave.rglob("*.png"))
    remote.upload(weave, [path.relative_to(weave).as_posix() for path in files], data)
    words = ["train", data, "--preset", "debug", "--epochs", 4, "--workdir"]
    subprocess.run(_ahl(*words, place / "whole"), check=True)
    with subprocess.Popen(_ahl(*words, place / "killed"), stderr=subprocess.PIPE) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith(b"epoch 2/"):
                break
        process.send_signal(signal.SIGKILL)
    subprocess.run(_ahl(*words, place / "killed"), check=True)
    results = []
    for name in ("whole", "killed"):
        with Checkpoints(place / name, read_only=True) as checkpoints:
            assert checkpoints.epochs() == [3, 4]
            results.append(checkpoints.restore_inference()[0])
    np.testing.assert_equal(*results)
    run = place / "killed"
    metrics = json.loads((run / "metrics.json").read_text())
    said = subprocess.run(_ahl("evaluate", run, "--json"), check=True, stdout=subprocess.PIPE)
    assert json.loads(said.stdout)["auc_roc"] == metrics["auc_roc"]
    subprocess.run(_ahl("report", run), check=True)
    assert "<html" in (run / "report.html").read_text()
    drawn = []
    for _ in range(2):  # The second time all is there.
        subprocess.run(_ahl("predict", run, data / "test", "--out", place / "out"), check=True)
        drawn.append(remote.objects(place / "out" / "heat_maps"))
    table = (place / "out" / "scores.csv").read_text().splitlines()
    assert len(table) == 1 + len(list((weave / "test").rglob("*.png")))
    assert table[1].startswith(f"{data}/test/good/00.png,")
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == len(table) - 1
    kept = remote.objects(place / "cache")
    assert any(name.endswith(".safetensors") for name in kept)
    assert any(name.startswith("compiled/") for name in kept)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_other_commands_take_runs_of_a_bucket(place, tmp_path, monkeypatch, weave):
    """Trained by two processes, fine-tuned, updated, compared and served."""
    monkeypatch.setenv("AHL_DATA", str(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    data, new = place / "data", place / "new"
    files = [path.relative_to(weave).as_posix() for path in weave.rglob("*.png")]
    remote.upload(weave, files, data)
    for turn in (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180):
        with Image.open(weave / "test/spot/00.png") as image, io.BytesIO() as file:
            image.transpose(turn).save(file, "png")
            replace_file(new / f"{turn}.png", file.getvalue())
    old, words = place / "old", ["--preset", "debug", "--levels", 1]
    common = ["train", data, "--workdir", old, *words, "--epochs", 3, "--data-shards", 2]
    common += ["--distributed", "--coordinator", f"127.0.0.1:{_free_port()}", "--processes", 2]
    both = [subprocess.Popen(_ahl(*common, "--process-id", i)) for i in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    with Checkpoints(old, read_only=True) as checkpoints:
        assert checkpoints.epochs() == [2, 3]
    tuned, updated = place / "tuned", place / "updated"
    _run("finetune", old, "--data", data, "--workdir", tuned, "--epochs", 1)
    _run("update", old, "--defects", new, "--workdir", updated)
    seen = [line for line in (updated / "images.csv").read_text().splitlines() if str(new) in line]
    assert len(seen) == 2
    _run("compare", old, tuned, updated, "--out", place / "compared.html")
    page = (place / "compared.html").read_text()
    assert all(name in page for name in ("old", "tuned", "updated"))
    with subprocess.Popen(_ahl("serve", updated, "--port", 0), stderr=subprocess.PIPE) as process:
        assert process.stderr
        address = next(line.split()[-1] for line in process.stderr if b"serving updated" in line)
        photograph = (weave / "test/spot/01.png").read_bytes()
        with urllib.request.urlopen(f"{address.decode()}/score", photograph) as answer:
            assert isinstance(json.load(answer)["score"], float)
        process.send_signal(signal.SIGTERM)


def _run(*words: object) -> None:
    subprocess.run(_ahl(*words), check=True)
