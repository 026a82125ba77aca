"""Thresholds and probabilities by held-out normals."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahl_jax.common.errors import UserError
from ahl_jax.inference.threshold import (
    Calibration,
    calibration_of,
    check_cut,
    cut_of,
    read_calibration,
)


def _calibration(scores: np.ndarray) -> Calibration:
    return calibration_of(np.asarray(scores, np.float32), np.linspace(0, 1, 1001))


def test_the_threshold_is_the_conformal_rank() -> None:
    calibration = _calibration(np.arange(199)[::-1])
    # (199 + 1) * 0.99 = 198, so the 198th of 0 .. 198.
    assert calibration.threshold(0.01) == 197
    assert calibration.promised(0.01) == 0.01
    assert calibration.threshold(0.1) == 179


def test_few_normals_promise_what_they_can() -> None:
    calibration = _calibration(np.array([3.0, 1.0, 2.0]))
    assert calibration.threshold(0.01) == 3
    assert calibration.promised(0.01) == 0.25
    # One threshold has one promise.
    assert calibration.threshold(0.3) == 3
    assert calibration.promised(0.3) == 0.25
    assert calibration.threshold(0.5) == 2
    assert calibration.promised(0.5) == 0.5


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({}, "with 3 held-out normals .* is 25 %; 1 % takes 99 of them .see `held_out`.$"),
        (
            {"folds": 3},
            "with 3 normals .* is 25 %; 1 % takes 99 of them, .* far off, .*: give 10 or more$",
        ),
        ({"given": True}, "with 3 photographs .* of them; give that many with `ahl threshold RUN"),
    ],
)
def test_too_few_are_told_the_way_to_more(how: dict, sentence: str, tmp_path: Path) -> None:
    calibration = calibration_of(np.arange(3, dtype=np.float32), np.ones(4), **how)
    (tmp_path / "calibration.json").write_text(calibration.text())
    kept = read_calibration(tmp_path)
    assert kept is not None
    assert re.match(sentence, kept.shortfall(0.01) or "")
    assert kept.shortfall(0.25) is None


@pytest.mark.parametrize(
    ("normals", "folds", "far_off"), [(5, 5, True), (10, 10, False), (5, 0, False)]
)
def test_thresholds_by_fits_to_few_normals_are_said_to_be_far_off(
    normals: int, folds: int, far_off: bool
) -> None:
    calibration = dataclasses.replace(_calibration(np.arange(float(normals))), folds=folds)
    assert ("far off" in (calibration.shortfall(0.01) or "")) == far_off


@pytest.mark.parametrize(("normals", "fpr"), [(20, 0.05), (99, 0.01), (150, 0.02)])
def test_normals_to_come_are_above_it_as_rarely_as_promised(normals: int, fpr: float) -> None:
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(3000):
        calibration = _calibration(rng.gamma(2, size=normals))
        threshold = calibration.threshold(fpr)
        rates.append(np.exp(-threshold) * (1 + threshold))  # P(gamma(2) > threshold)
    share = math.floor((normals + 1) * fpr + 1e-9) / (normals + 1)
    assert np.mean(rates) == pytest.approx(share, rel=0.06)
    assert share <= fpr + 1e-12


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60),
    st.lists(st.floats(-2e3, 2e3, width=32), min_size=2, max_size=30),
)
def test_probabilities_rise_with_the_score(held_out: list[float], scores: list[float]) -> None:
    found = _calibration(np.array(held_out)).probability(np.sort(np.array(scores, np.float32)))
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found) >= -1e-9).all()


def test_probabilities_of_normals_are_uniform() -> None:
    rng = np.random.default_rng(1)
    calibration = _calibration(rng.normal(size=4000))
    found = np.sort(calibration.probability(rng.normal(size=4000)))
    assert np.abs(found - np.linspace(0, 1, 4000)).max() < 0.035
    # The tail goes on where no held-out normal is, and errs to the safe side.
    above = 1 - calibration.probability(np.array([4.0, 8.0]))
    assert 3.2e-5 < above[0] < 1e-3
    assert 0 < above[1] < 1e-6


def test_rates_on_labelled_images() -> None:
    calibration = _calibration(np.arange(9))
    scores, normal = np.array([0.0, 9, 20, 1]), [True, True, False, False]
    cut = cut_of(calibration, 0.1)
    assert cut is not None
    assert cut.rates(scores, normal) == {
        "threshold": 8, "promised_fpr": 0.1, "fpr": 0.5, "tpr": 0.5, "held_out": 9, "folds": 0,
    }  # fmt: skip


def test_it_is_kept_as_written(tmp_path) -> None:
    scores = np.random.default_rng(2).normal(size=30).astype(np.float32)
    calibration = calibration_of(scores, np.linspace(0, 1, 1001), folds=10)
    assert read_calibration(tmp_path) is None
    (tmp_path / "calibration.json").write_text(calibration.text())
    again = read_calibration(tmp_path)
    assert again is not None
    assert (again.scores == calibration.scores).all()
    assert (again.locations, again.folds) == (calibration.locations, 10)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"scores": [], "locations": [0, 1]}', '{"scores": [NaN], "locations": 1}']
)
def test_a_damaged_one_is_refused(tmp_path, text: str) -> None:
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(UserError, match="damaged"):
        read_calibration(tmp_path)


@pytest.mark.parametrize("fpr", [0, 1, -0.1, float("nan")])
def test_rates_are_between_0_and_1(fpr: float) -> None:
    with pytest.raises(UserError, match="`fpr`"):
        check_cut(fpr, None)


def test_a_threshold_stands_in_the_place_of_a_rate() -> None:
    assert cut_of(None) is None
    named = cut_of(_calibration(np.arange(9)), threshold=2.5)
    assert named == cut_of(None, threshold=2.5)
    assert named is not None
    assert (named.threshold, named.promised_fpr) == (2.5, None)
    assert cut_of(None, threshold=0) is not None
    with pytest.raises(UserError, match="both given"):
        check_cut(0.1, 2.5)
    with pytest.raises(UserError, match="finite"):
        check_cut(None, float("nan"))


def test_scores_that_are_no_numbers_set_no_threshold() -> None:
    with pytest.raises(UserError, match="the training diverged"):
        calibration_of(np.array([1, np.nan]), np.ones(4))


@pytest.mark.parametrize(
    "changed",
    [
        {"scores": [1, 1e300]},
        {"scores": []},
        {"locations": [0, float("inf")]},
        {"folds": -3},
        {"highest": "abc"},
        {"highest": [1]},
        {"highest": ["a"] * 4},
        {"highest": ["a" * 5000]},
    ],
)
def test_a_calibration_of_a_stranger_holds_what_is_written(changed: dict, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    written = calibration_of(np.arange(4.0), np.ones(4), ["a", "b", "c", "d"], 4)
    (folder / "calibration.json").write_text(written.text())
    read = read_calibration(folder)
    assert read is not None
    assert read.highest == ("d", "c", "b")
    values = json.loads(written.text()) | changed
    (folder / "calibration.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="is damaged"):
        read_calibration(folder)
