"""Two processes on this machine, through the real command line."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ahl_jax import Config, load
from ahl_jax.storage.checkpoints import Checkpoints
from tests.cli.test_cli import refused
from tests.runs import history, inference

SECONDS = 200
"""Far more than anything here takes; what hangs fails."""


def start(
    weave: Path, workdir: Path, *options: str, devices: int = 2, cache: Path | None = None
) -> subprocess.Popen:
    command = [sys.executable, "-m", "ahl_jax", "train", str(weave), "--workdir", str(workdir)]
    command += ["--preset", "debug", "--shots", "4", "--detector", "devnet"]
    command += ["--pseudo-per-generator", "6", *options]
    return subprocess.Popen(
        command,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "AHL_CACHE": str(cache or os.environ["AHL_CACHE"]),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(
    weave: Path,
    workdirs: list[Path],
    *options: str,
    devices: int = 2,
    caches: Sequence[Path | None] = (None, None),
) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start(
            weave, workdir, *options, "--distributed", "--coordinator", f"127.0.0.1:{port}",
            "--processes", "2", "--process-id", str(i), devices=devices, cache=cache,
        )
        for i, (workdir, cache) in enumerate(zip(workdirs, caches, strict=True))
    ]  # fmt: skip


def cached(folder: Path) -> set[str]:
    """The images whose features a cache has."""
    return {path.name for path in folder.rglob("*.safetensors")}


def end(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    deadline = time.monotonic() + SECONDS
    try:
        done = []
        for process in processes:
            out, err = process.communicate(timeout=max(1, deadline - time.monotonic()))
            # Gloo writes to either.
            lines = [line for line in out.splitlines() if not line.startswith("[Gloo]")]
            done.append((process.returncode, "\n".join(lines), err))
        return done
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["base", "ahl"])
def test_killed_and_resumed_it_ends_where_one_process_does(
    weave: Path, tmp_path: Path, method: str
) -> None:
    # Enough epochs that the kill comes long before the last.
    options = ["--data-shards", "2", "--method", method, "--epochs", "20"]
    (alone,) = end([start(weave, tmp_path / "alone", *options, devices=4)])
    workdirs = [tmp_path / "run", tmp_path / "elsewhere"]
    caches = [tmp_path / "cache 0", tmp_path / "cache 1"]
    killed = start_two(weave, workdirs, *options, caches=caches)
    assert killed[0].stderr is not None
    for line in killed[0].stderr:
        if line.startswith("epoch 2/"):
            break
    for process in killed:
        process.kill()
        process.communicate(timeout=SECONDS)
    assert not (tmp_path / "run/metrics.json").exists()
    ends = [alone, *end(start_two(weave, workdirs, *options, caches=caches))]
    for code, _, err in ends:
        assert code == 0, err
    (_, sentence, _), (_, out, err), (_, quiet, quiet_err) = ends
    assert "training on 4 devices: {'seed': 1, 'subset': 2, 'data': 2}" in err
    assert "going on after epoch" in err
    # Process 1 writes and says nothing.
    assert not (tmp_path / "elsewhere").exists()
    assert quiet == ""
    assert "epoch" not in quiet_err
    assert out.replace("run.", "alone.") == sentence
    # Each has the features of its half of 18 normals, 4 anomalies and 18 pseudo-anomalies, and
    # process 0 those of the 19 test images and the 2 normals that are held out.
    first, second = map(cached, caches)
    assert not first & second
    assert (len(first), len(second)) == (9 + 2 + 9 + 19 + 2, 9 + 2 + 9)
    # The same devices sum up the same two parts, so little more than the transport differs.
    for a, b in zip(inference(tmp_path / "alone"), inference(tmp_path / "run"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    for row, other in zip(history(tmp_path / "alone"), history(tmp_path / "run"), strict=True):
        for name, value in row.items():
            assert value == other[name] or float(value) == pytest.approx(float(other[name])), name


@pytest.mark.slow
def test_one_device_each_trains_as_two_devices_of_one_process_do(
    weave: Path, tmp_path: Path
) -> None:
    options = ["--method", "ahl", "--epochs", "6"]
    two = start_two(weave, [tmp_path / "run", tmp_path / "no"], *options, devices=1)
    for code, _, err in [*end(two), *end([start(weave, tmp_path / "alone", *options)])]:
        assert code == 0, err
    for a, b in zip(inference(tmp_path / "alone"), inference(tmp_path / "run"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2])
def test_seeds_and_images_left_out_give_what_one_process_gives(
    weave: Path, tmp_path: Path, shards: int
) -> None:
    data = shutil.copytree(weave, tmp_path / "weave")
    # Of the first process's part one and of the second's two.
    for name in ("03", "10", "19"):
        (data / f"train/good/{name}.png").write_bytes(b"")
    options = ["--data-shards", str(shards), "--seeds", "0", "1", "--skip-bad-images"]
    options += ["--method", "base"]
    caches = [tmp_path / "cache 0", tmp_path / "cache 1"]
    two = start_two(data, [tmp_path / "run", tmp_path / "no"], *options, caches=caches)
    for code, _, err in [*end(two), *end([start(data, tmp_path / "alone", *options, devices=4)])]:
        assert code == 0, err
    first, second = map(cached, caches)
    # The seeds share their normals, and may have drawn some of the same labelled anomalies.
    if shards == 1:
        assert second <= first
        assert 17 + 4 + 36 <= len(second) <= 17 + 8 + 36
    else:
        assert 8 + 2 + 18 <= len(second) <= 8 + 4 + 18
        # One seed's labelled anomaly may be tested on with the other.
        assert len(first & second) <= 4
    for seed in ("seed-0", "seed-1"):
        arrays = [inference(tmp_path / name / seed) for name in ("alone", "run")]
        for a, b in zip(*arrays, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2])
def test_a_local_head_of_two_processes_is_that_of_one(
    weave: Path, tmp_path: Path, shards: int
) -> None:
    options = ["--detector", "density", "--method", "fit", "--whiten", "--local-head"]
    options += ["--data-shards", str(shards)]
    two = start_two(weave, [tmp_path / "run", tmp_path / "no"], *options)
    for code, _, err in [*end(two), *end([start(weave, tmp_path / "alone", *options, devices=4)])]:
        assert code == 0, err
    alone, run = (load(tmp_path / name) for name in ("alone", "run"))
    head, other = (predictor.scorer.local_head for predictor in (alone, run))
    assert head is not None
    assert other is not None
    # Of all normals, wherever they are.
    assert len(head.of_normals) == len(other.of_normals) == 20
    np.testing.assert_allclose(other.gain, head.gain, rtol=1e-4)
    np.testing.assert_allclose(other.of_normals, head.of_normals, rtol=1e-3, atol=1e-3)
    photographs = sorted((weave / "test").rglob("*.png"))
    np.testing.assert_allclose(
        run.score(photographs), alone.score(photographs), rtol=1e-3, atol=1e-3
    )


def test_an_error_of_one_is_one_sentence_from_both(
    weave: Path, config: Config, tmp_path: Path
) -> None:
    data = shutil.copytree(weave, tmp_path / "weave")
    # Test images are read by process 0 alone: the other hears of it.
    bad = data / "test/good/03.png"
    bad.write_bytes(b"")
    elsewhere = tmp_path / "nothing" / "here"
    for code, out, err in end(start_two(data, [tmp_path / "run", elsewhere])):
        assert code == 2, err
        assert out == ""
        assert "Traceback" not in err
        assert err.splitlines()[-1].startswith("ahl: ")
        assert str(bad) in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--coordinator", "127.0.0.1:1"], "need --distributed; add it"),
        (["--distributed", "--processes", "2"], "go together; give all three"),
        (["--distributed", "--coordinator", "here", "--processes", "2", "--process-id", "0"],
         "--coordinator is 'here'; it must be HOST:PORT"),
        (["--distributed", "--coordinator", "a:1", "--processes", "2", "--process-id", "2"],
         "--process-id is 2; it must be from 0 to 1"),
        (["--data-shards", "2"], "--data-shards is 2, and 1 device cannot be divided by it"),
        (["--data-shards", "0"], "--data-shards is 0; it must be 1 or more"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(
    weave: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    command = ["train", str(weave), "--workdir", str(tmp_path / "run"), "--preset", "debug"]
    sentence = refused(capsys, *command, "--shots", "4", *options)
    assert words in sentence


@pytest.mark.slow
@pytest.mark.parametrize("signalled", [[1], [0, 1]])
def test_a_stop_of_one_stops_both(weave: Path, tmp_path: Path, signalled: list[int]) -> None:
    options = ["--data-shards", "2", "--method", "base", "--epochs", "40"]
    options += ["--checkpoint-every", "2"]
    caches = [tmp_path / "cache 0", tmp_path / "cache 1"]
    both = start_two(weave, [tmp_path / "run", tmp_path / "elsewhere"], *options, caches=caches)
    assert both[0].stderr is not None
    for line in both[0].stderr:
        if line.startswith("epoch 2/"):
            break
    # A TPU that is taken away sends it to all.
    for process in signalled:
        both[process].send_signal(signal.SIGTERM)
    for code, _, err in end(both):
        assert code == 128 + signal.SIGTERM, err
        assert "ahl: stopped" in err
        assert "Traceback" not in err
    # The epochs that were under way are kept.
    saved = len(history(tmp_path / "run"))
    assert saved >= 4
    assert saved % 2 == 0
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        assert checkpoints.latest_epoch() == saved
