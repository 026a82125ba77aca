"""The gradient of CDL and one epoch of it by hand, in float64.

With a detector of few parameters that has what DRA has: a loss that is curved in them (DevNet's is
piecewise linear, so its exact gradient is the first order's) and running moments. The slow tests
take DRA itself.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ahl_jax.detectors import DETECTORS, Model
from ahl_jax.learning.learner import batch_loss
from tests.problems import (
    Curved,
    as_float64,
    assert_trees_close,
    assert_trees_equal,
    make_config,
    make_setting,
)

RATE = 0.03
detectors = pytest.mark.parametrize(
    "detector", ["curved", pytest.param("dra", marks=pytest.mark.slow)]
)


@pytest.fixture(scope="module", autouse=True)
def x64():
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setitem(DETECTORS, "curved", Curved)
        yield


def row(tree, *index):
    """The same entry of every leaf."""
    return jax.tree.map(lambda x: x[index], tree)


def flat(tree) -> np.ndarray:
    """All leaves as one vector, in the order of ``ravel_pytree``."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


class Setting:
    """A problem in float64, batches of its subsets, and the base models trained on them."""

    def __init__(self, detector, **settings):
        config = make_config(detector=detector, lr_base=RATE, importance="uniform", **settings)
        problem = make_setting(config, dtype=np.float64)
        self.learner = problem.learner
        model, self.data = as_float64((problem.model, problem.data))
        # Fresh biases are 0, where |.| of a dead patch has its kink.
        self.start, self.unravel = ravel_pytree(model.params)
        self.start += 0.1 * np.random.RandomState(0).normal(size=self.start.shape)
        self.model = Model(self.unravel(self.start), model.stats)
        self.state = as_float64(self.learner.init(self.model, self.data, jax.random.key(5)))
        self.support, self.query = self.batches(config.learning.updates_per_epoch)

    def batches(self, rounds: int):
        """The support and query batches of epoch 0."""
        keys = jax.random.split(jax.random.fold_in(self.state.key, 0), 3)
        pools = (self.data.support, self.data.query)
        draw = jax.jit(self.learner._batches, static_argnums=2)
        drawn = [draw(k, p, rounds) for k, p in zip(keys, pools, strict=False)]
        return jax.device_get(drawn)  # On the host, taking one of them compiles nothing.

    @functools.cached_property
    def base(self):
        """All base models of a round: a function of g, support and query batches."""

        def train(model, support, query):
            return self.learner.train_base(model, self.data, support, query, jnp.float64(RATE))

        program = jax.jit(jax.vmap(train, in_axes=(None, 0, 0)))
        return lambda *args: jax.device_get(program(*args))

    def at(self, vector) -> Model:
        """G with other parameters."""
        return Model(self.unravel(vector), self.model.stats)

    @functools.cached_property
    def result(self):
        return self.base(self.model, row(self.support, 0), row(self.query, 0))

    @functools.cached_property
    def loss(self):
        """The training loss of one batch as a function of a parameter vector."""

        def loss(vector, batch):
            params = self.unravel(vector)
            return batch_loss(self.learner.functional, params, self.model.stats, self.data, batch)[
                0
            ]

        return loss

    @functools.cached_property
    def gradient(self):
        return jax.jit(jax.grad(self.loss))


setting = functools.cache(Setting)


def first_order(detector) -> Setting:
    return setting(
        detector, gradient="first_order", passes=3, clip=0.5, steps=4, updates_per_epoch=2
    )


def one_exact_step(detector) -> Setting:
    one = {"subsets": 1, "steps": 1, "passes": 1, "clip": 1e6}
    return setting(detector, gradient="exact", inner_optimizer="sgd", **one)


@pytest.mark.parametrize("optimizer", ["adam", pytest.param("sgd", marks=pytest.mark.slow)])
@detectors
@pytest.mark.slow
def test_the_exact_gradient_is_that_of_eq_4_by_finite_differences(detector, optimizer):
    case = setting(
        detector,
        gradient="exact",
        inner_optimizer=optimizer,
        subsets=2,
        passes=2,
        steps=1,
        clip=0.5,
    )
    support, query = row(case.support, 0), row(case.query, 0)
    random = np.random.RandomState(1)
    step = 1e-6
    slopes, expected = [], []
    for _ in range(5):
        direction = random.normal(size=case.start.shape)
        direction /= np.linalg.norm(direction)
        ahead, behind = (
            case.base(case.at(case.start + s * direction), support, query).query_losses.sum(-1)
            for s in (step, -step)
        )
        expected.append((ahead - behind) / (2 * step))
        slopes.append([flat(row(case.result.gradient, k)) @ direction for k in range(2)])
    np.testing.assert_allclose(slopes, expected, rtol=1e-4, atol=1e-6)
    # Not the first order's gradient by another name.
    trained = flat(row(case.result.model.params, 0))
    identity = case.gradient(trained, row(case.query, 0, 0, 0))
    exact = flat(row(case.result.gradient, 0))
    assert np.linalg.norm(exact - identity) > 0.01 * np.linalg.norm(exact)


@detectors
def test_the_first_order_gradient_is_the_one_at_the_trained_base_model(detector):
    case = first_order(detector)
    for subset in range(3):
        trained = flat(row(case.result.model.params, subset))
        batches = [row(case.query, 0, subset, step) for step in range(2)]
        expected = np.mean([case.gradient(trained, batch) for batch in batches], 0)
        actual = flat(row(case.result.gradient, subset))
        np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-11)


