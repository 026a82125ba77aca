"""An ensemble is T detectors, each trained alone, whose scores are averaged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ahl_jax.detectors import DETECTORS, make_detector
from ahl_jax.inference.scorer import Scorer, scorer_from_arrays
from ahl_jax.learning.base import Plain
from tests.problems import (
    Curved,
    assert_trees_close,
    make_config,
    make_maps,
    make_setting,
)

T = 3
CONFIG = make_config(
    detector="curved", method="ensemble", subsets=T, steps=3, batch=12, lr_base=0.02
)


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DETECTORS, "curved", Curved)
        yield


@functools.cache
def trained(epochs: int = 3):
    problem = make_setting(CONFIG)
    epoch = jax.jit(problem.learner.epoch)
    state = problem.learner.init(problem.model, problem.data, problem.key)
    for number in range(epochs):
        state, log = epoch(state, problem.data, jnp.int32(number))
    return problem, state, log


def member(tree, index: int):
    return jax.tree.map(lambda x: x[index], tree)


def test_each_member_is_the_detector_trained_alone_from_its_own_start():
    problem, state, _ = trained()
    one, _ = make_detector(CONFIG.detector, problem.data.inputs.channels, jax.random.key(9))
    plain = Plain(CONFIG, one)
    epoch = jax.jit(plain.epoch)
    for index, key in enumerate(jax.random.split(problem.key, T)):
        alone = plain.init(member(problem.model, index), problem.data, key)
        for number in range(3):
            alone, _ = epoch(alone, problem.data, jnp.int32(number))
        model = member(problem.learner.model(state), index)
        assert_trees_close(model, plain.model(alone), rtol=1e-3, atol=1e-5)


def test_members_start_apart_and_draw_different_batches():
    problem, state, log = trained()
    leaves = [leaf for leaf in jax.tree.leaves(problem.model.params) if np.ptp(leaf) > 0]
    assert leaves
    for leaf in leaves:
        assert not np.array_equal(leaf[0], leaf[1])
    assert len(np.unique(np.asarray(jax.random.key_data(state[1])), axis=0)) == T
    assert np.isnan(log.weights).all()
    assert np.isfinite(log.support_losses).all()


def test_the_score_is_the_mean_of_the_members_scores():
    problem, state, _ = trained()
    models, reference = problem.learner.model(state), problem.data.inference_reference()
    images = problem.data.inputs.take(jnp.arange(20))
    one, _ = make_detector(CONFIG.detector, problem.data.inputs.channels, jax.random.key(9))
    alone = jax.jit(one.score)
    each = [alone(member(models, i), images, reference) for i in range(T)]
    score = jax.jit(problem.learner.functional.score)(models, images, reference)
    np.testing.assert_allclose(score, np.mean(each, axis=0), rtol=1e-4, atol=1e-5)
    assert np.ptp(np.stack(each), axis=0).max() > 1e-3


def test_a_saved_ensemble_scores_as_before():
    problem, state, _ = trained()
    learner = problem.learner
    scorer = Scorer(learner.functional, learner.model(state), problem.data.inference_reference())
    again = scorer_from_arrays(CONFIG, jax.device_get(scorer.arrays()))
    maps = [m.astype(np.float32) for m in make_maps(7, np.random.RandomState(1))]
    np.testing.assert_array_equal(again.score(maps), scorer.score(maps))
    fewer = make_config(detector="curved", method="ensemble", subsets=T - 1)
    with pytest.raises(ValueError, match="do not fit"):
        scorer_from_arrays(fewer, jax.device_get(scorer.arrays()))
