"""Normals that are held out in turn, each scored by a detector that has not seen it."""

import dataclasses
import gc
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest

from ahl_jax import UserError, load, preset, recalibrate
from ahl_jax.cli.main import main
from ahl_jax.config.settings import SCALES
from ahl_jax.detectors import Blocks
from ahl_jax.detectors.whitening import fit_whitening
from ahl_jax.features import FeatureMaps, PseudoFeatures
from ahl_jax.features.pooling import pooled_features
from ahl_jax.features.split import FittedFeatures
from ahl_jax.learning.folds import make_folds
from ahl_jax.run import calibrate
from ahl_jax.run.calibrate import scores_in_turn
from ahl_jax.run.options import RunOptions
from tests.runs import FinishedRun

OPTIONS = RunOptions(progress=False)


def _given(normals: FeatureMaps, anomalies: int = 0, made: int = 0) -> FittedFeatures:
    """Features of a run; every pseudo-anomaly is made of the normal of its number and the next."""
    pseudo = PseudoFeatures(
        _maps(made, 5), np.zeros(made, int), np.arange(made), np.arange(made) + 1
    )
    marked = np.zeros((anomalies, 1), int)
    return FittedFeatures(normals, (), _maps(anomalies, 1), marked, pseudo)


def _maps(images: int, seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    # Two means over views, of two channels each.
    level = rng.normal(size=(images, 1, 1, 4)) * [1, 2, 5, 3]
    sides = (6, 3)
    return tuple((level + rng.normal(size=(images, s, s, 4))).astype(np.float32) for s in sides)


@pytest.mark.parametrize("poolings", [1, 3])
def test_each_is_scored_by_a_fit_to_the_others(poolings: int) -> None:
    config = preset("density", "", detector="gaussian", seed=3, poolings=poolings)
    normals = _maps(23, 0)
    scores, heat, parts = scores_in_turn(config, _given(normals), (), OPTIONS)
    assert heat is not None
    assert (parts, heat.shape) == (10, (23, 6, 6))
    blocks = Blocks(poolings, 2)
    pooled, expected = pooled_features(normals, blocks), np.zeros(23)
    for left_out, own in make_folds(23, 0.1, 3):
        known = np.delete(pooled, left_out, 0)
        whitening = fit_whitening(known, SCALES, poolings=blocks.total)
        tested = left_out[:own]
        expected[tested] = np.linalg.norm(whitening.whitened(pooled[tested]), axis=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("poolings", "groups", "labelled", "made"), [(1, 3, 4, 0), (3, 1, 4, 9), (3, 1, 0, 0)]
)
def test_pooled_features_alone_give_the_scores_of_whole_maps(
    poolings: int, groups: int, labelled: int, made: int
) -> None:
    given = _given(_maps(23, 0), labelled, made=made), (), OPTIONS
    local = np.random.default_rng(4).normal(size=23).astype(np.float32)
    found, more = [], []
    for fine_heat in (True, False):
        config = preset("density", "", poolings=poolings, groups=groups, fine_heat=fine_heat)
        found.append(scores_in_turn(config, *given))
        more.append(scores_in_turn(config, *given, local=local)[0])
    (scores, none, _), (expected, heat, _) = found
    assert none is None
    assert heat is not None
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(*more, rtol=1e-3, atol=1e-3)
    # Each fit has a deviation of its own by which the local head counts.
    counts = (more[0] - scores) / local
    for left_out, own in make_folds(23, 0.1, config.seed):
        np.testing.assert_allclose(counts[left_out[:own]], counts[left_out[0]], rtol=1e-2)
    assert 0.5 < counts.min() < counts.max() < 10


def test_streamed_features_give_the_same_and_are_let_go() -> None:
    config = preset("density", "", groups=1, poolings=1, fine_heat=False)
    normals = _maps(23, 0)
    expected, expected_heat, _ = scores_in_turn(config, _given(normals, 4), (), OPTIONS)
    streamed = dataclasses.replace(OPTIONS, feature_memory=1e-6)
    scores, heat, _ = scores_in_turn(config, _given(normals, 4), (), streamed)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    np.testing.assert_allclose(heat, expected_heat, rtol=1e-5)
    # A program that streams stays in JAX's caches, and the features would stay with it.
    kept = weakref.ref(normals[0])
    del normals
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("fine_heat", [True, False])
def test_a_copy_of_a_normal_is_in_no_fit(fine_heat: bool) -> None:
    config = preset("density", "", groups=1, poolings=1, fine_heat=fine_heat)
    normals = _maps(23, 0)
    expected, _, folds = scores_in_turn(config, _given(normals, 4), (), OPTIONS)
    order = [i for i in range(23) for _ in range(1 + i % 3)]
    own = [order.index(i) for i in range(23)]
    twice = tuple(each[order] for each in normals)
    scores, _, parts = scores_in_turn(config, _given(twice, 4), (), OPTIONS, own)
    assert parts == folds
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


@pytest.mark.parametrize("fine_heat", [True, False])
def test_a_pseudo_anomaly_is_in_no_fit_without_one_of_its_normals(fine_heat: bool) -> None:
    config = preset("density", "", groups=1, poolings=1, fine_heat=fine_heat)
    given = _given(_maps(23, 0), 4, made=9)
    before, _, _ = scores_in_turn(config, given, (), OPTIONS)
    other = tuple(scale.copy() for scale in given.pseudo.maps)
    for scale in other:
        scale[3] += 5
    changed = dataclasses.replace(given, pseudo=dataclasses.replace(given.pseudo, maps=other))
    after, _, _ = scores_in_turn(config, changed, (), OPTIONS)
    # It is made of the normals 3 and 4.
    np.testing.assert_array_equal(after[3:5], before[3:5])
    assert (after != before).sum() > 15


def test_two_normals_are_enough() -> None:
    config = preset("density", "", groups=1, poolings=1)
    given = _given(_maps(2, 1), 3, made=2)
    scores, _, parts = scores_in_turn(config, given, (), OPTIONS)
    assert parts == len(scores) == 2
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"held_out": 0.0}, False),
        ({"in_turn": False}, False),
        ({"method": "ahl"}, False),
        ({"stage_one": True}, False),
    ],
)
def test_only_what_fits_at_once_holds_out_in_turn(settings: dict, expected: bool) -> None:
    assert preset("density", "", **settings).in_turn is expected


