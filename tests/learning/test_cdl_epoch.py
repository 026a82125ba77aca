"""Epochs of CDL as a run sees them; each detector's epoch is compiled once for all tests."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ahl_jax.learning.batches import Pool
from ahl_jax.learning.cdl import CDL
from ahl_jax.learning.learner import learning_rate
from tests.problems import assert_trees_equal, make_config, make_setting, plain

T = 6
SETTINGS = {
    "steps": 4, "batch": 12, "lr": 0.05, "lr_base": 0.05, "decay_every": 100, "clip": 1e6,
    "references": 15, "psi_lr": 0.02, "history": 2, "subsets": T,
}  # fmt: skip
IMAGES = 20
"""15 normals and 5 anomalies."""


class Run:
    """A problem and its epoch, jitted once; counts how often the epoch is traced."""

    def __init__(self, detector: str, **settings):
        self.config = make_config(detector=detector, **SETTINGS, **settings)
        self.problem = make_setting(self.config)
        self.learner, self.data = self.problem.learner, self.problem.data
        # Several steps of psi in an epoch, as with more images than a batch has.
        if isinstance(self.learner, CDL):
            self.learner.estimator.batch = 2
        self.traces = 0

        def epoch(state, data, number):
            self.traces += 1
            return self.learner.epoch(state, data, number)

        self.epoch = jax.jit(epoch)
        self.start = self.learner.init(self.problem.model, self.data, self.problem.key)

    def epochs(self, count: int, state=None, first: int = 0, data=None):
        """State and logs after some epochs."""
        state, logs = state or self.start, []
        for number in range(first, first + count):
            state, log = self.epoch(state, data or self.data, jnp.int32(number))
            logs.append(log)
        return state, logs

    def score(self, state):
        """Scores of the unified model for the normals and the anomalies of training."""
        images = self.data.inputs.take(jnp.arange(IMAGES))
        model = self.learner.model(state)
        return self.learner.functional.score(model, images, self.data.inference_reference())


run = functools.cache(Run)
detectors = pytest.mark.parametrize(
    "detector", ["devnet", pytest.param("dra", marks=pytest.mark.slow)]
)


@functools.cache
def many_epochs(detector: str):
    return run(detector).epochs(25)


def gradient_of(before, after) -> np.ndarray:
    """The gradient that the outer Adam was given, from its first moments."""
    old, new = (next(s for s in state.optimizer if hasattr(s, "mu")) for state in (before, after))
    return np.asarray(ravel_pytree(new.mu)[0] - 0.9 * ravel_pytree(old.mu)[0]) / 0.1


@pytest.mark.parametrize("detector", ["devnet", pytest.param("dra", marks=pytest.mark.slow)])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(detector):
    case = run(detector)
    state, _ = case.epochs(2)
    # Through host memory, as a checkpoint goes, and on with a problem that is set up anew.
    saved = jax.tree.map(plain, state)
    restored = jax.tree.map(
        lambda like, x: (
            jax.random.wrap_key_data(jnp.asarray(x)) if like.shape != x.shape else jnp.asarray(x)
        ),
        state,
        saved,
    )
    resumed, _ = case.epochs(2, restored, first=2, data=make_setting(case.config).data)
    whole, _ = case.epochs(4)
    assert_trees_equal(resumed, whole)


@detectors
def test_an_epoch_is_compiled_once_over_many_epochs(detector):
    many_epochs(detector)
    assert run(detector).traces == 1
    assert run(detector).epoch._cache_size() == 1


@detectors
def test_every_array_is_finite_and_of_32_bits(detector):
    state, logs = many_epochs(detector)
    for leaf in jax.tree.leaves((state.model, state.optimizer, state.importance, logs[-1])):
        assert np.isfinite(leaf).all()
        assert leaf.dtype in (jnp.float32, jnp.int32)
    heads = len(run(detector).learner.functional.kind.heads)
    assert logs[-1].support_losses.shape == logs[-1].query_losses.shape == (heads,)


@detectors
def test_importance_is_uniform_for_K_epochs_and_then_psis(detector):  # noqa: N802
    state, logs = many_epochs(detector)
    for log in logs[:2]:
        np.testing.assert_allclose(log.weights, 1 / T)
        assert np.isnan(log.errors).all()
    for log in logs[2:]:
        np.testing.assert_allclose(log.weights, jax.nn.softmax(-log.errors), rtol=1e-5)
        assert np.ptp(np.asarray(log.weights)) > 0
    np.testing.assert_array_equal(state.importance.weights, logs[-1].weights)


@detectors
def test_g_moves_in_every_epoch_from_the_first_on(detector):
    case = run(detector)
    state = case.start
    for number in range(3):
        after, _ = case.epochs(1, state, first=number)
        moved = ravel_pytree(after.model.params)[0] - ravel_pytree(state.model.params)[0]
        assert np.abs(moved).max() > 0.001
        assert np.linalg.norm(gradient_of(state, after)) > 0
        state = after


@detectors
def test_g_moves_by_the_gradient_of_this_epoch_weighed_by_importance(detector):
    case = run(detector)
    before, _ = case.epochs(2)

    def with_importance_on(*chosen: int):
        """Errors so large for the other subsets that all importance is on the chosen."""
        others = [k for k in range(T) if k not in chosen]
        weights = jnp.zeros((T, IMAGES)).at[jnp.array(others, int)].set(1e7)
        data = dataclasses.replace(case.data, error_weights=weights)
        after, (log,) = case.epochs(1, before, first=2, data=data)
        expected = np.isin(np.arange(T), chosen) / len(chosen)
        np.testing.assert_allclose(log.weights, expected, atol=1e-6)
        return after

    alone = [with_importance_on(k) for k in range(3)]
    gradients = [gradient_of(before, state) for state in alone]
    assert not np.allclose(gradients[0], gradients[1], rtol=0.01)
    for pair in ((0, 1), (1, 2)):
        together = with_importance_on(*pair)
        mean = np.mean([gradients[k] for k in pair], 0)
        np.testing.assert_allclose(gradient_of(before, together), mean, rtol=1e-3, atol=1e-4)
        if detector == "dra":
            stats = [state.model.stats["norm"]["var"] for state in (*alone, together)]
            np.testing.assert_allclose(stats[3], np.mean([stats[k] for k in pair], 0), rtol=1e-4)


@pytest.mark.parametrize("subset", [0, 2, 5])
@detectors
def test_a_base_model_with_swapped_labels_gets_the_least_importance(detector, subset):
    case = run(detector)
    normals, anomalies, _ = pools = case.data.support
    # The support set takes its anomalies for normals and three of its normals for anomalies; the
    # shapes are the same, so nothing is compiled anew.
    assert anomalies.size[subset] == 3
    width = normals.members.shape[1]
    swapped = pools._replace(
        normals=Pool(
            normals.members.at[subset].set(jnp.resize(anomalies.members[subset], width)),
            normals.size.at[subset].set(3),
        ),
        anomalies=Pool(
            anomalies.members.at[subset].set(normals.members[subset, :3]), anomalies.size
        ),
    )
    data = dataclasses.replace(case.data, support=swapped)
    _, logs = case.epochs(15, data=data)
    assert case.traces == 1
    # From epoch 5 on, when psi has begun to foresee the scores.
    mean = np.mean([log.weights for log in logs[5:]], 0)
    assert mean.argmin() == subset
    assert mean[subset] < 0.99 / T


@detectors
def test_ahl_learns_to_separate(detector):
    case = run(detector)
    before, after = case.score(case.start), case.score(many_epochs(detector)[0])
    assert before[:15].max() > before[15:].min()
    assert after[:15].max() < after[15:].min()


def test_the_scoring_pass_covers_every_image_whatever_their_number():
    for normals in (15, 60):
        case = make_setting(make_config(detector="devnet", clusters=2), normals=normals)
        learner, images = case.learner, normals + 5
        models = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), case.model)
        scores = jax.jit(learner.scores)(models, case.data)
        assert scores.shape == (images, 3)
        reference = case.data.inference_reference()
        everyone = case.data.inputs.take(jnp.arange(images))
        expected = learner.functional.label_score(case.model, everyone, reference)
        np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-5)
        np.testing.assert_allclose(scores[:, 1], 2 * expected, rtol=1e-5)
        np.testing.assert_allclose(scores[:, 2], expected, rtol=1e-5)


def test_the_learning_rate_decays_in_steps():
    learning = make_config(decay_every=10, decay=0.1).learning
    rates = [float(learning_rate(0.5, learning, jnp.int32(t))) for t in (0, 9, 10, 19, 20, 29)]
    np.testing.assert_allclose(rates, [0.5, 0.5, 0.05, 0.05, 0.005, 0.005], rtol=1e-6)


def test_the_detector_alone_learns_to_separate():
    case = run("devnet", method="base")
    state, logs = case.epochs(60)
    assert case.traces == 1
    assert logs[-1].support_losses.sum() < 0.5 * logs[0].support_losses.sum()
    assert np.isnan(logs[-1].weights).all()
    score = case.score(state)
    assert score[:15].max() < score[15:].min()
