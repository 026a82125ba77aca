"""FLOS, SAOE and MLEP: what each learns from, by hand, and that each learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ahl_jax.config.settings import DetectorConfig
from ahl_jax.detectors import Model, make_detector, make_inputs
from ahl_jax.detectors.inputs import mean_of
from ahl_jax.detectors.losses import Prior
from ahl_jax.learning.batches import draw_batches
from tests.problems import CHANNELS, SIDES, as_float64, make_config, make_maps, make_setting

NAMES = ("flos", "mlep", "saoe")
PRIOR = Prior(jnp.float32(0), jnp.float32(1))
LABELS = np.array([0, 0, 1, 1, 2, 2])
TIMES = np.array([2, 1, 3, 1, 1, 4], np.float32)
SCORES = np.random.RandomState(0).normal(0, 2, (6, 2)).astype(np.float32)


@functools.cache
def fresh(name: str):
    """A detector of CHANNELS channels as functions, and its arrays."""
    config = DetectorConfig(detector=name, hidden=6)
    return make_detector(config, CHANNELS, jax.random.key(0))


def losses_of(name: str, scores: np.ndarray, labels=LABELS, times=TIMES) -> np.ndarray:
    functional, model = fresh(name)
    detector = functional.merge(model)
    heads = scores[:, : len(detector.heads)]
    args = jnp.asarray(heads), jnp.asarray(labels), jnp.asarray(times), PRIOR
    return np.asarray(jax.jit(detector.losses)(*args))


def repeated(values: np.ndarray, label: int) -> np.ndarray:
    """The values of one label in float64, as often as they count."""
    return values[label == LABELS].repeat(TIMES[label == LABELS].astype(int)).astype(np.float64)


def test_the_loss_of_flos_gives_normals_and_labelled_anomalies_the_same_say():
    normal, anomaly = (1 / (1 + np.exp(-repeated(SCORES[:, 0], label))) for label in (0, 1))
    # 3 normals and 4 anomalies: alpha is 3/7 for anomalies.
    each = [-4 / 7 * normal**2 * np.log(1 - normal), -3 / 7 * (1 - anomaly) ** 2 * np.log(anomaly)]
    np.testing.assert_allclose(losses_of("flos", SCORES), [np.concatenate(each).mean()], rtol=1e-5)


def test_the_loss_of_saoe_is_the_cross_entropy_of_all_images():
    normal, anomaly, pseudo = (repeated(SCORES[:, 0], label) for label in (0, 1, 2))
    each = np.log1p(np.exp(np.concatenate([normal, -anomaly, -pseudo])))
    np.testing.assert_allclose(losses_of("saoe", SCORES), [each.mean()], rtol=1e-5)


def test_the_losses_of_mlep_are_the_triplets_and_the_error_of_normals():
    near, far = (repeated(SCORES[:, 0], label) for label in (0, 1))
    triplets = np.maximum(0, near[:, None] - far + 1).mean()
    expected = [triplets, repeated(SCORES[:, 1], 0).mean()]
    np.testing.assert_allclose(losses_of("mlep", SCORES), expected, rtol=1e-5)


@pytest.mark.parametrize(("name", "learns"), [("flos", False), ("mlep", False), ("saoe", True)])
def test_who_learns_from_pseudo_anomalies(name, learns):
    changed = SCORES + 3 * (LABELS == 2)[:, None].astype(np.float32)
    same = np.array_equal(losses_of(name, SCORES), losses_of(name, changed))
    assert same != learns


@pytest.mark.parametrize("name", NAMES)
def test_losses_stay_finite_without_one_kind_of_image(name):
    for label in (0, 1, 2):
        times = TIMES * (label != LABELS)
        assert np.isfinite(losses_of(name, SCORES, times=times)).all()


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e15, 1e30])
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_stay_finite_for_any_size_of_features(name, scale):
    functional, model = fresh(name)
    maps = make_maps(6, np.random.RandomState(1))
    inputs = make_inputs([(scale * m).astype(np.float32) for m in maps])
    inputs = jax.tree.map(jnp.asarray, inputs)
    reference = mean_of(inputs, jnp.ones(6))

    def loss(params, *images):
        labels, times = jnp.asarray(LABELS), jnp.asarray(TIMES)
        return functional.loss(model._replace(params=params), *images, labels, times, PRIOR)[0]

    # The images as arguments: constants are folded in another order, where 1e30 overflows.
    value, grads = jax.jit(jax.value_and_grad(loss))(model.params, inputs, reference)
    assert np.isfinite(value)
    assert np.isfinite(ravel_pytree(grads)[0]).all()
    scores = jax.jit(functional.label_score)(model, inputs, reference)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_location_scores_as_an_image_that_is_like_it_everywhere(name):
    functional, model = fresh(name)
    random = np.random.RandomState(2)
    alike = [np.broadcast_to(random.normal(size=CHANNELS), (1, *side, CHANNELS)) for side in SIDES]
    alike = [m.astype(np.float32) for m in alike]
    reference = mean_of(
        make_inputs([m.astype(np.float32) for m in make_maps(3, random)]), jnp.ones(3)
    )
    detector = functional.merge(model)
    at_locations = jax.jit(detector.location_maps)
    maps = jax.tree.map(np.asarray, at_locations(make_inputs(alike), reference))
    whole = jax.jit(functional.score)(model, make_inputs(alike), reference)
    for scores in maps:
        np.testing.assert_allclose(scores, scores[0, 0, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.mean([m[0, 0, 0] for m in maps]), whole[0], rtol=1e-5, atol=1e-6)
    # One other location, and the map differs there alone.
    alike[0] = alike[0].copy()
    alike[0][0, 1, 2] *= -3
    changed = np.asarray(at_locations(make_inputs(alike), reference)[0])
    assert np.argwhere(np.abs(changed - maps[0])[0] > 1e-5).tolist() == [[1, 2]]


def test_scores_on_the_scale_of_the_labels():
    (flos, model), (mlep, arrays) = fresh("flos"), fresh("mlep")
    logits = jnp.float32([[-40], [0], [40]])
    np.testing.assert_allclose(flos.merge(model).label_score(logits), [0, 0.5, 1], atol=1e-6)
    ideal = jnp.float32([[0, 0], [1, 0], [1, 0.5]])
    np.testing.assert_allclose(mlep.merge(arrays).label_score(ideal), [0, 1, 1.5])


def test_mleps_scores_do_not_depend_on_the_units_of_the_features():
    functional, model = fresh("mlep")
    maps = [m.astype(np.float32) for m in make_maps(3, np.random.RandomState(3))]
    scores = []
    for scale in (1, 2**10):
        inputs = make_inputs([scale * m for m in maps])
        scores.append(functional.score(model, inputs, mean_of(inputs, jnp.ones(3))))
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, "base") for name in NAMES),
        *(pytest.param(name, "ahl", marks=pytest.mark.slow) for name in ("flos", "mlep")),
    ],
)
def test_it_learns_alone_and_within_ahl(name, method):
    settings = {"steps": 4, "batch": 12, "lr": 0.05, "lr_base": 0.02, "decay_every": 100}
    problem = make_setting(
        make_config(detector=name, method=method, subsets=6, hidden=16, **settings)
    )
    learner, data = problem.learner, problem.data
    state = learner.init(problem.model, data, problem.key)
    epoch = jax.jit(learner.epoch)
    logs = []
    for number in range(20):
        state, log = epoch(state, data, jnp.int32(number))
        logs.append(log)
    assert np.isfinite(ravel_pytree(state[0])[0]).all()
    assert logs[-1].support_losses.sum() < 0.5 * logs[0].support_losses.sum()
    scores = jax.jit(learner.functional.label_score)(
        learner.model(state), data.inputs.take(jnp.arange(20)), data.inference_reference()
    )
    assert scores[:15].max() < scores[15:].min()
    if method == "ahl":
        assert np.isfinite(logs[-1].errors).all()
        assert float(logs[-1].weights.sum()) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flos", "mlep"])
def test_the_exact_gradient_is_the_slope_of_the_query_loss_through_training(name):
    with jax.enable_x64(True):
        settings = {"gradient": "exact", "inner_optimizer": "sgd", "lr_base": 0.1, "clip": 1e6}
        problem = make_setting(make_config(detector=name, **settings), dtype=np.float64)
        model, data = as_float64((problem.model, problem.data))
        support, query = (
            draw_batches(jax.random.key(i), jax.tree.map(lambda x: x[0], pools),
                         steps=2, batch=9, references=2)
            for i, pools in enumerate((data.support, data.query))
        )  # fmt: skip
        start, unravel = ravel_pytree(model.params)
        start += 0.1 * np.random.RandomState(0).normal(size=start.shape)
        way = np.random.RandomState(1).normal(size=start.shape)
        train = jax.jit(problem.learner.train_base)

        def trained(params):
            return train(Model(unravel(params), model.stats), data, support, query, jnp.array(0.1))

        slope = ravel_pytree(trained(start).gradient)[0] @ way
        high, low = (trained(start + h * way).query_losses.sum() for h in (1e-5, -1e-5))
        np.testing.assert_allclose(slope, (high - low) / 2e-5, rtol=1e-5)
