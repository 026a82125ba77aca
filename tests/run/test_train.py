import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from ahl_jax import Config, UserError, evaluate, export_model, load, preset, train
from ahl_jax.config.presets import with_settings
from ahl_jax.features.split import split_digest
from ahl_jax.learning import seeds
from ahl_jax.run import epochs
from ahl_jax.storage.workdir import Workdir
from tests.runs import FinishedRun, history, inference, stopped_in_epoch


def test_a_run_leaves_metrics_history_and_a_checkpoint(finished: FinishedRun) -> None:
    metrics = json.loads((finished.workdir / "metrics.json").read_text())
    assert metrics == finished.metrics
    assert 0 <= metrics["auc_roc"] <= 1
    assert 0 <= metrics["auc_pr"] <= 1
    assert metrics["n_train_normal"] == 18
    assert metrics["n_seen"] == 4
    assert metrics["n_test"] == 9 + 14 - 4
    assert metrics["n_left_out_copies"] == 0
    assert sum(c["n"] for c in metrics["per_class"].values()) == 10
    assert metrics["setting"] == "general"
    assert metrics["seed"] == 0
    rows = history(finished.workdir)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    heads = ["seen", "pseudo", "residual", "normality"]
    assert {f"support_{h}" for h in heads} | {f"query_{h}" for h in heads} <= rows[0].keys()
    assert rows[0]["w_1"] == rows[1]["w_2"] == "0.5"
    assert rows[1]["r_1"] == ""
    assert float(rows[3]["r_1"]) > 0
    assert float(rows[3]["w_1"]) + float(rows[3]["w_2"]) == pytest.approx(1)


def test_it_learns_to_tell_defects_it_has_seen(finished: FinishedRun) -> None:
    assert finished.metrics["auc_roc"] > 0.8


def test_evaluate_gives_the_same_numbers_with_and_without_cached_features(
    finished: FinishedRun, tmp_path: Path
) -> None:
    assert evaluate(finished.workdir, progress=False) == finished.metrics
    assert evaluate(finished.workdir, cache_dir=tmp_path, progress=False) == finished.metrics


def test_evaluate_needs_only_the_workdir_and_the_data_wherever_they_are(
    finished: FinishedRun, tmp_path: Path
) -> None:
    workdir = shutil.copytree(finished.workdir, tmp_path / "elsewhere")
    data = shutil.copytree(finished.config.data.data, tmp_path / "moved")
    (workdir / "metrics.json").unlink()
    (workdir / "history.csv").unlink()
    assert evaluate(workdir, data=str(data), progress=False) == finished.metrics


