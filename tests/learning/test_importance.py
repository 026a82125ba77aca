import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ahl_jax.config.settings import ImportanceConfig
from ahl_jax.learning.importance import Estimator, error_rate, estimated_error, importance_scores
from tests.goldens import core_inputs as golden_inputs
from tests.goldens.inputs import GOLDENS
from tests.problems import assert_trees_equal

N, T, K = 20, 3, 3
ERROR = jax.jit(estimated_error)


@functools.cache
def estimator(subsets: int = T, batch: int = 8, **settings) -> Estimator:
    config = ImportanceConfig(**{"history": K, "psi_lr": 0.05, **settings})
    return Estimator(config, subsets, batch)


@functools.cache
def update(subsets: int = T, **settings):
    return jax.jit(estimator(subsets, **settings).update)


@pytest.fixture
def scores():
    """Scores of K + 2 epochs."""
    return np.random.RandomState(0).normal(0, 2, (K + 2, N, T)).astype(np.float32)


LABELS = jnp.asarray(np.arange(N) >= N - 4, jnp.float32)
WEIGHTS = jnp.asarray(np.random.RandomState(1).choice([0, 0.5, 1], (T, N)), jnp.float32)
KEY = jax.random.key(7)


def run(scores, labels=LABELS, weights=WEIGHTS, step=None, state=None, start=0):
    """States after each epoch of ``scores``."""
    step = step or update()
    state = state or estimator().init(jax.random.key(0), N)
    states = []
    for t, s in enumerate(scores, start=start):
        key = jax.random.fold_in(KEY, t)
        state = step(state, jnp.asarray(s), labels, weights, jnp.int32(t), key)
        states.append(state)
    return states


errors_strategy = hnp.arrays(np.float32, 5, elements=st.floats(0, 80, width=32))


@given(errors_strategy)
def test_importance_sums_to_one_and_falls_with_the_error(errors):
    w = np.asarray(importance_scores(jnp.asarray(errors)))
    assert w.sum() == pytest.approx(1, abs=1e-5)
    assert (w >= 0).all()
    order = np.argsort(errors)
    assert (np.diff(w[order]) <= 1e-7).all()
    exact = np.exp(-(errors.astype(np.float64) - errors.min()))
    np.testing.assert_allclose(w, exact / exact.sum(), rtol=1e-4, atol=1e-7)


@given(
    predicted=hnp.arrays(np.float32, (6, 2), elements=st.floats(-50, 50, width=32)),
    labels=hnp.arrays(np.float32, 6, elements=st.sampled_from([0.0, 1.0])),
    weights=hnp.arrays(np.float32, (2, 6), elements=st.sampled_from([0.0, 0.5, 1.0])),
)
def test_the_estimated_error_is_the_mean_over_the_images_it_counts(predicted, labels, weights):
    expected = []
    for i in range(2):
        inside = [j for j in range(6) if weights[i, j] > 0]
        terms = [weights[i, j] * (float(predicted[j, i]) - labels[j]) ** 2 for j in inside]
        expected.append(np.mean(terms) if terms else 0.0)
    np.testing.assert_allclose(ERROR(predicted, labels, weights), expected, rtol=1e-4, atol=1e-5)


def test_weights_stay_uniform_before_epoch_K_and_move_from_then_on(scores):  # noqa: N802
    states = run(scores)
    for state in states[:K]:
        np.testing.assert_allclose(state.weights, 1 / T)
        assert np.isnan(state.errors).all()
        assert np.isnan(state.loss)
        assert_trees_equal(state.params, states[0].params)
    for state in states[K:]:
        assert state.weights.sum() == pytest.approx(1, abs=1e-6)
        assert np.ptp(np.asarray(state.weights)) > 1e-4
        assert np.isfinite(state.errors).all()
        assert np.isfinite(state.loss)
        np.testing.assert_allclose(state.weights, importance_scores(state.errors), rtol=1e-6)


def test_uniform_importance_never_moves(scores):
    states = run(scores, step=update(importance="uniform"))
    for state in states:
        np.testing.assert_allclose(state.weights, 1 / T)
        assert_trees_equal(state.params, states[0].params)
        assert np.isnan(state.errors).all()


