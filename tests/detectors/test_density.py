"""The density detector: its closed form against NumPy, and what training changes in it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ahl_jax.detectors import make_inputs, protocol
from ahl_jax.detectors.density import _fitted_factors
from ahl_jax.detectors.losses import Prior
from ahl_jax.detectors.ridge import Ridge, fit_ridge
from ahl_jax.detectors.whitening import fit_whitening
from ahl_jax.features.pooling import global_averages
from ahl_jax.inference.scorer import Scorer, scorer_from_arrays
from ahl_jax.learning.problem import make_problem
from tests.problems import CHANNELS, SIDES, make_config, make_setting, prepared, setting_maps

DENSITY = {"detector": "density", "whiten": True, "importance": "uniform"}
NORMALS = 40


@functools.cache
def setting(**settings):
    problem = make_setting(make_config(**DENSITY, **settings), normals=NORMALS)
    model = prepared(problem.learner.functional, problem.model, problem.data, NORMALS)
    return problem, model


def test_many_normals_are_measured_block_by_block(monkeypatch):
    problem, model = setting(groups=3, poolings=3)
    functional = problem.learner.functional
    z = np.random.default_rng(0).normal(size=(23, len(model.stats["direction"])))
    normals, anomalies, pseudo = (jnp.asarray(x, jnp.float32) for x in np.split(z, [17, 20]))
    groups = jnp.arange(17) % 3

    def stats():
        given = normals, anomalies, pseudo, groups, problem.data.colouring
        # A function of its own each time, as the program depends on the size of a block.
        program = jax.jit(lambda *args: functional.prepared_by_pooled(*args).stats)
        return program(model, *given)

    expected = stats()
    monkeypatch.setattr(protocol, "_ROWS", 5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), stats(), expected)


@pytest.mark.parametrize(("groups", "poolings"), [(1, 1), (3, 1), (3, 3)])
def test_the_prepared_scores_are_the_closed_form(groups, poolings):
    problem, model = setting(top_k=0.3, groups=groups, poolings=poolings)
    normals, anomalies, pseudo, *_ = setting_maps(NORMALS)
    pooled = [
        [
            np.concatenate([pool(m, axis=(1, 2)) for m in maps], axis=1).astype(np.float64)
            for pool in (np.mean, np.std, np.max)[:poolings]
        ]
        for maps in (normals, anomalies, pseudo)
    ]
    whitening = fit_whitening(np.concatenate(pooled[0], axis=1), 2, poolings=poolings)
    mean = whitening.mean.astype(np.float64)
    # A whitening for each way of pooling.
    apiece = [fit_whitening(own, 2) for own in pooled[0]]
    blocks = [
        [(a - w.mean.ravel()) @ w.averages for a, w in zip(each, apiece, strict=True)]
        for each in pooled
    ]
    z = [np.concatenate(each, axis=1) for each in blocks]
    units = [own / np.linalg.norm(own, axis=1, keepdims=True) for own in z]

    def raw(maps, z):
        length = np.linalg.norm(z, axis=1)
        columns = [length]
        for scale, m in enumerate(maps):
            x = (m.astype(np.float64) - mean[scale]) @ whitening.locations[scale]
            lengths = np.linalg.norm(x, axis=-1).reshape(len(m), -1)
            top = max(1, int(0.3 * lengths.shape[1]))
            columns.append(np.sort(lengths, axis=1)[:, -top:].mean(1))
        return np.stack(columns, axis=1)

    of_normals = raw(normals, z[0])
    without = NORMALS / (NORMALS - 1)
    squared, turned = 0, []
    for own in blocks[0]:
        left = 1 - without * (own**2).sum(1) / np.linalg.norm(own, ord=2) ** 2
        squared = squared + (own**2).sum(1) / left
        turned.append(own / left[:, None])
    turned = np.concatenate(turned, axis=1) / np.sqrt(squared)[:, None]
    of_normals[:, 0] = without * np.sqrt(squared)
    group = np.arange(NORMALS) % groups  # as the setting has them
    centres = [z[0][group == k].mean(0) for k in range(groups)]

    def moments(scores):
        means, deviations = [], []
        for k in range(groups):
            own, n = scores[group == k], (group == k).sum()
            means.append((n * own.mean(0) + 160 * scores.mean(0)) / (n + 160))
            square = ((own - means[-1]) ** 2).sum(0)
            deviations.append(np.sqrt((square + 160 * scores.var(0)) / (n + 160)))
        return np.array(means), np.array(deviations)

    def standardised(scores, own, of):
        k = np.square(own[:, None] - centres).sum(-1).argmin(1)
        means, deviations = moments(of)
        return (scores - means[k]) / deviations[k]

    means, deviations = moments(of_normals)
    first = [each[0] for each in blocks]
    ridge = jax.tree.map(np.asarray, jax.jit(fit_ridge)(*first, whitening.colouring()))
    f, g, h = fitted_factors(
        ((of_normals - means[group]) / deviations[group])[:, 0],
        standardised(raw(anomalies, z[1]), z[1], of_normals)[:, 0],
        turned, units[1], units[2].mean(0), ridge.without, ridge.own,
    )  # fmt: skip
    # One head has all three: their sum as it varies over all normals.
    both = [units[1].mean(0), units[2].mean(0)]
    labelled, made = ((turned @ each).std() for each in both)
    direction = both[0] + g / f * labelled / made * both[1]
    share = h / f * labelled / np.std(ridge.unseen)
    unseen = turned @ direction + share * ridge.unseen
    factor = f * unseen.std() / labelled
    np.testing.assert_allclose(model.stats["factors"], [1, 0, factor], rtol=1e-3)
    np.testing.assert_allclose(model.stats["direction"], direction, rtol=1e-3, atol=1e-5)
    standard = (unseen - moments(unseen)[0][group]) / moments(unseen)[1][group]
    standard = ((of_normals - means[group]) / deviations[group])[:, 0] + factor * standard
    np.testing.assert_allclose(model.stats["spread"], standard.std(), rtol=1e-3)
    linear = share * ridge.direction
    np.testing.assert_allclose(model.stats["linear"], linear, rtol=1e-2, atol=1e-4)
    # The fits without an image have a constant too.
    constant = share * (ridge.of_normals - first[0] @ ridge.direction)[0]
    reference = problem.data.inference_reference()
    for maps, own, of_first in ((normals, z[0], first[0]), (anomalies, z[1], first[1])):
        standard = standardised(raw(maps, own), own, of_normals)
        seen = own @ direction / np.linalg.norm(own, axis=1) + of_first @ linear
        seen = standardised(seen, own, unseen - constant)
        heads = np.stack([standard[:, 0], standard[:, 1:3].mean(1), seen], axis=1)
        inputs = make_inputs(maps, whitening=whitening)
        functional = problem.learner.functional
        found = jax.jit(functional.head_scores)(model, inputs, reference)
        np.testing.assert_allclose(found, heads, rtol=2e-3, atol=2e-3)
        total = jax.jit(functional.score)(model, inputs, reference)
        np.testing.assert_allclose(total, heads @ [1, 0, factor], rtol=2e-3, atol=5e-3)


def fitted_factors(
    density_of_normals, density_of_anomalies, normals, anomalies, pseudo, linear, linear_own
):
    """The posterior's geometric means, image by image and with scikit-learn's AUC-ROC."""
    m = len(anomalies)
    of_linear, base = np.zeros(17), []
    priors = m / (m + 1), 1 / (m + 2)
    made, made_own = standard_scores(normals @ pseudo, anomalies @ pseudo)
    logs, weights = np.linspace(-3, 3, 17), np.zeros((17, 17))
    for left_out in range(m):
        others = np.delete(anomalies, left_out, axis=0)
        seen = (normals @ others.T).mean(1)
        seen, own = standard_scores(seen, (others @ anomalies[left_out]).mean())
        for i, j in np.ndindex(weights.shape):
            f, g = priors * np.exp(logs[[i, j]])
            scores = density_of_normals + f * seen + g * made
            score = density_of_anomalies[left_out] + f * own + g * made_own[left_out]
            weights[i, j] += 5 * roc_auc_score([0] * len(scores) + [1], [*scores, score])
        base.append((seen, own))
    weights -= (logs[:, None] ** 2 + logs**2) / 1.5**2 / 2
    weights = np.exp(weights - weights.max())
    weights /= weights.sum()
    f, g = (
        prior * np.exp(weights.sum(axis) @ logs) for prior, axis in zip(priors, (1, 0), strict=True)
    )
    for left_out, (seen, own) in enumerate(base):
        scores = density_of_normals + f * seen + g * made
        score = density_of_anomalies[left_out] + f * own + g * made_own[left_out]
        more, own = standard_scores(linear[:, left_out], linear_own[left_out])
        for i, h in enumerate(priors[0] / 2 * np.exp(logs)):
            values = [*scores + h * more, score + h * own]
            of_linear[i] += 5 * roc_auc_score([0] * len(scores) + [1], values)
    of_linear = np.exp(of_linear - of_linear.max() - logs**2 / 1.5**2 / 2)
    return f, g, priors[0] / 2 * np.exp(of_linear @ logs / of_linear.sum())


def standard_scores(normals, others):
    return (normals - normals.mean()) / normals.std(), (others - normals.mean()) / normals.std()


def test_a_detector_of_an_earlier_version_keeps_the_factors_that_it_had():
    problem, model = setting()
    whitening = fit_whitening(global_averages(setting_maps(NORMALS)[0]), 2)
    reference = problem.data.inference_reference()
    scorer = Scorer(problem.learner.functional, model, reference, whitening)
    arrays = jax.tree.map(np.asarray, scorer.arrays())
    config = make_config(**DENSITY)
    again = scorer_from_arrays(config, arrays)
    np.testing.assert_array_equal(again.model.stats["factors"], model.stats["factors"])
    del arrays["model"]["stats"]["factors"]
    old = scorer_from_arrays(config, arrays)
    outcome = old.outcome([m.astype(np.float32) for m in setting_maps(NORMALS)[1]])
    np.testing.assert_allclose(outcome.scores, outcome.heads @ [1, 0.2, 0.2], rtol=1e-4)


def test_one_labelled_anomaly_leaves_the_factor_as_it_is_by_default():
    one = make_setting(make_config(**DENSITY, method="base"), NORMALS, 1, 0)
    model = prepared(one.learner.functional, one.model, one.data, NORMALS)
    # The linear score comes on top, at first by a half of it.
    assert 1 / 2 < model.stats["factors"][2] < 3 / 4
    np.testing.assert_array_equal(model.stats["factors"][:2], [1, 0])
    assert model.stats["left_out_auc"] == 1  # far away


def test_pseudo_anomalies_alone_give_a_direction_that_counts_by_half():
    none = make_setting(make_config(**DENSITY, method="base"), NORMALS, 0)
    model = prepared(none.learner.functional, none.model, none.data, NORMALS)
    np.testing.assert_allclose(model.stats["factors"], [1, 0, 1 / 2], rtol=1e-6)
    inputs = make_inputs(
        setting_maps(NORMALS)[2],
        whitening=fit_whitening(global_averages(setting_maps(NORMALS)[0]), 2),
    )
    reference = none.data.inference_reference()
    heads = jax.jit(none.learner.functional.head_scores)(model, inputs, reference)
    assert heads[:, 2].mean() > 1


def test_the_more_labelled_anomalies_are_alike_the_more_they_count():
    random = np.random.default_rng(0)
    normals = random.standard_normal((300, 40))
    of_normals = np.linalg.norm(normals, axis=1)
    found = []
    # In one direction, at a normal's distance; and in ten, farther away.
    for directions, stretch in ((1, 1.0), (10, 1.4)):
        anomalies = random.standard_normal((10, 40)) + random.standard_normal((directions, 40))
        anomalies *= stretch * of_normals.mean() / np.linalg.norm(anomalies, axis=1, keepdims=True)
        units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (normals, anomalies)]
        standard = [
            (np.linalg.norm(x, axis=1) - of_normals.mean()) / of_normals.std()
            for x in (normals, anomalies)
        ]
        cosines = [unit @ units[1].T for unit in units]
        none = Ridge(np.zeros(40), *np.zeros((2, 300)), np.zeros((300, 10)), np.zeros(10))
        factors = jax.jit(_fitted_factors)(*standard, *cosines, np.zeros(300), np.zeros(10), none)
        found.append(float(factors[0]))
    assert found[0] > 1.5 * 10 / 11
    assert found[1] < 0.7 * 10 / 11


@pytest.mark.parametrize("method", [pytest.param("ahl", marks=pytest.mark.slow), "base"])
def test_training_changes_the_metric_but_not_the_direction_and_lowers_the_loss(method):
    problem, model = setting(
        method=method, subsets=6, steps=4, batch=12, lr=0.01, lr_base=0.005, decay_every=100
    )
    learner = problem.learner
    state = learner.init(problem.model, problem.data, problem.key)
    state = learner.with_model(state, model)
    epoch = jax.jit(learner.epoch)
    for number in range(10):
        state, _ = epoch(state, problem.data, jnp.int32(number))
    after = learner.model(state)
    inputs = problem.data.inputs.take(jnp.arange(NORMALS + 5 + 18))
    labels = np.repeat(np.arange(3), [NORMALS, 5, 18])
    balanced = 1 / np.bincount(labels)[labels]

    @jax.jit
    def losses(model):
        reference = problem.data.inference_reference()
        every = (inputs, reference, labels, balanced, problem.data.prior)
        return learner.functional.loss(model, *every)[1][1]

    density, local, seen = losses(after) / losses(model)
    assert density < 0.95
    assert local < 1
    assert seen == pytest.approx(1, rel=1e-3)
    assert np.abs(after.params["metric"]).max() > 1e-3
    np.testing.assert_allclose(after.stats["direction"], model.stats["direction"], rtol=1e-4)
    np.testing.assert_allclose(after.stats["mean"], model.stats["mean"], rtol=1e-4)


def test_at_inference_a_metric_that_is_not_trained_takes_no_room():
    problem, model = setting()
    functional, inputs = problem.learner.functional, problem.data.inputs
    reference = problem.data.inference_reference()
    small = functional.inferring(model)
    assert small.params["metric"].shape == (0, model.params["metric"].shape[1])
    heads = jax.jit(functional.head_scores)
    same = heads(model, inputs, reference)
    np.testing.assert_allclose(heads(small, inputs, reference), same, rtol=1e-6)
    trained = model.params | {"metric": model.params["metric"].at[3, 5].set(0.1)}
    found = functional.inferring(model._replace(params=trained)).params["metric"]
    np.testing.assert_array_equal(found, trained["metric"])


def test_without_labelled_anomalies_the_direction_stays_and_the_moments_do_not():
    problem, model = setting()
    other = make_setting(make_config(**DENSITY, method="base"), 50, 0, 0)
    again = prepared(problem.learner.functional, model, other.data, 50)
    np.testing.assert_array_equal(again.stats["direction"], model.stats["direction"])
    np.testing.assert_array_equal(again.stats["factors"], model.stats["factors"])
    new = prepared(problem.learner.functional, problem.model, other.data, 50)
    np.testing.assert_array_equal(new.stats["factors"][:2], [1, 0])
    scores = jax.jit(problem.learner.functional.merge(again).head_scores)(
        other.data.images(other.data.followed), other.data.inference_reference(), jnp.ones(50)
    )
    np.testing.assert_allclose(scores.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(scores[:, [0, 2]].std(0), 1, atol=1e-3)


def test_images_that_training_has_not_seen_are_standardised_as_such():
    random = np.random.RandomState(1)
    maps = [random.normal(size=(120, *side, CHANNELS)).astype(np.float32) for side in SIDES]
    config = make_config(**DENSITY, method="base")
    problem = make_problem(
        config,
        [m[:60] for m in maps],
        [m[:0] for m in maps],
        [m[:0] for m in maps],
        *[np.zeros(0, int)] * 2,
    )
    model = prepared(problem.learner.functional, problem.model, problem.data, 60)
    whitening = fit_whitening(
        np.concatenate([m[:60].mean((1, 2), dtype=np.float64) for m in maps], axis=1), 2
    )
    inputs = make_inputs([jnp.asarray(m[60:]) for m in maps], whitening=whitening)
    detector = problem.learner.functional.merge(model)
    reference = problem.data.inference_reference()
    scores = jax.jit(detector.head_scores)
    unseen = np.asarray(scores(inputs, reference))[:, 0]
    as_training = np.asarray(scores(inputs, reference, jnp.ones(60)))[:, 0]
    assert abs(unseen.mean()) < 0.3 < as_training.mean()
    assert 0.7 < unseen.std() < 1.3


@pytest.mark.slow
def test_groups_without_members_and_of_one_change_nothing_much():
    problem, model = setting(groups=6)
    few = make_setting(make_config(**DENSITY, groups=6, method="base"), normals=4)
    again = prepared(problem.learner.functional, model, few.data, 4)
    scores = problem.learner.functional.head_scores(
        again, few.data.images(few.data.followed), few.data.inference_reference()
    )
    assert np.isfinite(scores).all()
    assert np.asarray(scores)[4:].mean() > np.asarray(scores)[:4].mean()


def test_fit_leaves_the_detector_as_it_was_prepared():
    problem, model = setting(method="fit")
    learner = problem.learner
    state = learner.with_model(learner.init(problem.model, problem.data, problem.key), model)
    state, log = jax.jit(learner.epoch)(state, problem.data, jnp.int32(0))
    for before, after in zip(
        jax.tree.leaves(model), jax.tree.leaves(learner.model(state)), strict=True
    ):
        np.testing.assert_array_equal(before, after)
    assert np.isnan(log.support_losses).all()


def test_the_gradient_is_finite_where_all_lengths_are_zero():
    problem, model = setting()
    blank = jax.tree.map(jnp.zeros_like, problem.data.inputs.take(jnp.arange(3)))
    gradient = jax.jit(jax.grad(
        lambda params: problem.learner.functional.loss(
            model._replace(params=params), blank, blank.take(0), jnp.array([0, 1, 2]),
            jnp.ones(3), Prior(jnp.float32(0), jnp.float32(1)),
        )[0]
    ))  # fmt: skip
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(model.params)))


def test_the_location_maps_are_high_where_the_image_differs():
    problem, model = setting()
    normals, *_ = setting_maps(NORMALS)
    image = [m[:1].copy() for m in normals]
    image[0][0, 1, 2] += 5.0
    whitening = fit_whitening(
        np.concatenate([m.mean((1, 2), dtype=np.float64) for m in normals], axis=1), 2
    )
    inputs = make_inputs([jnp.asarray(m) for m in image], whitening=whitening)
    detector = problem.learner.functional.merge(model)
    reference = problem.data.inference_reference()
    large, small = jax.jit(detector.location_maps)(inputs, reference)
    assert np.unravel_index(np.argmax(large[0]), large[0].shape) == (1, 2)
    assert small.shape == (1, 3, 3)
    assert model.params["local_gain"].shape == (CHANNELS,)