def test_evaluate_warns_when_the_images_are_others(
    finished: FinishedRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = shutil.copytree(finished.config.data.data, tmp_path / "moved")
    (data / "test/good/00.png").unlink()
    evaluate(finished.workdir, data=str(data), progress=False)
    assert "the images are not the ones" in caplog.text


@pytest.mark.parametrize(
    ("settings", "told"),
    [({}, False), ({"epochs": 5}, True), ({"epochs": 6}, False), ({"history": 30}, True),
     ({"epochs": 5, "importance": "uniform"}, False), ({"epochs": 5, "method": "base"}, False)],
)  # fmt: skip
def test_training_that_ends_before_psi_can_predict_says_so(settings: dict, told: bool) -> None:
    said = epochs._untrained_psi(preset("paper", "none", **settings))
    assert (said is not None) is told
    assert said is None or "they all stay 1/T" in said


def test_what_is_no_config_is_refused(weave: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make one, as by preset"):
        train(str(weave), tmp_path / "run")  # type: ignore[arg-type]


def test_a_finished_run_is_not_run_again(
    finished: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ahl_jax.run.epochs.mesh_for", None)
    # One pass over the bytes of the images, one reading of the checkpoint.
    hashed, loaded = Mock(wraps=split_digest), Mock(wraps=load)
    monkeypatch.setattr("ahl_jax.run.claim.split_digest", hashed)
    monkeypatch.setattr("ahl_jax.run.again.split_digest", hashed)
    monkeypatch.setattr("ahl_jax.run.evaluate.load", loaded)
    assert train(finished.config, finished.workdir, progress=False) == finished.metrics
    assert (hashed.call_count, loaded.call_count) == (1, 1)


def check_that_it_goes_on(whole: FinishedRun, workdir: Path) -> None:
    with stopped_in_epoch(3), pytest.raises(KeyboardInterrupt):
        train(whole.config, workdir, progress=False)
    assert not (workdir / "metrics.json").exists()
    parts = train(whole.config, workdir, progress=False)
    for a, b in zip(inference(whole.workdir), inference(workdir), strict=True):
        np.testing.assert_array_equal(a, b)
    assert history(whole.workdir) == history(workdir)
    assert whole.metrics | {"seconds": 0} == parts | {"seconds": 0}


def test_a_stopped_run_goes_on_to_the_bit_identical_result(
    finished: FinishedRun, tmp_path: Path
) -> None:
    check_that_it_goes_on(finished, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["base", "ensemble"])
def test_so_does_one_of_another_method(config: Config, tmp_path: Path, method: str) -> None:
    config = with_settings(config, {"method": method})
    metrics = train(config, tmp_path / "whole", progress=False)
    check_that_it_goes_on(FinishedRun(config, tmp_path / "whole", metrics), tmp_path / "parts")


@pytest.mark.slow
def test_all_programs_are_compiled_before_the_epochs_whose_seconds_count(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[str, int]] = []
    compile_epochs = seeds.compile_epochs

    class Watched:
        """Notes what is compiled and run, and has no compilation in a call."""

        def __init__(self, mesh: jax.sharding.Mesh) -> None:
            self.step = compile_epochs(mesh)

        def lower(self, *arguments: Any) -> "Watched":
            self.lowered, self.length = self.step.lower(*arguments), len(arguments[-1])
            return self

        def compile(self) -> Any:
            program, length = self.lowered.compile(), self.length
            order.append(("compiled", length))

            def run(*arguments: Any) -> Any:
                order.append(("run", length))
                return program(*arguments)

            return run

    monkeypatch.setattr(seeds, "compile_epochs", Watched)
    monkeypatch.setattr("ahl_jax.run.epochs._announce_memory", lambda program: None)
    said: list[str] = []
    monkeypatch.setattr(
        "ahl_jax.run.epochs.log.info", lambda text, *values: said.append(text % values)
    )
    train(config, tmp_path, checkpoint_every=3)
    assert order == [("compiled", 3), ("compiled", 1), ("run", 3), ("run", 1)]
    lines = [line for line in said if line.startswith("epoch ")]
    assert [re.sub(r"  .*", "", line) for line in lines] == ["epoch 3/4", "epoch 4/4"]
    assert all(re.search(r"\d s  \d+:\d\d left$", line) for line in lines)
    assert lines[-1].endswith(" 0:00 left")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_leaves_a_run_that_can_go_on(
    finished: FinishedRun, tmp_path: Path, how: signal.Signals
) -> None:
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "ahl_jax", "train", finished.config.data.data]
    command += ["--workdir", str(workdir), "--preset", "debug", "--shots", "4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if line.startswith("epoch 2/"):
            break
    process.send_signal(how)
    rest = process.stderr.read()
    code = process.wait()
    if how == signal.SIGKILL:
        assert code == -signal.SIGKILL
    elif code != 0:  # A signal may come when all is done.
        assert code == 128 + how, seen + rest
        assert "the same command goes on" in rest
        assert "Traceback" not in rest
    metrics = train(finished.config, workdir, progress=False)
    assert metrics | {"seconds": 0} == finished.metrics | {"seconds": 0}
    for a, b in zip(inference(finished.workdir), inference(workdir), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_devnet_and_the_hard_setting_run(config: Config, tmp_path: Path) -> None:
    hard = {"setting": "hard", "seen_class": "spot", "detector": "devnet"}
    metrics = train(with_settings(config, hard), tmp_path, progress=False)
    assert metrics["per_class"].keys() == {"scratch"}
    assert evaluate(tmp_path, progress=False) == metrics


@pytest.mark.parametrize("name", ["flos", "mlep", "saoe"])
def test_the_baselines_learn_alone(config: Config, tmp_path: Path, name: str) -> None:
    alone = {"detector": name, "method": "base", "steps": 20, "lr_base": 0.002}
    metrics = train(with_settings(config, alone), tmp_path, progress=False)
    assert metrics["auc_roc"] > 0.8
    rows = history(tmp_path)
    columns = [column for column in rows[0] if column.startswith("support_")]
    first, last = (sum(float(row[column]) for column in columns) for row in (rows[0], rows[-1]))
    assert last < first
    assert evaluate(tmp_path, progress=False) == metrics


@pytest.mark.slow
def test_the_full_setting_labels_anomalies_of_every_class(config: Config, tmp_path: Path) -> None:
    full = {"setting": "full", "shots": 3, "detector": "devnet"}
    metrics = train(with_settings(config, full), tmp_path, progress=False)
    assert metrics["setting"] == "full"
    assert metrics["n_seen"] == 6
    assert {name: values["n"] for name, values in metrics["per_class"].items()} == {
        "scratch": 4,
        "spot": 4,
    }


@pytest.mark.slow
def test_seeds_differ(config: Config, finished: FinishedRun, tmp_path: Path) -> None:
    other = train(with_settings(config, {"seed": 1}), tmp_path, progress=False)
    assert other["seed"] == 1
    assert history(tmp_path)[0] != history(finished.workdir)[0]


def test_a_run_whose_images_changed_does_not_go_on(finished: FinishedRun, tmp_path: Path) -> None:
    data = Path(finished.config.data.data)
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    moved = shutil.copytree(data, tmp_path / "weave")
    run = json.loads((workdir / "run.json").read_text())
    del run["sha256"]  # As who changes it is told to.
    run["config"]["data"]["data"] = str(moved)
    (workdir / "run.json").write_text(json.dumps(run))
    (moved / "train/good/00.png").write_bytes((moved / "train/good/01.png").read_bytes())
    changed = with_settings(finished.config, {"data": str(moved)})
    with pytest.raises(UserError, match="images changed"):
        train(changed, workdir, progress=False)


@pytest.fixture(
    scope="module",
    params=[
        {"method": "base"},
        pytest.param({"method": "ahl", "views": 2}, marks=pytest.mark.slow),
    ],
    ids=["alone", "ahl"],
)
def density(
    config: Config, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> FinishedRun:
    """The density detector, on whitened features."""
    config = with_settings(config, {"detector": "density", "whiten": True, **request.param})
    workdir = tmp_path_factory.mktemp("density") / "run"
    return FinishedRun(config, workdir, train(config, workdir, progress=False))


def test_whitened_features_and_a_prepared_detector_are_evaluated_from_the_checkpoint(
    density: FinishedRun,
) -> None:
    assert density.metrics["auc_roc"] > 0.8
    assert evaluate(density.workdir) == density.metrics


def test_a_resumed_run_keeps_what_it_was_prepared_with(
    density: FinishedRun, tmp_path: Path
) -> None:
    with stopped_in_epoch(3), pytest.raises(KeyboardInterrupt):
        train(density.config, tmp_path / "run", progress=False)
    train(density.config, tmp_path / "run", progress=False)
    for one, other in zip(inference(density.workdir), inference(tmp_path / "run"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_exported_with_its_whitening_it_scores_the_same(
    density: FinishedRun, tmp_path: Path
) -> None:
    model = export_model(density.workdir, tmp_path / "model.bin", platforms=["cpu"])
    images = np.random.default_rng(0).integers(0, 256, (2, 192, 192, 3), np.uint8)
    found = np.asarray(model.call(images, np.float32("nan"))["score"])
    np.testing.assert_allclose(found, load(density.workdir).score(images), rtol=1e-4)


def test_fit_is_one_epoch_without_losses(density: FinishedRun, tmp_path: Path) -> None:
    config = with_settings(density.config, {"method": "fit", "in_turn": False})
    metrics = train(config, tmp_path / "fit", progress=False)
    assert metrics["epochs"] == 1
    assert metrics["auc_roc"] > 0.8
    (row,) = history(tmp_path / "fit")
    assert row["support_density"] == ""


def test_density_without_whitened_features_is_refused(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="density needs `whiten=True`"):
        train(with_settings(config, {"detector": "density"}), tmp_path / "run")


def test_two_trainings_of_one_folder_are_refused(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Workdir(tmp_path).held(), pytest.raises(UserError) as error:
        train(config, tmp_path, progress=False)
    assert str(error.value) == (
        f"another training is writing to {tmp_path} (process {os.getpid()} on "
        f"{socket.gethostname()}); wait until it is done, or give another `workdir`"
    )
    assert os.listdir(tmp_path) == [".lock"]


@pytest.mark.slow
def test_of_two_starts_at_once_one_trains(finished: FinishedRun, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ahl_jax", "train", finished.config.data.data]
    command += ["--workdir", str(tmp_path / "run"), "--preset", "debug", "--shots", "4"]
    both = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(2)
    ]
    said = {process.pid: process.communicate()[1] for process in both}
    (first, second) = sorted(both, key=lambda process: process.returncode)
    assert (first.returncode, second.returncode) == (0, 2), said
    assert f"(process {first.pid} on " in said[second.pid]
    for text in said.values():
        assert "Traceback" not in text
        assert "never awaited" not in text
    assert (
        json.loads((tmp_path / "run/metrics.json").read_text())["auc_roc"]
        == (finished.metrics["auc_roc"])
    )


@pytest.mark.parametrize(
    ("method", "advice"),
    [
        ("base", "`lr_base`"),
        pytest.param("ahl", "`lr` or `lr_base`", marks=pytest.mark.slow),
    ],
)
def test_a_training_that_diverges_says_where(
    config: Config, tmp_path: Path, method: str, advice: str
) -> None:
    wild = with_settings(config, {"method": method, "lr_base": 1e38, "lr": 1e38})
    for _ in range(2):
        with pytest.raises(UserError) as error:
            train(wild, tmp_path, progress=False)
        assert re.fullmatch(
            rf"the training of {tmp_path} diverged in epoch [12]: parameters are no numbers any "
            rf"more; start over with a smaller {advice} and `overwrite=True`",
            str(error.value),
        )
    assert not list(tmp_path.glob("checkpoint/epoch_*"))


@pytest.mark.slow
def test_a_profile_has_the_methods_phases(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path / "run", profile=True)
    (trace,) = (tmp_path / "run/profile").rglob("*.xplane.pb")
    for phase in ("base models, Eq. 1", "unified model, Eq. 3 and 4", "importance, Eq. 5 to 7"):
        assert phase.encode() in trace.read_bytes()
    # A run goes on in a folder with one.
    assert train(config, tmp_path / "run")["epochs"] == config.learning.epochs
