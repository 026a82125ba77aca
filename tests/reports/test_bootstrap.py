import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from ahl_jax.reports.bootstrap import _areas, resample, resample_one
from ahl_jax.run.metrics import image_metrics

# Few distinct values, so that there are ties.
SCORES = st.lists(st.integers(-4, 4), min_size=1, max_size=30)


@given(SCORES, SCORES)
def test_the_areas_are_those_of_the_metrics(normals: list[int], anomalies: list[int]) -> None:
    scores = np.array(normals + anomalies, np.float32)
    normal = np.arange(len(scores)) < len(normals)
    found = resample(scores, normal, draws=1).values
    expected = image_metrics(scores, [None if n else "crack" for n in normal])
    assert found == pytest.approx([expected["auc_roc"], expected["auc_pr"]], abs=1e-12)


@given(SCORES, SCORES, st.integers(0, 2**32 - 1))
def test_counted_images_are_as_repeated_ones(
    normals: list[int], anomalies: list[int], seed: int
) -> None:
    scores = np.array(normals + anomalies, float)
    normal = np.arange(len(scores)) < len(normals)
    counts = np.random.default_rng(seed).integers(0, 3, (1, len(scores)))
    counts[0, [0, -1]] += 1
    repeated, kinds = np.repeat(scores, counts[0]), np.repeat(~normal, counts[0])
    expected = [roc_auc_score(kinds, repeated), average_precision_score(kinds, repeated)]
    assert _areas(scores, normal, counts)[0] == pytest.approx(expected, abs=1e-12)


def test_intervals_hold_the_true_area_in_19_of_20_tests() -> None:
    rng = np.random.default_rng(0)
    normal = np.arange(120) < 60
    held = 0
    for _ in range(200):
        # P(anomaly > normal) of two exponentials with rates 1 and 1/3 is 3/4.
        scores = rng.exponential(np.where(normal, 1, 3))
        roc, _ = resample(scores, normal, draws=200).intervals()
        held += roc.low <= 0.75 <= roc.high
    assert 0.9 <= held / 200 <= 0.985


@given(SCORES, SCORES)
def test_one_detector_alone_has_the_same_areas(normals: list[int], anomalies: list[int]) -> None:
    scores = np.array(normals + anomalies, float)
    normal = np.arange(len(scores)) < len(normals)
    found = resample_one(scores[normal], scores[~normal], draws=1).values
    np.testing.assert_allclose(found, resample(scores, normal, draws=1).values)


def test_one_detector_alone_has_intervals_as_wide() -> None:
    rng = np.random.default_rng(0)
    normal = np.arange(300) < 200
    scores = np.round(rng.normal(size=300) + 1.2 * ~normal, 1)
    deviations = resample_one(scores[normal], scores[~normal]).draws.std(0)
    np.testing.assert_allclose(deviations, resample(scores, normal).draws.std(0), rtol=0.1)


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(1)
    normal = np.arange(300) < 150
    scores = rng.normal(size=300) + 1.2 * ~normal
    first = resample(scores, normal)
    same, _ = resample(2 * scores + 1, normal).minus(first).intervals()
    assert same == (0, 0, 0)
    # A little noise of its own: the difference is far surer than either area.
    noisy = resample(scores + rng.normal(0, 0.1, 300), normal)
    difference, _ = noisy.minus(first).intervals()
    alone, _ = first.intervals()
    assert difference.high - difference.low < (alone.high - alone.low) / 4
    assert resample(scores, normal).draws.tolist() == first.draws.tolist()
