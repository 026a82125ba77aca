"""Heat maps of finer features, from training to prediction, evaluation and export."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from jax import export as jax_export

from ahl_jax import Predictor, evaluate, export_model, load, preset, train
from ahl_jax.config.presets import with_settings
from ahl_jax.data.images import read_image
from ahl_jax.features import Store
from ahl_jax.features import split as gather
from ahl_jax.features.images import fine_maps
from ahl_jax.inference.scorer import scorer_from_arrays
from ahl_jax.run.calibrate import scores_in_turn
from ahl_jax.run.evaluate import load_test
from ahl_jax.run.options import RunOptions
from tests.runs import FinishedRun

SETTINGS = {
    "method": "fit", "detector": "density", "whiten": True, "fine_heat": True, "local_head": True
}  # fmt: skip


@pytest.fixture(scope="module")
def run(marked: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    data = shutil.copytree(marked, tmp_path_factory.mktemp("data") / "marked")
    shutil.copy(data / "train/good/03.png", data / "train/good/copy.png")
    config = preset("debug", str(data), shots=4, **SETTINGS)
    workdir = tmp_path_factory.mktemp("runs") / "fine"
    return FinishedRun(config, workdir, train(config, workdir, progress=False))


@pytest.fixture(scope="module")
def predictor(run: FinishedRun) -> Predictor:
    return load(run.workdir)


@pytest.fixture(scope="module")
def images(run: FinishedRun) -> list[Path]:
    paths = [sample.path for sample in gather.load_split(run.config).test[::4]]
    return [path for path in paths if isinstance(path, Path)]


def test_they_have_twice_the_resolution_and_scores_are_as_without(
    run: FinishedRun, predictor: Predictor, images: list[Path]
) -> None:
    found = predictor.outcome(images)
    assert found.heat.shape == (len(images), 12, 12)
    split = gather.load_split(run.config)
    test = gather.test_features(run.config, split, predictor.trunk, Store(), progress=False)
    own = predictor.scorer.outcome(test.maps)
    assert own.heat.shape[1:] == (6, 6)
    np.testing.assert_allclose(found.scores, own.scores[::4], atol=1e-3)
    again = predictor.outcome_of([m[::4] for m in test.maps], images)
    np.testing.assert_allclose(again.heat, found.heat, atol=1e-3)


def test_the_local_head_adds_to_the_score_and_is_shown(
    predictor: Predictor, images: list[Path]
) -> None:
    found, scorer = predictor.outcome(images), predictor.scorer
    plain = dataclasses.replace(scorer, local_head=None)
    without = dataclasses.replace(predictor, scorer=plain).outcome(images)
    local = found.heads[:, predictor.heads.index("local")]
    assert local.std() > 0.1
    spread = np.asarray(scorer.model.stats["spread"])
    np.testing.assert_allclose(found.scores, without.scores + spread * local, rtol=1e-4)
    np.testing.assert_array_equal(found.heads[:, ::2], without.heads[:, ::2])


def test_the_thresholds_are_set_by_scores_with_the_local_head(
    run: FinishedRun, predictor: Predictor
) -> None:
    assert predictor.scorer.local_head is not None
    of_normals = np.asarray(predictor.scorer.local_head.of_normals)
    split, parts = gather.load_split(run.config), predictor.trunk.parts
    features = gather.fitted_features(run.config, split, predictor.trunk, Store(), progress=False)
    own = [i for i, path in enumerate(features.paths) if not str(path).endswith("copy.png")]
    assert len(own) == len(of_normals) - 1
    options = RunOptions(progress=False)
    scores, *_ = scores_in_turn(run.config, features, parts, options, own, of_normals)
    without, *_ = scores_in_turn(run.config, features, parts, options, own)
    set_by = np.sort(predictor.calibrated().scores)
    np.testing.assert_allclose(np.sort(scores), set_by, rtol=1e-3, atol=1e-3)
    assert np.abs(np.sort(without) - set_by).max() > 0.1


@pytest.mark.slow
def test_the_hottest_place_is_the_defect(
    run: FinishedRun, predictor: Predictor, images: list[Path]
) -> None:
    pixel = run.metrics["pixel"]
    assert evaluate(run.workdir, progress=False)["pixel"] == pixel
    coarse = with_settings(run.config, {"fine_heat": False})
    metrics = train(coarse, run.workdir.with_name("coarse"), progress=False)
    assert pixel["auroc"] > max(metrics["pixel"]["auroc"], 0.8)
    assert pixel["aupro"] > max(metrics["pixel"]["aupro"], 0.5)
    assert metrics["auc_roc"] == run.metrics["auc_roc"]
    assert load(run.workdir.with_name("coarse")).outcome(images[:1]).heat.shape == (1, 6, 6)


def test_a_copy_sets_no_threshold(run: FinishedRun, predictor: Predictor) -> None:
    normals = gather.load_split(run.config).train_normals
    assert len(predictor.calibrated().scores) == len(normals) - 1


def test_the_scale_of_their_colours_is_that_of_held_out_normals(run: FinishedRun) -> None:
    tested = load_test(run.workdir, progress=False)
    assert tested.predictor.calibration is not None
    median, hottest = tested.predictor.calibration.locations
    normals = [sample.path for sample in tested.test.samples if sample.anomaly_class is None]
    normal = tested.predictor.heat_maps(normals)
    assert np.median(normal) == pytest.approx(median, rel=0.2)
    assert np.quantile(normal, 0.9) < hottest


@pytest.mark.slow
def test_the_exported_file_has_them(
    run: FinishedRun, predictor: Predictor, images: list[Path], tmp_path: Path
) -> None:
    export_model(run.workdir, tmp_path / "model.bin", platforms=("cpu",))
    model = jax_export.deserialize(bytearray((tmp_path / "model.bin").read_bytes()))
    arrays = np.stack([read_image(path, 192) for path in images[:2]])
    # So many that XLA takes another product, which fails for matrices of one value.
    found = model.call(np.tile(arrays, (8, 1, 1, 1)), np.float32("nan"))
    expected = predictor.outcome(images[:2])
    np.testing.assert_allclose(found["heat"], np.tile(expected.heat, (8, 1, 1)), atol=1e-3)
    np.testing.assert_allclose(found["score"], np.tile(expected.scores, 8), atol=1e-3)


def test_labelled_anomalies_point_them_but_for_an_earlier_version(
    predictor: Predictor, images: list[Path]
) -> None:
    scorer = predictor.scorer
    assert scorer.localizer is not None
    assert np.linalg.norm(scorer.localizer.direction) > 1
    undirected = scorer.localizer._replace(direction=np.zeros_like(scorer.localizer.direction))
    arrays = scorer.arrays()
    del arrays["localizer"]["direction"]
    earlier = dataclasses.replace(predictor, scorer=scorer_from_arrays(predictor.config, arrays))
    plain = dataclasses.replace(
        predictor, scorer=dataclasses.replace(scorer, localizer=undirected)
    ).outcome(images)
    found = earlier.outcome(images)
    np.testing.assert_array_equal(found.heat, plain.heat)
    assert np.abs(found.heat - predictor.outcome(images).heat).max() > 1


def test_they_are_fitted_to_normals_in_any_number(
    run: FinishedRun, predictor: Predictor, images: list[Path]
) -> None:
    config = run.config.features
    together = fine_maps(images[:3], predictor.trunk, config)
    for one, path in zip(together, images, strict=False):
        alone = fine_maps([path], predictor.trunk, config)
        np.testing.assert_array_equal(alone[0], one)
