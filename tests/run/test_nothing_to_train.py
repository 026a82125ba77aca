"""A detector that trains nothing, on normal images alone: a run like any other."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export as jax_export

from ahl_jax import (
    Config,
    DataConfig,
    evaluate,
    export_model,
    finetune,
    load,
    preset,
    train,
)
from ahl_jax.cli.main import main
from ahl_jax.data.images import read_image
from ahl_jax.features.split import load_split
from ahl_jax.reports import report
from ahl_jax.storage.workdir import Workdir
from tests.runs import FinishedRun

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def memory(textures: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    kind = {"detector": "patchcore", "method": "fit", "shots": 0}
    config = preset("debug", str(textures), category="carpet", **kind)
    workdir = tmp_path_factory.mktemp("runs") / "memory"
    return FinishedRun(config, workdir, train(config, workdir, progress=False))


def memory_of(workdir: Path) -> np.ndarray:
    return np.asarray(load(workdir).scorer.model.stats["memory"])


def test_it_sees_no_anomaly_and_finds_them(memory: FinishedRun) -> None:
    metrics = memory.metrics
    assert (metrics["n_seen"], metrics["n_test"], metrics["epochs"]) == (0, 23, 1)
    assert metrics["auc_roc"] > 0.9
    assert evaluate(memory.workdir, progress=False) == metrics == Workdir(memory.workdir).metrics()
    # The threshold is set by all normals, each of them in turn.
    at = metrics["at_threshold"]
    assert (metrics["n_train_normal"], at["held_out"], at["folds"]) == (20, 20, 10)
    assert at["promised_fpr"] == pytest.approx(1 / 21)
    # All normal locations fit in, each once.
    assert len(np.unique(memory_of(memory.workdir), axis=0)) > 150


@pytest.mark.slow
def test_heat_maps_and_the_exported_file_say_the_same(memory: FinishedRun, tmp_path: Path) -> None:
    predictor = load(memory.workdir)
    images = sorted((Path(memory.config.data.data) / "carpet/test/spot").iterdir())[:3]
    found = predictor.outcome(images)
    np.testing.assert_allclose(found.heat.max((1, 2)), found.scores, rtol=0.2)
    export_model(memory.workdir, tmp_path / "model.bin")
    model = jax_export.deserialize(bytearray((tmp_path / "model.bin").read_bytes()))
    pixels = np.stack([read_image(path, 192) for path in images])
    scores = jax.jit(model.call)(pixels, np.float32("nan"))["score"]
    np.testing.assert_allclose(scores, found.scores, rtol=1e-4)


def test_images_that_are_given_are_those_of_the_test(memory: FinishedRun, tmp_path: Path) -> None:
    split = load_split(memory.config)
    fewer = dataclasses.replace(split, test=split.test[1::2])
    metrics = train(memory.config, tmp_path / "run", fewer, progress=False)
    assert metrics["n_test"] == len(fewer.test) < memory.metrics["n_test"]
    again = evaluate(tmp_path / "run", split=fewer, progress=False)
    assert again == metrics == Workdir(tmp_path / "run").metrics()


def test_its_command_says_that_it_was_fitted(memory: FinishedRun, capsys: Capture) -> None:
    data = [memory.config.data.data, "--category", "carpet", "--preset", "debug"]
    kind = ["--detector", "patchcore", "--method", "fit", "--shots", "0"]
    main(["train", *data, *kind, "--workdir", str(memory.workdir)])
    said = capsys.readouterr().out
    assert said.startswith("PatchCore, fitted to 20 normals, reaches an AUC-ROC of ")


def test_a_folder_of_normals_alone_is_enough(weave: Path, capsys: Capture, tmp_path: Path) -> None:
    shutil.copytree(weave / "train/good", tmp_path / "weave/train/good")
    data, run = str(tmp_path / "weave"), str(tmp_path / "run")
    options = ["--preset", "debug", "--detector", "patchcore"]
    with pytest.raises(SystemExit):
        main(["train", data, "--workdir", run, "--preset", "debug"])
    assert "--shots 0 --method fit" in capsys.readouterr().err
    main(["train", data, "--workdir", run, *options, "--shots", "0", "--method", "fit"])
    assert "it is not tested, as the data has no anomalies" in capsys.readouterr().out
    images = sorted((weave / "test/spot").iterdir())
    assert load(run).predict(images, fpr=0.3).all()
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", run])
    assert stopped.value.code == 2
    assert "no anomalies to test on" in capsys.readouterr().err


def test_a_report_has_what_there_is(memory: FinishedRun) -> None:
    text = report(memory.workdir).read_text(encoding="utf-8")
    assert "PatchCore" in text


def test_fine_tuning_fits_it_to_the_target(memory: FinishedRun, tmp_path: Path) -> None:
    target = DataConfig(memory.config.data.data, "grid", shots=0, held_out=0.1, in_turn=True)
    metrics = finetune(memory.workdir, target, tmp_path / "grid", progress=False)
    config: Config = Workdir(tmp_path / "grid").config()
    assert config.learning.method == "fit"
    assert metrics["auc_roc"] > 0.9
    assert metrics["at_threshold"]["folds"] == 10
    assert np.abs(memory_of(tmp_path / "grid") - memory_of(memory.workdir)).max() > 0.1