@given(
    scores=hnp.arrays(np.float32, (6, 2), elements=st.floats(-1, 2, width=32)),
    labels=hnp.arrays(np.float32, 6, elements=st.sampled_from([0.0, 1.0])),
    weights=hnp.arrays(np.float32, (2, 6), elements=st.sampled_from([0.0, 0.5, 1.0])),
)
def test_the_error_rate_counts_what_is_outside_of_the_support_set(scores, labels, weights):
    expected = []
    for i in range(2):
        # A support anomaly has c = 0.5, a support normal has c = 0.
        outside = [
            j for j in range(6) if weights[i, j] == 1 or (weights[i, j] == 0.5 and labels[j] == 0)
        ]
        wrong = [(scores[j, i] >= 0.5) != (labels[j] == 1) for j in outside]
        expected.append(np.mean(wrong) if wrong else 0.0)
    np.testing.assert_allclose(error_rate(scores, labels, weights), expected, rtol=1e-6)


def test_accuracy_needs_neither_psi_nor_a_history(scores):
    states = run(scores, step=update(importance="accuracy"))
    for epoch, state in enumerate(states):
        errors = error_rate(jnp.asarray(scores[epoch]), LABELS, WEIGHTS)
        np.testing.assert_allclose(state.errors, errors, rtol=1e-6)
        np.testing.assert_allclose(state.weights, importance_scores(errors), rtol=1e-6)
        assert_trees_equal(state.params, states[0].params)
        assert np.isnan(state.loss)
    assert len({tuple(np.asarray(state.weights).round(5)) for state in states}) > 1


def test_the_history_is_the_scores_of_the_last_epochs_oldest_first(scores):
    for t, state in enumerate(run(scores)):
        recent = scores[max(0, t - K + 1) : t + 1].swapaxes(0, 1)
        np.testing.assert_array_equal(state.history[:, -recent.shape[1] :], recent)
        np.testing.assert_array_equal(state.history[:, : -recent.shape[1]], 0)


def test_the_error_is_that_of_the_prediction_from_earlier_epochs(scores):
    *_, before, after = run(scores)
    predicted = estimator().predict(after.params, before.history)
    expected = ERROR(predicted, LABELS, WEIGHTS)
    np.testing.assert_allclose(after.errors, expected, rtol=1e-5)
    own = estimator().predict(before.params, before.history)
    assert after.loss == pytest.approx(float(jnp.square(own - scores[-1]).mean()), rel=1e-5)


def test_psi_never_sees_a_label(scores):
    states, flipped = run(scores), run(scores, labels=1 - LABELS)
    for a, b in zip(states, flipped, strict=True):
        assert_trees_equal(a.params, b.params)
        assert_trees_equal(a.optimizer, b.optimizer)
        assert_trees_equal((a.history, a.loss), (b.history, b.loss))
    # The labels do count where they should.
    assert not np.allclose(states[-1].errors, flipped[-1].errors)
    assert not np.allclose(states[-1].weights, flipped[-1].weights)
    reweighted = run(scores, weights=WEIGHTS[::-1])[-1]
    assert_trees_equal(states[-1].params, reweighted.params)


@pytest.mark.parametrize("subsets", [1, 2, 7])
def test_psi_has_as_many_units_as_there_are_subsets(subsets):
    state = jax.eval_shape(lambda: estimator(subsets).init(jax.random.key(0), 5))
    for layer, inputs in (("first", subsets), ("second", 2 * subsets)):
        for way in ("forward_rnn", "backward_rnn"):
            cell = state.params[layer][way]["cell"]
            assert cell["ii"]["kernel"].shape == (inputs, subsets)
            assert cell["hi"]["kernel"].shape == (subsets, subsets)
    assert state.params["hidden"]["kernel"].shape == (2 * subsets, 2 * subsets)
    assert state.params["out"]["kernel"].shape == (2 * subsets, subsets)


