"""A detector that trains nothing, on normal images alone: a run like any other."""

import dataclasses
import shutil
import warnings
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
from ahl_jax.run.update import updated_name
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
    said = capsys.readouterr().err
    assert "--shots 0, and --method fit where another one is set" in said
    main(["train", data, "--workdir", run, *options, "--shots", "0", "--method", "fit"])
    said = capsys.readouterr()
    assert said.out.endswith("it has no metrics, as they take normals and anomalies to test on.\n")
    assert "there will be no metrics" in said.err
    images = sorted((weave / "test/spot").iterdir())
    assert load(run).predict(images, fpr=0.3).all()
    main(["evaluate", run])
    said = capsys.readouterr().out
    assert "There are no AUC-ROC and AUC-PR" in said
    assert "0 test images" in said
    assert "set by 20 normals held out in 10 parts for about 4.8% false positives" in said
    text = report(run).read_text(encoding="utf-8")
    assert "There are no test images." in text
    # What comes later can be tested on.
    shutil.copytree(weave / "test/good", tmp_path / "weave/test/good")
    assert evaluate(run)["at_threshold"]["tpr"] is None
    shutil.copytree(weave / "test/spot", tmp_path / "weave/test/spot")
    metrics = evaluate(run)
    assert (metrics["n_test"], metrics["at_threshold"]["tpr"]) == (16, 1)
    assert "16 images added, of which the test has 16" in capsys.readouterr().err


def test_a_report_has_what_there_is(memory: FinishedRun) -> None:
    text = report(memory.workdir).read_text(encoding="utf-8")
    assert "PatchCore" in text


def test_an_update_has_the_images_so_far_and_new_ones(
    weave: Path, tmp_path: Path, capsys: Capture
) -> None:
    data = tmp_path / "weave"
    shutil.copytree(weave, data)
    (data / "train/spot").mkdir()
    (data / "test/spot/00.png").rename(data / "train/spot/00.png")
    kind = {"detector": "patchcore", "method": "fit"}
    old, new = tmp_path / "old", tmp_path / "old-2"
    before = train(preset("debug", str(data), **kind), old, progress=False)
    assert (before["n_seen"], before["n_test"]) == (1, 22)
    (tmp_path / "more/spot").mkdir(parents=True)
    (data / "test/spot/01.png").rename(tmp_path / "more/spot/a.png")
    shutil.copy(data / "test/scratch/00.png", tmp_path / "more/b.png")
    kept = (old / "images.csv").read_bytes()
    with warnings.catch_warnings(action="ignore"):
        main(["update", str(old), "--defects", str(tmp_path / "more")])
    assert f"everything is in {new}" in capsys.readouterr().out
    assert (old / "images.csv").read_bytes() == kept
    after = Workdir(new).metrics()
    assert after is not None
    assert (after["n_train_normal"], after["n_seen"]) == (before["n_train_normal"], 3)
    assert (after["n_test"], after["n_left_out_copies"]) == (20, 1)
    assert evaluate(new, progress=False) == after
    seen = [row for row in Workdir(new).images() or () if row.part == "train" and row.anomaly_class]
    assert [(row.anomaly_class, row.path) for row in seen] == [
        ("spot", "train/spot/00.png"),
        ("anomaly", str(tmp_path / "more/b.png")),
        ("spot", str(tmp_path / "more/spot/a.png")),
    ]


@pytest.mark.parametrize(("run", "new"), [("a/b", "a/b-2"), ("a/b-2", "a/b-3"), ("9", "9-2")])
def test_an_update_has_a_name_of_its_own(run: str, new: str) -> None:
    assert updated_name(run) == Path(new)


def test_fine_tuning_fits_it_to_the_target(memory: FinishedRun, tmp_path: Path) -> None:
    target = DataConfig(memory.config.data.data, "grid", shots=0, held_out=0.1, in_turn=True)
    metrics = finetune(memory.workdir, target, tmp_path / "grid", progress=False)
    config: Config = Workdir(tmp_path / "grid").config()
    assert config.learning.method == "fit"
    assert metrics["auc_roc"] > 0.9
    assert metrics["at_threshold"]["folds"] == 10
    assert np.abs(memory_of(tmp_path / "grid") - memory_of(memory.workdir)).max() > 0.1
