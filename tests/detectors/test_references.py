"""The detectors that train nothing, against scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import random
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from ahl_jax.common.errors import UserError
from ahl_jax.config.presets import with_settings
from ahl_jax.detectors import make_inputs
from ahl_jax.detectors.patchcore import greedy_coreset
from ahl_jax.features.pooling import global_averages
from ahl_jax.run.checks import check_settings
from tests.problems import SIDES, make_config, make_setting, prepared, setting_maps

LOCATIONS = SIDES[0][0] * SIDES[0][1]
NORMALS = 15


def fitted(**settings):
    """A fitted detector, as a function from maps to scores and location maps."""
    problem = make_setting(make_config(method="fit", **settings), NORMALS)
    learner, data = problem.learner, problem.data
    model = prepared(learner.functional, problem.model, data, NORMALS)
    reference = data.inference_reference()

    @jax.jit
    def outcome(maps):
        inputs = make_inputs(maps)
        score = learner.functional.score(model, inputs, reference)
        return score, learner.functional.location_maps(model, inputs, reference)

    return outcome


def neighbourhoods(maps):
    """What PatchCore compares, by loops."""
    images, (h, w) = len(maps[0]), SIDES[0]
    found = []
    for scale in maps:
        rows, columns = scale.shape[1:3]
        around = np.empty(scale.shape)
        for i in range(rows):
            for j in range(columns):
                at = [
                    scale[:, min(max(i + a, 0), rows - 1), min(max(j + b, 0), columns - 1)]
                    for a in (-1, 0, 1)
                    for b in (-1, 0, 1)
                ]
                around[:, i, j] = np.mean(at, axis=0)
        # Half-pixel centres, linear in between, and the border's value beyond it.
        row = np.clip((np.arange(h) + 0.5) * rows / h - 0.5, 0, rows - 1)
        column = np.clip((np.arange(w) + 0.5) * columns / w - 0.5, 0, columns - 1)
        up, left = np.floor(row).astype(int), np.floor(column).astype(int)
        down, right = np.minimum(up + 1, rows - 1), np.minimum(left + 1, columns - 1)
        y, x = (row - up)[:, None, None], (column - left)[None, :, None]
        found.append(
            (1 - y) * ((1 - x) * around[:, up][:, :, left] + x * around[:, up][:, :, right])
            + y * ((1 - x) * around[:, down][:, :, left] + x * around[:, down][:, :, right])
        )
    return np.concatenate(found, -1).reshape(images, h * w, -1)


def test_gaussian_is_the_mahalanobis_distance_of_the_averages():
    normals = setting_maps(NORMALS)[0]
    problem = make_setting(make_config(detector="gaussian", whiten=True, method="fit"), NORMALS)
    inputs = problem.data.images(jnp.arange(NORMALS + 5))
    reference = problem.data.inference_reference()
    functional = problem.learner.functional
    found = jax.jit(functional.score)(problem.model, inputs, reference)
    anomalies = setting_maps(NORMALS)[1]
    averages = [global_averages(maps).astype(np.float64) for maps in (normals, anomalies)]
    distances = LedoitWolf().fit(averages[0]).mahalanobis(np.concatenate(averages))
    np.testing.assert_allclose(found, np.sqrt(distances), rtol=1e-3)
    maps = jax.jit(functional.location_maps)(problem.model, inputs, reference)
    assert [scale.shape for scale in maps] == [(NORMALS + 5, *side) for side in SIDES]
    np.testing.assert_allclose(
        maps[0][0, 2, 3],
        np.linalg.norm(inputs.at_locations(lambda x: x)[0][0][inputs.grids[0].order == 13]),
        rtol=1e-5,
    )


def test_patchcore_is_the_distance_to_the_nearest_neighbourhood():
    normals, anomalies, *_ = setting_maps(NORMALS)
    # Every location of every normal fits in.
    score, maps = fitted(detector="patchcore", coreset=NORMALS * LOCATIONS)(anomalies)
    memory = neighbourhoods(normals)
    index = NearestNeighbors(n_neighbors=1).fit(memory.reshape(-1, memory.shape[-1]))
    wanted = neighbourhoods(anomalies)
    nearest, _ = index.kneighbors(wanted.reshape(-1, wanted.shape[-1]))
    nearest = nearest.reshape(len(wanted), *SIDES[0])
    np.testing.assert_allclose(maps[0], nearest, rtol=1e-3)
    np.testing.assert_allclose(score, nearest.max((1, 2)), rtol=1e-3)
    assert [scale.shape for scale in maps] == [(len(wanted), *side) for side in SIDES]


def test_what_is_in_memory_is_normal():
    normals = setting_maps(NORMALS)[0]
    everything = fitted(detector="patchcore", coreset=NORMALS * LOCATIONS)
    np.testing.assert_allclose(everything(normals)[0], 0, atol=5e-3)
    # More room than there are locations changes nothing; less makes distances longer.
    more = fitted(detector="patchcore", coreset=2 * NORMALS * LOCATIONS)
    anomalies = setting_maps(NORMALS)[1]
    np.testing.assert_allclose(more(anomalies)[0], everything(anomalies)[0], rtol=1e-4)
    less = fitted(detector="patchcore", coreset=20)
    assert (less(normals)[0] > 0.1).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([1, 12]), st.sampled_from([2, 200]))
def test_the_coreset_takes_the_farthest_point_next(seed, count, width):
    points = np.asarray(random.normal(random.key(seed), (30, width)), np.float64)
    chosen = np.asarray(greedy_coreset(jnp.asarray(points, jnp.float32), count))
    assert chosen[0] == 0
    assert len(set(chosen.tolist())) == count
    if width > 128:
        return  # By projections, which only nearly keep the distances.
    for k in range(1, count):
        distances = np.linalg.norm(points[:, None] - points[chosen[:k]], axis=-1).min(1)
        assert distances[chosen[k]] == pytest.approx(distances.max(), rel=1e-4)


def test_projections_choose_almost_as_well():
    points = random.normal(random.key(1), (300, 640)) * jnp.linspace(1, 3, 300)[:, None]
    chosen = greedy_coreset(points, 30)

    def radius(centres):
        return np.linalg.norm(points[:, None] - centres, axis=-1).min(1).max()

    assert radius(points[chosen]) < 1.15 * radius(points[-30:])


@pytest.mark.parametrize("name", ["gaussian", "patchcore"])
@pytest.mark.parametrize("method", ["ahl", "base", "ensemble"])
def test_there_is_nothing_to_train(name, method):
    with pytest.raises(UserError) as error:
        check_settings(make_config(detector=name, whiten=True, method=method))
    assert str(error.value) == f'the detector {name} has nothing to train; add `method="fit"`'
    check_settings(make_config(detector=name, whiten=True, method="fit"))


def test_what_has_no_closed_form_is_not_left_untrained():
    with pytest.raises(UserError, match="the detector dra has no closed form"):
        check_settings(make_config(detector="dra", method="fit"))
    check_settings(make_config(detector="density", whiten=True, method="fit"))
    from_images = {"stage_one": True, "stage_one_heads": True}
    check_settings(with_settings(make_config(detector="dra", method="fit"), from_images))
