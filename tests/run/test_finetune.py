"""A finished run's detector, trained on, on another texture."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ahl_jax import Config, DataConfig, UserError, evaluate, finetune, train
from ahl_jax.cli.main import main
from ahl_jax.config.presets import with_settings
from ahl_jax.storage.checkpoints import Checkpoints
from ahl_jax.storage.workdir import Workdir
from tests.problems import assert_trees_equal
from tests.runs import FinishedRun, history, inference, stopped_in_epoch

EPOCHS = 3


@pytest.fixture(scope="module")
def target(textures: Path) -> DataConfig:
    return DataConfig(str(textures), "grid", shots=0, held_out=0.1)


@pytest.fixture(scope="module")
def tuned(
    finished: FinishedRun, target: DataConfig, tmp_path_factory: pytest.TempPathFactory
) -> FinishedRun:
    workdir = tmp_path_factory.mktemp("tuned") / "grid"
    metrics = finetune(finished.workdir, target, workdir, epochs=EPOCHS, progress=False)
    return FinishedRun(Workdir(workdir).config(), workdir, metrics)


def saved(workdir: Path) -> tuple[Any, Any]:
    """The trunk's and the detector's arrays."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.load_trunk()[1], checkpoints.restore_inference()[0]["model"]


def test_a_fine_tuned_run_is_a_run_like_any_other(
    tuned: FinishedRun, finished: FinishedRun
) -> None:
    metrics = tuned.metrics
    assert (metrics["n_train_normal"], metrics["n_seen"]) == (18, 0)
    # The test has all of the target's anomalies.
    assert {name: values["n"] for name, values in metrics["per_class"].items()} == {
        "scratch": 7, "spot": 7
    }  # fmt: skip
    assert metrics["epochs"] == EPOCHS
    assert evaluate(tuned.workdir, progress=False) == metrics == Workdir(tuned.workdir).metrics()
    assert metrics["at_threshold"]["held_out"] == 2
    losses = [float(row["support_normality"]) for row in history(tuned.workdir)]
    assert len(losses) == EPOCHS
    assert losses == sorted(losses, reverse=True)
    start, end = saved(finished.workdir), saved(tuned.workdir)
    assert_trees_equal(end[0], start[0])
    assert all(
        not np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (end[1], start[1])), strict=True)
    )


def test_it_starts_from_the_runs_own_trunk_and_detector(
    finished: FinishedRun, target: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished.workdir, tmp_path / "run")
    with Checkpoints(run) as checkpoints:
        name, params = checkpoints.load_trunk()
        trained = jax.tree.map(lambda leaf: 1.05 * leaf, params)
        checkpoints.save_trunk(name, trained)
    begun: list[Any] = []

    def run_epochs(runs: Any, problems: list, *_: Any, **__: Any) -> None:
        begun.extend(problems)

    monkeypatch.setattr("ahl_jax.run.train.run_epochs", run_epochs)
    monkeypatch.setattr("ahl_jax.run.extract.load_trunk", None)
    with pytest.raises(UserError, match="no checkpoint"):
        finetune(run, target, tmp_path / "grid", progress=False)
    (problem,) = begun
    assert_trees_equal(problem.model._asdict(), saved(run)[1])
    assert [int(pool.size) for pool in problem.data.everything] == [18, 0, 0]
    with Checkpoints(tmp_path / "grid", read_only=True) as checkpoints:
        assert_trees_equal(checkpoints.load_trunk()[1], trained)


