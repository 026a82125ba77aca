import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ahl_jax.detectors.losses import (
    PRIOR_DRAWS,
    Prior,
    deviation,
    deviation_loss,
    draw_prior,
    focal_loss,
    triplet_loss,
    weighted_mean,
)

JITTED = jax.jit(deviation_loss)
FOCAL, TRIPLET = jax.jit(focal_loss), jax.jit(triplet_loss)
PRIOR = Prior(jnp.float32(0.02), jnp.float32(1.01))


@given(
    scores=hnp.arrays(np.float32, 7, elements=st.floats(-1000, 1000, width=32)),
    targets=hnp.arrays(np.float32, 7, elements=st.sampled_from([0.0, 1.0])),
    mean=st.floats(-1, 1, width=32),
    std=st.floats(0.25, 4, width=32),
    margin=st.floats(0.125, 50, width=32),
)
def test_it_equals_the_closed_form(scores, targets, mean, std, margin):
    prior = Prior(jnp.float32(mean), jnp.float32(std))
    dev = (scores.astype(np.float64) - mean) / std
    expected = np.where(targets == 0, np.abs(dev), np.maximum(0, margin - dev))
    actual = JITTED(scores, targets, prior, margin)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-3)


def test_jitted_equals_eager():
    scores = np.random.RandomState(0).normal(0, 4, 50).astype(np.float32)
    targets = (np.arange(50) % 2).astype(np.float32)
    eager = deviation_loss(scores, targets, PRIOR)
    np.testing.assert_allclose(JITTED(scores, targets, PRIOR), eager, rtol=1e-6, atol=1e-6)
    assert eager.shape == (50,)


@pytest.mark.parametrize(
    ("score", "target", "sign"),
    [(3.0, 0.0, 1), (-3.0, 0.0, -1), (3.0, 1.0, -1), (-3.0, 1.0, -1), (7.0, 1.0, 0)],
)
def test_a_step_down_the_gradient_moves_the_score_the_right_way(score, target, sign):
    gradient = jax.grad(lambda s: deviation_loss(s, jnp.float32(target), PRIOR))(jnp.float32(score))
    assert gradient == pytest.approx(sign / float(PRIOR.std), abs=1e-6)


def test_the_default_margin_is_five_deviations():
    at_mean = deviation_loss(PRIOR.mean, jnp.float32(1), PRIOR)
    assert at_mean == pytest.approx(5.0)
    assert deviation_loss(PRIOR.mean + 5 * PRIOR.std, jnp.float32(1), PRIOR) < 1e-5
    assert deviation(PRIOR.mean + 2 * PRIOR.std, PRIOR) == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_prior_has_the_moments_of_5000_normal_draws(seed):
    assert PRIOR_DRAWS == 5000
    prior = draw_prior(jax.random.key(seed))
    # Four standard errors of a mean and of a standard deviation of 5,000 draws.
    assert abs(prior.mean) < 4 / np.sqrt(5000)
    assert abs(prior.std - 1) < 4 / np.sqrt(2 * 5000)
    # A sample's moments, not N(0, 1)'s own.
    assert prior.mean != 0
    assert prior.std != 1
    again, other = draw_prior(jax.random.key(seed)), draw_prior(jax.random.key(seed + 10))
    assert prior == again
    assert prior.mean != other.mean


@given(
    logits=hnp.arrays(np.float32, 7, elements=st.floats(-60, 60, width=32)),
    targets=hnp.arrays(np.float32, 7, elements=st.sampled_from([0.0, 1.0])),
    alpha=st.floats(0, 1, width=32),
    gamma=st.floats(0.5, 5, width=32),
)
def test_the_focal_loss_equals_its_closed_form(logits, targets, alpha, gamma):
    signed = np.where(targets == 1, logits, -logits).astype(np.float64)
    true_class = 1 / (1 + np.exp(-signed))
    other_class = 1 / (1 + np.exp(signed))
    share = np.where(targets == 1, alpha, 1 - alpha)
    expected = -share * other_class**gamma * np.log(true_class)
    np.testing.assert_allclose(FOCAL(logits, targets, alpha, gamma), expected, rtol=1e-4, atol=1e-6)


def test_the_focal_loss_of_certain_and_of_even_odds():
    # gamma is 2 by default: a quarter of alpha log 2 at even odds.
    assert focal_loss(jnp.float32(0), jnp.float32(1), 0.25) == pytest.approx(np.log(2) / 16)
    logits = jnp.float32([-1e30, 1e30])
    np.testing.assert_array_equal(focal_loss(logits, jnp.float32([0, 1]), 0.5), 0)
    wrong = jnp.float32([1, 0])
    np.testing.assert_allclose(focal_loss(logits, wrong, 0.5), 5e29, rtol=1e-6)
    slopes = jax.grad(lambda z: focal_loss(z, wrong, 0.5).sum())(logits)
    np.testing.assert_allclose(slopes, [-0.5, 0.5])


counts = hnp.arrays(np.int32, 5, elements=st.integers(0, 3))


@given(
    distances=hnp.arrays(np.float32, 5, elements=st.floats(0, 100, width=32)),
    times=counts,
    kinds=hnp.arrays(np.int32, 5, elements=st.integers(0, 2)),
    margin=st.floats(0, 10, width=32),
)
def test_the_triplet_loss_is_the_mean_over_all_pairs_with_repeats(distances, times, kinds, margin):
    near, far = (distances[kinds == k].repeat(times[kinds == k]) for k in (0, 1))
    pairs = [max(0.0, float(p) - float(n) + margin) for p in near for n in far]
    actual = TRIPLET(distances, *(np.float32(times * (kinds == k)) for k in (0, 1)), margin)
    assert float(actual) == pytest.approx(np.mean(pairs) if pairs else 0, rel=1e-5, abs=1e-4)


def test_the_triplet_loss_pulls_positives_in_and_pushes_negatives_out():
    distances = jnp.float32([0.5, 0.9, 5.0])
    positive, negative = jnp.float32([1, 0, 0]), jnp.float32([0, 1, 1])
    loss, slopes = jax.value_and_grad(triplet_loss)(distances, positive, negative)
    # Of the two negatives, one is farther away than the margin already.
    assert loss == pytest.approx((0.5 - 0.9 + 1) / 2)
    np.testing.assert_allclose(slopes, [0.5, -0.5, 0])


@given(values=hnp.arrays(np.float32, (5, 2), elements=st.floats(-9, 9, width=32)), times=counts)
def test_a_weighted_mean_is_the_mean_with_repeats(values, times):
    expected = values.repeat(times, axis=0).mean(0) if times.any() else np.zeros(2)
    actual = weighted_mean(jnp.asarray(values), jnp.asarray(times, jnp.float32)[:, None])
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