def test_new_photographs_of_good_parts_set_the_threshold_of_a_finished_run(
    finished: FinishedRun,
    weave: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = shutil.copytree(finished.workdir, tmp_path / "run")
    new = shutil.copytree(weave / "test/good", tmp_path / "new")
    shutil.copy(new / "00.png", new / "copy.png")
    main(["threshold", str(run), "--good", str(new)])
    title, head, *rows, said = capsys.readouterr().out.splitlines()
    assert title == "Thresholds by 9 held-out normals, in steps of 10.0%"
    assert head.split("  ")[-1] == "anomalies found"
    # These are the normals of the test.
    assert [row.split()[0] for row in rows] == ["0.01", "0.02", "0.05", "0.1"]
    assert all("at most 10.0%        0 of 9" in row for row in rows)
    images = sorted((weave / "test/good").iterdir())
    scores = load(run).score(images)
    np.testing.assert_allclose(load(run).calibrated().scores, np.sort(scores), atol=1e-4)
    assert said.startswith("Of these normals the highest scores are those of ")
    names = [Path(name).name for name in said.split(";")[0].split(" of ")[-1].split(", ")]
    copied = {"copy.png": "00.png"}  # The second of two of the same content counts.
    assert [copied.get(name, name) for name in names] == [
        images[i].name for i in np.argsort(scores)[:-4:-1]
    ]
    before = (run / "checkpoint/calibration.json").read_bytes()
    with pytest.raises(UserError, match=r"training has seen 18 images of 20, such as"):
        recalibrate(run, [weave / "train/good"])
    assert (run / "checkpoint/calibration.json").read_bytes() == before
    recalibrate(run, images[:3])
    assert "3 photographs replace 9 normals: the lowest rate" in capsys.readouterr().err
    (run / "images.csv").unlink()
    recalibrate(run, images[:3])
    assert "whether these were trained on is not known" in capsys.readouterr().err
    shutil.copytree(weave / "test/spot", new / "bad")
    with pytest.raises(UserError, match="bad in it are defects by their name"):
        recalibrate(run, [new])
    unfinished = dataclasses.replace(load(run), metadata={"epochs": 1})
    monkeypatch.setattr("ahl_jax.run.calibrate.load", lambda _: unfinished)
    with pytest.raises(UserError, match="is not finished"):
        recalibrate(run, [new])


def test_copies_among_the_normals_that_set_thresholds_are_told(tmp_path: Path) -> None:
    config = preset("density", str(tmp_path))
    images = [tmp_path / name for name in "abcd"]
    for path, content in zip(images, ("one", "two", "one", "one"), strict=True):
        path.write_text(content)
    own, said = calibrate._own(config, images)
    assert own == [0, 1]
    assert said == "thresholds are set by 2 training normals of 4: the others are copies"
    own, said = calibrate._own(config, images[2:], images[1:2])
    assert own == [0]
    assert said == "thresholds are set by 1 training normal of 2: the others are copies"
    # Without the others nothing is left to fit to.
    for known in ([], images[:1]):
        own, said = calibrate._own(config, images[2:], known)
        assert own == [0, 1]
        assert said is not None
        assert said.startswith("thresholds are set by 2 normals, all copies of what is fitted to")
    assert calibrate._own(config, images[:2]) == ([0, 1], None)
    kept = preset("density", str(tmp_path), keep_copies=True)
    assert calibrate._own(kept, images) == ([0, 1, 2, 3], None)
