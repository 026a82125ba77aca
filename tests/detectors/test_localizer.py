"""Heat maps of fine features, against plain distances and known places."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from ahl_jax.detectors.localizer import Localizer, fit_localizer, heat_of, pointed


@pytest.fixture
def fine() -> np.ndarray:
    """Twelve normal images of 6 x 5 locations; every location has a mean of its own."""
    rng = np.random.default_rng(0)
    place, mixing = 3 * rng.normal(size=(6, 5, 4)), rng.normal(size=(4, 4))
    return (place + rng.normal(size=(12, 6, 5, 4)) @ mixing).astype(np.float32)


def heat(localizer: Localizer, fine: np.ndarray) -> np.ndarray:
    return np.asarray(heat_of(localizer, fine.astype(np.float32)))


def test_it_is_the_squared_distance_to_the_nearest_whitened_neighbour(fine: np.ndarray) -> None:
    localizer = fit_localizer(fine)
    others = fine[:3] + np.random.default_rng(1).normal(size=(3, 6, 5, 4))
    z = ((others - localizer.mean) @ localizer.whitening).reshape(-1, 4)
    expected = cdist(z, localizer.neighbours, "sqeuclidean").min(1).reshape(3, 6, 5)
    np.testing.assert_allclose(heat(localizer, others), expected, rtol=1e-3, atol=1e-4)


def test_what_is_left_without_the_means_is_white(fine: np.ndarray) -> None:
    localizer = fit_localizer(fine)
    assert localizer.neighbours.shape == (12 * 6 * 5, 4)
    square = localizer.neighbours.T @ localizer.neighbours / len(localizer.neighbours)
    np.testing.assert_allclose(square, np.eye(4), atol=1e-4)
    # Of many images the means are those of the locations, whatever the whole's is.
    many = fit_localizer(np.concatenate([fine] * 500))
    np.testing.assert_allclose(many.mean, fine.mean(0), atol=0.1)


def test_training_images_are_cold_and_what_is_elsewhere_is_hot(fine: np.ndarray) -> None:
    localizer = fit_localizer(fine)
    np.testing.assert_allclose(heat(localizer, fine), 0, atol=5e-3)
    # A feature that is normal at one location is not at another one.
    moved = fine[:1].copy()
    moved[0, 2, 3] = moved[0, 0, 0] + 10
    found = heat(localizer, moved)[0]
    assert np.unravel_index(found.argmax(), found.shape) == (2, 3)
    assert found[2, 3] > 9


@pytest.mark.parametrize("count", [1, 2])
def test_few_images_and_channels_that_never_change(fine: np.ndarray, count: int) -> None:
    few = fine[:count].copy()
    few[..., 2] = 7
    localizer = fit_localizer(few)
    assert all(np.isfinite(part).all() and part.dtype == np.float32 for part in localizer)
    assert np.isfinite(heat(localizer, fine)).all()
    for value in (0, 7):
        constant = fit_localizer(np.full_like(few, value))
        assert np.isfinite(heat(constant, fine)).all()


def test_it_takes_some_of_many_locations_always_the_same(fine: np.ndarray) -> None:
    many = np.concatenate([fine + i for i in range(20)])
    first, second = fit_localizer(many), fit_localizer(many)
    assert len(first.neighbours) == 2000 < many[..., 0].size
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_labelled_anomalies_heat_what_is_like_their_hottest_locations(fine: np.ndarray) -> None:
    localizer = fit_localizer(fine)
    rng = np.random.default_rng(2)
    anomalies = fine[:3] + 0.1 * rng.normal(size=(3, 6, 5, 4)).astype(np.float32)
    anomalies[:, 1, 2] += (12, 0, 0, 0)
    directed = pointed(localizer, anomalies)
    # Thirty locations have one that is hottest; three of four images' worth of their mean.
    z = (anomalies[:, 1, 2] - localizer.mean[1, 2]) @ localizer.whitening
    mean = (z / np.linalg.norm(z, axis=-1, keepdims=True)).mean(0)
    np.testing.assert_allclose(directed.direction, 10 * 2 * 3 / 4 * mean, rtol=1e-3)
    for before, after in zip(localizer[:3], directed[:3], strict=True):
        np.testing.assert_array_equal(before, after)
    # One defect that is like theirs, one that is opposite, both as far from normal locations.
    others = np.stack([fine[5], fine[5]])
    shift = np.linalg.solve(localizer.whitening.T, 4 * mean / np.linalg.norm(mean))
    others[:, 3, 3] = localizer.mean[3, 3] + np.stack([shift, -shift])
    pull = (others - localizer.mean) @ localizer.whitening @ directed.direction
    expected = np.maximum(heat(localizer, others) + pull, 0)
    np.testing.assert_allclose(heat(directed, others), expected, rtol=1e-3, atol=1e-2)
    like, opposite = heat(directed, others)[:, 3, 3] - heat(localizer, others)[:, 3, 3]
    assert like > 10
    assert opposite < 0


def test_defects_that_differ_point_less_than_those_that_agree(fine: np.ndarray) -> None:
    localizer = fit_localizer(fine)

    def length(*shifts: tuple[int, int, int, int]) -> float:
        anomalies = fine[: len(shifts)].copy()
        anomalies[:, 2, 2] += np.array(shifts, np.float32)
        return float(np.linalg.norm(pointed(localizer, anomalies).direction))

    alike, apart = (20, 0, 0, 0), (-20, 0, 0, 0)
    assert length(alike, apart) < length(alike) < length(alike, alike)
    # However far from normal one is, it counts no more than the other.
    far = (2000, 0, 0, 0)
    assert length(alike, far) == pytest.approx(length(alike, alike), rel=0.3)


def test_at_most_eight_locations_stand_for_a_defect() -> None:
    rng = np.random.default_rng(3)
    fine = rng.normal(size=(6, 24, 24, 4)).astype(np.float32)
    anomaly = np.zeros((1, 24, 24, 4), np.float32)
    anomaly[0, 5, :8, 0] = 30
    anomaly[0, 9, :10, 1] = 20
    localizer = fit_localizer(fine)
    direction = pointed(localizer, anomaly).direction
    # Hotter than the other defect, which has no part in it.
    hottest = localizer.whitening[0] / np.linalg.norm(localizer.whitening[0])
    assert direction @ hottest / np.linalg.norm(direction) > 0.99


@pytest.mark.parametrize("value", [0, 7])
def test_an_anomaly_that_is_like_a_normal_image_points_nowhere(value: int) -> None:
    constant = np.full((2, 6, 5, 4), value, np.float32)
    directed = pointed(fit_localizer(constant), constant)
    np.testing.assert_array_equal(directed.direction, 0)
    assert np.isfinite(heat(directed, constant + 1)).all()
