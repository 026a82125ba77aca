"""The head on single locations, against NumPy."""

import numpy as np
import pytest

from ahl_jax.detectors.local_head import (
    LocalHead,
    extremes,
    finer_levels,
    local_scores,
    make_local_head,
)
from ahl_jax.detectors.localizer import Localizer, fit_localizer, heat_of, pointed

CHANNELS = 4


@pytest.fixture
def fine() -> np.ndarray:
    """Normal images of 8 x 8 locations."""
    return np.random.default_rng(0).normal(size=(30, 8, 8, CHANNELS)).astype(np.float32)


@pytest.fixture
def anomalies() -> np.ndarray:
    """Images whose locations at one place are elsewhere in one direction."""
    found = np.random.default_rng(1).normal(size=(5, 8, 8, CHANNELS)).astype(np.float32)
    found[:, 2, 3] += (6, 0, 0, 0)
    return found


def highest(values: np.ndarray, count: int) -> np.ndarray:
    return np.sort(values.reshape(len(values), -1), axis=1)[:, -count:].mean(1)


def head_of(localizer: Localizer, fine: np.ndarray, labelled: int) -> LocalHead:
    return make_local_head(localizer, np.asarray(extremes(localizer, fine)), labelled)


def test_extremes_are_means_of_the_three_highest_of_64(
    fine: np.ndarray, anomalies: np.ndarray
) -> None:
    localizer = pointed(fit_localizer(fine[10:]), anomalies)
    z = (fine[:10] - localizer.mean) @ localizer.whitening
    far = np.square(z[..., None, :] - localizer.neighbours).sum(-1).min(-1)
    expected = np.stack([highest(far, 3), highest(z @ localizer.direction, 3)], axis=1)
    np.testing.assert_allclose(extremes(localizer, fine[:10]), expected, rtol=1e-3)
    # They are of the same two parts as the heat.
    heat = np.maximum(far + z @ localizer.direction, 0)
    np.testing.assert_allclose(heat_of(localizer, fine[:10]), heat, rtol=1e-3, atol=1e-3)


def test_scores_are_standardised_by_the_normals(fine: np.ndarray, anomalies: np.ndarray) -> None:
    localizer = pointed(fit_localizer(fine[10:]), anomalies)
    both = np.asarray(extremes(localizer, fine[:10]), np.float64)
    head = make_local_head(localizer, both, 5)
    length = np.linalg.norm(localizer.direction)
    expected = np.array([0.5 * both[:, 0].mean(), 1.5 * length])
    deviation = np.sqrt((10 * both.var(0) + 4 * expected**2) / 14)
    far, towards = ((both - both.mean(0)) / deviation).T
    scores = 0.25 * far + 5 / 8 * towards
    np.testing.assert_allclose(head.of_normals, scores, rtol=1e-3, atol=1e-5)
    assert abs(float(head.of_normals.mean())) < 1e-5
    np.testing.assert_allclose(
        local_scores(head, fine[:10], CHANNELS), scores, rtol=1e-3, atol=1e-4
    )
    assert np.asarray(local_scores(head, anomalies, CHANNELS)).min() > 2 * scores.max()


@pytest.mark.parametrize("normals", [1, 2])
def test_few_normals_and_no_labelled_anomaly(fine: np.ndarray, normals: int) -> None:
    localizer = fit_localizer(fine)
    head = head_of(localizer, fine[:normals] + 1, 0)
    assert head.gain[1] == 0 < head.gain[0]
    # Two of them that happen to be alike say little of how much normals differ.
    assert np.abs(head.of_normals).max() < 1
    constant = np.zeros_like(fine)
    same = head_of(fit_localizer(constant), constant[:normals], 0)
    found = local_scores(same, constant, CHANNELS)
    assert np.isfinite(found).all()
    assert all(np.asarray(part).dtype == np.float32 for part in (*head[1:], *same[1:]))


def test_it_reads_the_finer_levels_of_the_first_mean(fine: np.ndarray) -> None:
    coarse, other = np.full((30, 8, 8, 6), 7, np.float32), np.full((30, 8, 8, 10), 8, np.float32)
    maps = np.concatenate([coarse, fine, other], axis=-1)
    np.testing.assert_array_equal(finer_levels(maps, (6, 3, 1)), fine)
    np.testing.assert_array_equal(finer_levels(fine, (CHANNELS,)), fine)
    head = head_of(fit_localizer(fine[10:]), fine[:10], 0)
    found, expected = local_scores(head, maps, 10), local_scores(head, fine, CHANNELS)
    np.testing.assert_array_equal(found, expected)