def test_one_subset_has_all_importance():
    state = estimator(1).init(jax.random.key(0), 5)
    scores = jnp.asarray(np.random.RandomState(0).normal(size=(5, 1)), jnp.float32)
    state = update(1)(state, scores, jnp.ones(5), jnp.ones((1, 5)), jnp.int32(K), KEY)
    np.testing.assert_array_equal(state.weights, [1])
    assert np.isfinite(state.errors).all()


def test_prediction_is_deterministic_and_each_image_is_by_itself(scores):
    psi, other = estimator(), Estimator(estimator().config, T)
    params = psi.init(jax.random.key(0), N).params
    predict = jax.jit(psi.predict)
    history = jnp.asarray(scores[:K].swapaxes(0, 1))
    together = predict(params, history)
    assert_trees_equal(predict(params, history), together)
    assert_trees_equal(jax.jit(other.predict)(params, history), together)
    others = history.at[jnp.arange(N) != 3].set(9.0)
    np.testing.assert_allclose(predict(params, others)[3], together[3], atol=1e-6)


def cell(torch: dict, layer: int, way: str) -> dict:
    """One direction of one layer in Flax's names; the input gate's bias belongs to the sum."""
    suffix = f"l{layer}{way}"
    t = golden_inputs.PSI["subsets"]
    parts = {}
    for gate, k in zip("ifgo", range(4), strict=True):
        rows = slice(k * t, (k + 1) * t)
        own = "if_" if gate == "f" else f"i{gate}"
        parts[own] = {"kernel": torch[f"lstm.weight_ih_{suffix}"][rows].T}
        bias = torch[f"lstm.bias_ih_{suffix}"] + torch[f"lstm.bias_hh_{suffix}"]
        parts[f"h{gate}"] = {
            "kernel": torch[f"lstm.weight_hh_{suffix}"][rows].T,
            "bias": bias[rows],
        }
    return {"cell": parts}


def test_psi_equals_a_two_layer_bidirectional_lstm_and_two_linear_layers_of_pytorch():
    torch = golden_inputs.psi_weights()
    params = {
        name: {"forward_rnn": cell(torch, k, ""), "backward_rnn": cell(torch, k, "_reverse")}
        for k, name in enumerate(("first", "second"))
    }
    for name in ("hidden", "out"):
        params[name] = {"kernel": torch[f"{name}.weight"].T, "bias": torch[f"{name}.bias"]}
    psi = estimator(golden_inputs.PSI["subsets"])
    fresh = psi.init(jax.random.key(0), 1).params
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)
    predicted = psi.predict(jax.tree.map(jnp.asarray, params), golden_inputs.psi_history())
    with np.load(GOLDENS / "core.npz") as golden:
        np.testing.assert_allclose(predicted, golden["psi"], rtol=1e-4, atol=1e-5)


def test_an_accelerator_has_psi_without_a_loop_and_the_same_prediction(scores, monkeypatch):
    here = estimator()
    given = here.init(jax.random.key(0), N).params, jnp.asarray(scores[:K]).swapaxes(0, 1)
    loop = jax.jit(here.predict).lower(*given)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    none = jax.jit(Estimator(here.config, T).predict).lower(*given)
    assert "while" in loop.as_text()
    assert "while" not in none.as_text()
    np.testing.assert_allclose(none.compile()(*given), loop.compile()(*given), rtol=1e-5, atol=1e-6)


def test_psi_learns_scores_that_can_be_foreseen():
    # The sign changes every epoch: the last scores themselves, or none, would foresee nothing.
    base = np.random.RandomState(0).uniform(-1, 1, (N, T)).astype(np.float32)
    states = run([base * (-1) ** t for t in range(60)])
    assert states[K].loss > 0.5 * np.square(base).mean()
    assert states[-1].loss < 0.1 * np.square(base).mean()


def test_psi_trains_on_each_image_once_an_epoch(scores):
    # With one image per batch, Adam counts an update for each image.
    states = run(scores[: K + 1], step=update(batch=1))
    counts = [x for x in jax.tree.leaves(states[-1].optimizer) if x.dtype == jnp.int32]
    assert [int(c) for c in counts] == [N]