def test_a_stopped_fine_tuning_needs_the_same_run_and_a_finished_one_does_not(
    finished: FinishedRun,
    tuned: FinishedRun,
    target: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = shutil.copytree(finished.workdir, tmp_path / "run")
    command = [run, target, tmp_path / "grid"]
    with stopped_in_epoch(2), pytest.raises(KeyboardInterrupt):
        finetune(*command, epochs=EPOCHS, progress=False)
    run.rename(tmp_path / "away")
    with pytest.raises(UserError, match="run holds no run"):
        finetune(*command, epochs=EPOCHS, progress=False)
    shutil.copytree(tuned.workdir, run)
    typed = dataclasses.replace(target, data=os.path.relpath(target.data))
    with pytest.raises(UserError, match="run is not the run that the fine-tuning"):
        finetune(run, typed, tmp_path / "grid", epochs=EPOCHS, progress=False)
    shutil.rmtree(run)
    (tmp_path / "away").rename(run)
    metrics = finetune(*command, epochs=EPOCHS, progress=False)
    assert metrics | {"seconds": 0} == tuned.metrics | {"seconds": 0}
    assert history(tmp_path / "grid") == history(tuned.workdir)
    for one, other in zip(inference(tmp_path / "grid"), inference(tuned.workdir), strict=True):
        np.testing.assert_array_equal(one, other)
    shutil.rmtree(run)
    monkeypatch.setattr("ahl_jax.run.epochs.mesh_for", None)
    assert finetune(*command, epochs=EPOCHS, progress=False) == metrics
    assert evaluate(tmp_path / "grid", progress=False) == metrics
    with pytest.raises(UserError, match="`epochs` is 3 there and 5 here"):
        finetune(*command, epochs=5, progress=False)
    with pytest.raises(UserError, match="run holds no run"):
        finetune(*command, epochs=EPOCHS, progress=False, overwrite=True)


@pytest.mark.slow
def test_labelled_anomalies_of_the_target_train_too(
    tuned: FinishedRun, target: DataConfig, tmp_path: Path
) -> None:
    # A fine-tuned run can be fine-tuned in its turn.
    labelled = dataclasses.replace(target, shots=4)
    metrics = finetune(tuned.workdir, labelled, tmp_path, epochs=1, seed=1, progress=False)
    assert (metrics["n_seen"], metrics["n_test"], metrics["seed"]) == (4, 9 + 10, 1)
    (row,) = history(tmp_path)
    assert float(row["support_pseudo"]) > 0
    assert metrics["auc_roc"] > 0.8


def test_whitening_and_the_scale_of_scores_are_the_targets(
    config: Config, target: DataConfig, tmp_path: Path
) -> None:
    settings = {"detector": "density", "whiten": True, "method": "fit", "in_turn": False}
    train(with_settings(config, settings), tmp_path / "run", progress=False)
    with_normals = [tmp_path / "run", target, tmp_path / "grid"]
    metrics = finetune(*with_normals, epochs=1, progress=False)
    assert metrics["auc_roc"] > 0.8
    arrays = []
    for folder in ("run", "grid"):
        with Checkpoints(tmp_path / folder, read_only=True) as checkpoints:
            arrays.append(checkpoints.restore_inference()[0])
    start, end = arrays
    np.testing.assert_array_equal(
        start["model"]["stats"]["direction"], end["model"]["stats"]["direction"]
    )
    assert not np.allclose(start["model"]["stats"]["mean"], end["model"]["stats"]["mean"])
    assert not np.allclose(start["whitening"]["mean"], end["whitening"]["mean"])


def test_the_command_says_what_it_reached(
    tuned: FinishedRun,
    finished: FinishedRun,
    target: DataConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["finetune", str(finished.workdir), "--data", target.data, "--category", "grid",
          "--workdir", str(tuned.workdir), "--normals-only", "--epochs", str(EPOCHS)])  # fmt: skip
    out = capsys.readouterr().out
    assert out.startswith("DRA, trained on 18 normals for 3 epochs")
    assert f"{tuned.metrics['auc_roc']:.4f}" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": "nothing"}, "nothing holds no run"),
        ({"run": "unfinished"}, r"not finished \(epoch 3 of 4\)"),
        ({"workdir": "finished"}, "give another folder as `workdir`"),
        ({"workdir": "other"}, "already holds a different run"),
        ({"category": "empty"}, "has no training normals"),
        ({"setting": "full"}, 'leave out `setting="full"`'),
        ({"shots": -1}, "^`shots` is -1; it must be 0 or more"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    finished: FinishedRun, target: DataConfig, tmp_path: Path, change: dict, message: str
) -> None:
    folders = {"finished": finished.workdir, "nothing": tmp_path / "nothing"}
    for name in ("unfinished", "other"):
        folders[name] = shutil.copytree(finished.workdir, tmp_path / name)
    shutil.rmtree(folders["unfinished"] / "checkpoint/epoch_4")
    data = Path(shutil.copytree(target.data, tmp_path / "textures"))
    shutil.copytree(data / "grid", data / "empty")
    for image in (data / "empty/train/good").iterdir():
        image.unlink()
    run = folders[change.pop("run", "finished")]
    workdir = folders.get(change.pop("workdir", ""), tmp_path / "grid")
    chosen = dataclasses.replace(target, data=str(data), **change)
    with pytest.raises(UserError, match=message):
        finetune(run, chosen, workdir, progress=False)
    assert not (tmp_path / "grid/checkpoint").exists()


def test_a_run_that_starts_from_another_is_not_trained_by_itself(
    tuned: FinishedRun, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="use ahl finetune"):
        train(tuned.config, tmp_path / "run", progress=False)
