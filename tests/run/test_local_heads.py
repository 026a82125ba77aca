"""Local heads of runs: by localizers that have not seen the image they score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ahl_jax import preset
from ahl_jax.detectors import make_inputs
from ahl_jax.detectors.ensemble import make_model
from ahl_jax.detectors.local_head import LocalHead, extremes, make_local_head
from ahl_jax.detectors.localizer import fit_localizer, pointed
from ahl_jax.detectors.whitening import fit_whitening
from ahl_jax.distributed.part import WHOLE
from ahl_jax.features import PseudoFeatures
from ahl_jax.features.split import Extracted, TrainingFeatures
from ahl_jax.run import local_heads
from ahl_jax.run.local_heads import FittedLocalizers, fit_local_head, fit_localizers

PARTS = (2, 3)


def features_of(normals: int, anomalies: int) -> TrainingFeatures:
    """Features of so many maps of 8 x 8 locations, of two levels and two means over views."""

    def extracted(count: int, seed: int) -> Extracted:
        maps = np.random.default_rng(seed).normal(size=(count, 8, 8, 2 * sum(PARTS)))
        return Extracted((maps.astype(np.float32),), (), (count,))

    own, seen = extracted(normals, 0), extracted(anomalies, 1)
    seen.maps[0][:, 1, 1] += 5
    pseudo = PseudoFeatures(own.maps[:0], *[np.zeros(0, int)] * 3)
    counts = np.array([[normals, anomalies, 0]])
    return TrainingFeatures(own, np.zeros(0), np.zeros(0), seen, pseudo, counts)


def fitted_to(features: TrainingFeatures, tiles: int = 1) -> FittedLocalizers:
    found = fit_localizers(features, PARTS, tiles, WHOLE, progress=False)
    assert found is not None
    return found


def test_each_normal_is_scored_by_a_localizer_of_the_others() -> None:
    features = features_of(13, 3)
    fitted = fitted_to(features)
    head = fit_local_head(fitted, features, PARTS, WHOLE)
    normals, seen = (each.maps[0][..., 2:5] for each in (features.normals, features.anomalies))
    of_normals = np.zeros((13, 2))
    assert sorted(np.bincount(fitted.fold)) == [3, 3, 3, 4]
    for k in range(4):
        own = fitted.fold == k
        without = pointed(fit_localizer(normals[~own]), seen)
        of_normals[own] = extremes(without, normals[own])
    expected = make_local_head(pointed(fit_localizer(normals), seen), of_normals, 3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), head, expected
    )
    # Those that it was fitted to are nearer.
    assert np.asarray(extremes(head.localizer, normals))[:, 0].max() < of_normals[:, 0].min()


def test_all_tiles_of_a_photograph_are_left_out_together(monkeypatch: pytest.MonkeyPatch) -> None:
    features = features_of(24, 0)
    fitted = fitted_to(features, tiles=4)
    folds = fitted.fold.reshape(6, 4)
    assert (folds == folds[:, :1]).all()
    assert len(set(folds[:, 0])) == 4
    head = fit_local_head(fitted, features, PARTS, WHOLE)
    assert head.of_normals.shape == (24,)
    assert not np.any(head.localizer.direction)
    # Some of many are fitted to; all are scored, however many at a time.
    monkeypatch.setattr(local_heads, "_ROWS", 5)
    again = fit_local_head(fitted, features, PARTS, WHOLE)
    np.testing.assert_allclose(again.of_normals, head.of_normals, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(local_heads, "_MOST", 9)
    few = fitted_to(features)
    assert len(few.of_all.neighbours) == 9 * 64
    assert fit_local_head(few, features, PARTS, WHOLE).of_normals.shape == (24,)


def test_one_normal_has_none_and_two_have_one() -> None:
    assert fit_localizers(features_of(4, 1), PARTS, 4, WHOLE, progress=False) is None
    features = features_of(2, 1)
    head = fit_local_head(fitted_to(features), features, PARTS, WHOLE)
    assert isinstance(head, LocalHead)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(head))


def test_of_an_ensemble_the_mean_deviation_counts() -> None:
    config = preset("density", "", method="ensemble", shots=1, epochs=1, poolings=1, views=1)
    functional, model = make_model(config, 4, jax.random.key(0))
    spread = np.arange(1, 7, dtype=np.float32)
    model = model._replace(stats=model.stats | {"spread": spread})
    maps = np.random.default_rng(0).normal(size=(2, 6, 6, 4)).astype(np.float32)
    pooled = maps.reshape(2, -1, 4).mean(1)
    whitening = fit_whitening(np.concatenate([pooled, pooled], axis=1), 2)
    inputs = make_inputs([jnp.asarray(maps), jnp.asarray(maps)], whitening=whitening)
    scores, local = functional.score(model, inputs, inputs.take(np.array(0))), np.float32([-1, 3])
    found = functional.score(model, inputs, inputs.take(np.array(0)), local)
    np.testing.assert_allclose(found - scores, [-3.5, 10.5], rtol=1e-4)