@detectors
def test_one_exact_step_on_one_subset_is_the_formula_written_by_hand(detector):
    case = one_exact_step(detector)
    support, query = row(case.support, 0, 0, 0), row(case.query, 0, 0, 0)
    theta = case.start - RATE * case.gradient(case.start, support)
    outer = case.gradient(theta, query)
    # (I - rate H) v, with H v the derivative of the gradient along v.
    curvature = jax.jit(jax.grad(lambda x: case.gradient(x, support) @ outer))(case.start)
    expected = outer - RATE * curvature
    assert np.linalg.norm(RATE * curvature) > 0.01 * np.linalg.norm(outer)
    actual = flat(row(case.result.gradient, 0))
    np.testing.assert_allclose(actual, expected, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(flat(row(case.result.model.params, 0)), theta, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["curved", "dra"])
def test_an_epoch_takes_one_adam_step_along_the_exact_gradient(detector):
    case = one_exact_step(detector)
    expected = flat(row(case.result.gradient, 0))
    after, log = jax.jit(case.learner.epoch)(case.state, case.data, np.int32(0))
    np.testing.assert_allclose(log.weights, 1)
    # Adam's first moment after one update is (1 - 0.9) times the gradient it was given.
    (adam,) = [s for s in after.optimizer if hasattr(s, "mu")]
    np.testing.assert_allclose(flat(adam.mu) / 0.1, expected, rtol=1e-7, atol=1e-10)
    lr = case.learner.config.learning.lr
    step = expected / (np.sqrt(np.square(expected) + 1e-16) + 1e-8)
    # A bias before batch norm has no gradient but rounding, so Adam may take any small step there.
    unclear = np.abs(expected) < 1e-9
    assert unclear.mean() < 0.05
    moved = flat(after.model.params) - (case.start - lr * step)
    assert np.abs(moved[~unclear]).max() < 1e-8


def adam_by_hand(vector, gradients, clip: float, rate: float):
    """Clipped gradients and bias-corrected Adam on a vector, one gradient function a step."""
    vector = np.asarray(vector)
    first, second = np.zeros_like(vector), np.zeros_like(vector)
    for t, gradient in enumerate(gradients, start=1):
        g = np.asarray(gradient(vector))
        g = g * min(1.0, clip / np.linalg.norm(g))
        first = 0.9 * first + 0.1 * g
        second = 0.999 * second + 0.001 * g**2
        m, v = first / (1 - 0.9**t), second / (1 - 0.999**t)
        vector = vector - rate * m / (np.sqrt(v) + 1e-8)
    return vector


@detectors
def test_the_inner_loop_is_a_plain_loop_over_subsets_passes_and_steps(detector):
    case = first_order(detector)
    for subset in range(3):
        batches = [row(case.support, 0, subset, step) for step in range(2)] * 3
        gradients = [functools.partial(case.gradient, batch=batch) for batch in batches]
        expected = adam_by_hand(case.start, gradients, clip=0.5, rate=RATE)
        actual = flat(row(case.result.model.params, subset))
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-5)


def test_base_models_depend_neither_on_each_other_nor_on_their_order():
    case = first_order("curved")
    support, query = row(case.support, 0), row(case.query, 0)
    order = np.array([2, 0, 1])
    permuted = case.base(case.model, row(support, order), row(query, order))
    assert_trees_close(permuted, row(case.result, order), rtol=1e-9, atol=1e-11)
    # Other batches for subset 2 leave the others as they are.
    swapped = jax.tree.map(lambda x: x[np.array([0, 1, 0])], support)
    changed = case.base(case.model, swapped, query)
    for subset in (0, 1):
        assert_trees_equal(row(changed, subset), row(case.result, subset))
    assert not np.allclose(flat(row(changed.model, 2)), flat(row(case.result.model, 2)))


@detectors
def test_an_epoch_is_a_plain_loop_over_its_rounds(detector):
    case = first_order(detector)
    learner, lr = case.learner, case.learner.config.learning.lr
    vector, stats = case.start, case.model.stats
    first, second = np.zeros(len(vector)), np.zeros(len(vector))
    for t in (1, 2):
        g = Model(case.unravel(vector), stats)
        batches = row(case.support, t - 1), row(case.query, t - 1)
        result = case.base(g, *batches)
        gradient = np.mean([flat(row(result.gradient, k)) for k in range(3)], 0)
        gradient *= min(1.0, 0.5 / np.linalg.norm(gradient))
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        step = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        vector = vector - lr * step
        stats = jax.tree.map(lambda x: x.mean(0), result.model.stats)

    after, _ = jax.jit(learner.epoch)(case.state, case.data, np.int32(0))
    np.testing.assert_allclose(flat(after.model.params), vector, rtol=1e-6, atol=1e-7)
    assert_trees_close(after.model.stats, stats, rtol=1e-6, atol=1e-8)
    (adam,) = [s for s in after.optimizer if hasattr(s, "mu")]
    assert adam.count == 2
    # The scores that psi follows are those of the last round's base models, at inference.
    images, score = case.data.inputs.take(jnp.arange(20)), jax.jit(learner.functional.label_score)
    for k in range(3):
        expected = score(row(result.model, k), images, case.data.inference_reference())
        np.testing.assert_allclose(
            after.importance.history[:, -1, k], expected, rtol=1e-5, atol=1e-6
        )


def test_rounds_share_out_the_same_batches():
    case = first_order("curved")
    (one, _), (two, _), (four, _) = (case.batches(n) for n in (1, 2, 4))
    assert one.index.shape[:3] == (1, 3, 4)
    assert two.index.shape[:3] == (2, 3, 2)
    assert four.index.shape[:3] == (4, 3, 1)
    for split in (two, four):
        rejoined = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(1, 3, 4, x.shape[-1]), split)
        assert_trees_equal(rejoined, one)
