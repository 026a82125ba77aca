"""Whitening against scikit-learn's own Mahalanobis distances."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf

from ahl_jax.detectors.inputs import make_inputs, to_maps
from ahl_jax.detectors.whitening import fit_whitening
from ahl_jax.features.pooling import global_averages
from tests.problems import CHANNELS, make_maps


def correlated(
    images: int = 200, spread: tuple[float, ...] = (0.02, 0.3, 1.0, 5.0)
) -> list[np.ndarray]:
    """Maps whose channels vary together, and by very different amounts."""
    random = np.random.RandomState(3)
    mixing = random.normal(size=(CHANNELS, CHANNELS)) * np.array(spread)
    centre = random.normal(size=(images, CHANNELS)) @ mixing + 7.0
    return [m.astype(np.float32) for m in make_maps(images, random, centre)]


MAPS = correlated()
AVERAGES = global_averages(MAPS)


def test_lengths_of_whitened_averages_are_mahalanobis_distances() -> None:
    inputs = make_inputs(MAPS, whitening=fit_whitening(AVERAGES, 2))
    lengths = np.linalg.norm(np.reshape(inputs.pooled, (len(AVERAGES), -1)), axis=1)
    expected = np.sqrt(LedoitWolf().fit(AVERAGES).mahalanobis(AVERAGES))
    np.testing.assert_allclose(lengths, expected, rtol=1e-3)


def test_fewer_images_than_features_are_whitened_by_the_same_shrunk_covariance() -> None:
    few = np.random.default_rng(0).normal(size=(5, 8)) @ np.diag([9, 7, 5, 3, 1, 1, 0.5, 0.5])
    others = np.random.default_rng(1).normal(size=(20, 8))
    lengths = np.linalg.norm((others - few.mean(0)) @ fit_whitening(few, 2).averages, axis=1)
    expected = np.sqrt(LedoitWolf().fit(few).mahalanobis(others))
    np.testing.assert_allclose(lengths, expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [0, 1])
def test_lengths_of_whitened_locations_are_distances_within_their_scale(scale: int) -> None:
    inputs = make_inputs(MAPS, whitening=fit_whitening(AVERAGES, 2))
    found = np.linalg.norm(to_maps(inputs)[scale], axis=-1)
    own = AVERAGES[:, scale * CHANNELS : (scale + 1) * CHANNELS]
    locations = MAPS[scale].reshape(-1, CHANNELS)
    expected = np.sqrt(LedoitWolf().fit(own).mahalanobis(locations))
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-3)


def test_levels_count_alike_whatever_the_size_of_their_features() -> None:
    first, second = (np.array(fit_whitening(_sized(k), 2, (3, 1)).averages) for k in (1, 1000))
    found = [_sized(k) @ w for k, w in ((1, first), (1000, second))]
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-3 * np.abs(found[0]).max())
    # Without levels the shrinkage pulls the small ones towards the large ones.
    plain = [_sized(k) @ fit_whitening(_sized(k), 2).averages for k in (1, 1000)]
    assert np.abs(plain[0] - plain[1]).max() > 0.1 * np.abs(plain[0]).max()


def test_levels_are_whitened_by_the_shrunk_covariance_of_their_shares() -> None:
    centred = AVERAGES - AVERAGES.mean(0)
    blocks = [slice(0, 3), slice(3, 4), slice(4, 7), slice(7, 8)]
    scaled = np.concatenate([centred[:, b] / np.linalg.norm(centred[:, b]) for b in blocks], axis=1)
    expected = np.sqrt(LedoitWolf(assume_centered=True).fit(scaled).mahalanobis(scaled))
    whitening = fit_whitening(AVERAGES, 2, (3, 1))
    np.testing.assert_allclose(
        np.linalg.norm(centred @ whitening.averages, axis=1), expected, rtol=1e-3
    )


def _sized(factor: float) -> np.ndarray:
    """Few averages, of which the last channel of each scale is multiplied."""
    averages = AVERAGES[:12] - AVERAGES[:12].mean(0)
    return averages * np.tile([1.0, 1.0, 1.0, factor], 2)


def test_whitened_averages_of_the_normals_are_uncorrelated() -> None:
    # Enough images, and variances near enough to each other, that little is shrunk.
    maps = correlated(20_000, (0.6, 0.8, 1.0, 1.2))
    inputs = make_inputs(maps, whitening=fit_whitening(global_averages(maps), 2))
    covariance = np.cov(np.reshape(inputs.pooled, (len(maps[0]), -1)).T)
    np.testing.assert_allclose(covariance, np.eye(len(covariance)), atol=0.1)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 2, 30]))  # Every number is a compilation.
def test_numpy_and_jax_whiten_alike_and_few_or_equal_images_stay_finite(
    seed: int, images: int
) -> None:
    random = np.random.RandomState(seed)
    maps = [m.astype(np.float32) for m in make_maps(images, random)]
    if seed % 2:
        maps = [np.repeat(m[:1], images, axis=0) for m in maps]
    whitening = fit_whitening(global_averages(maps), 2)
    on_host = make_inputs(maps, whitening=whitening)
    on_device = make_inputs([jnp.asarray(m) for m in maps], whitening=whitening)
    for here, there in ((on_host.patches, on_device.patches), (on_host.pooled, on_device.pooled)):
        assert np.isfinite(here).all()
        # In deviations of the normals.
        tolerance = max(1e-2, 1e-3 * float(np.abs(here).max()))
        np.testing.assert_allclose(here, there, rtol=1e-3, atol=tolerance)


def test_colouring_takes_whitening_back_but_for_the_size_of_the_levels() -> None:
    whitening = fit_whitening(_sized(1000), 2, (3, 1), poolings=1)
    coloured = whitening.whitened(_sized(1000)) @ whitening.colouring()
    centred = _sized(1000) - _sized(1000).mean(0)
    for level in np.split(np.arange(len(centred[0])), [3, 4, 7]):
        own = centred[:, level]
        share = coloured[:, level].std() / own.std()
        np.testing.assert_allclose(coloured[:, level], share * own, rtol=1e-2, atol=1e-2 * share)
    totals = [coloured[:, level].var(0).sum() for level in ([0, 1, 2], [3], [4, 5, 6], [7])]
    np.testing.assert_allclose(totals, totals[0], rtol=1e-2)
    # Of a run of an earlier version, which did not keep the sizes.
    earlier = whitening._replace(sizes=None)
    again = whitening.whitened(_sized(1000)) @ earlier.colouring()
    np.testing.assert_allclose(again, centred, rtol=1e-2, atol=1e-2 * centred.std())
