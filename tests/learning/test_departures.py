"""What the published PyTorch code does and the paper does not say, checked on a whole problem."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from ahl_jax.config.settings import DetectorConfig
from ahl_jax.detectors import Model, functional, make_detector
from ahl_jax.detectors.protocol import DeviationDetector, Head
from ahl_jax.learning.learner import TrainState, batch_loss, optimizer, train_steps
from tests.problems import assert_trees_close, make_config, make_setting


@pytest.fixture(scope="module")
def problem():
    return make_setting(make_config(detector="dra", subsets=6, hidden=8, steps=3))


def sides(problem, name: str):
    """The members of the support and the query pool of every subset."""
    pools = [getattr(s, name) for s in (problem.data.support, problem.data.query)]
    for subset in range(len(problem.subsets)):
        yield [set(np.asarray(p.members[subset])[: p.size[subset]].tolist()) for p in pools]


def test_the_normals_of_a_set_are_the_members_of_its_cluster(problem):
    # Normal j lies in the blob j % 3, so no cluster is a run of the first images.
    for support, query in sides(problem, "normals"):
        blobs = {j % 3 for j in support}, {j % 3 for j in query}
        assert [len(b) for b in blobs] == [1, 1]
        assert blobs[0] != blobs[1]
        assert len(support) == len(query) == 5


def test_support_and_query_share_no_anomaly(problem):
    for support, query in sides(problem, "anomalies"):
        assert not support & query
        assert support | query == set(range(15, 20))


def test_support_and_query_pseudo_anomalies_come_from_different_generators(problem):
    for support, query in sides(problem, "pseudo"):
        makers = [{(j - 20) // 6 for j in members} for members in (support, query)]
        assert [len(m) for m in makers] == [1, 1]
        assert makers[0] != makers[1]


def batches_of(problem, subset: int = 0):
    drawn = problem.learner._batches(jax.random.key(1), problem.data.support, 1)
    return jax.tree.map(lambda x: x[0, subset], drawn)


@pytest.mark.slow
def test_a_fresh_residual_head_is_not_constant_and_all_of_it_learns(problem):
    functional, model = problem.learner.functional, problem.model
    np.testing.assert_array_equal(model.params["norm"]["scale"], 1)
    reference = problem.data.inference_reference()
    scores = jax.jit(functional.head_scores)(model, problem.data.inputs, reference)
    assert np.ptp(np.asarray(scores[:, functional.kind.heads.index("residual")])) > 0.01
    batch = jax.tree.map(lambda x: x[0], batches_of(problem))

    def loss(params):
        return batch_loss(functional, params, model.stats, problem.data, batch)[0]

    grads = jax.jit(jax.grad(loss))(model.params)
    for part in ("residual", "residual_out"):
        assert np.abs(grads[part]["kernel"]).max() > 1e-4
    for part in ("scale", "shift"):
        assert np.count_nonzero(np.abs(grads["norm"][part]) > 1e-5) >= 3


def test_every_support_batch_moves_the_base_model_on_from_where_it_is(problem):
    learner, data = problem.learner, problem.data
    transform = optimizer("sgd", 1e6)
    train = jax.jit(
        lambda start, batches: train_steps(
            learner.functional, transform, start, data, batches, jnp.float32(0.05)
        )[0]
    )
    batches = batches_of(problem)
    start = TrainState(problem.model, transform.init(problem.model.params))
    one_by_one, distances = start, []
    for k in range(3):
        after = train(one_by_one, jax.tree.map(lambda x, k=k: x[k : k + 1], batches))
        moved = [ravel_pytree(x.model.params)[0] for x in (one_by_one, after)]
        distances.append(np.linalg.norm(moved[1] - moved[0]))
        one_by_one = after
    assert min(distances) > 0.001
    at_once = train(start, batches)
    assert_trees_close(at_once, one_by_one, rtol=1e-4, atol=1e-5)
    last = train(start, jax.tree.map(lambda x: x[2:], batches))
    ends = [ravel_pytree(x.model.params)[0] for x in (at_once, last)]
    assert np.linalg.norm(ends[0] - ends[1]) > 0.001


class ReferenceGap(DeviationDetector):
    """Scores an image by how the reference differs between the two scales."""

    table = (Head("gap", targets=(0, 0, 0)),)
    margin = 5.0

    def __init__(self, channels, config, *, rngs):
        del channels, config, rngs
        self.gain = nnx.Param(jnp.ones(()))

    def head_scores(self, inputs, reference, weights=None):
        large, small = reference.pooled[:, 0]
        gap = self.gain[...] * jnp.abs(large - small)
        return jnp.full((inputs.images, 1), gap)

    def location_maps(self, inputs, reference):
        raise NotImplementedError


def test_the_references_are_the_same_images_at_both_scales(problem):
    # Every feature of image j is the number j, at both scales.
    numbers = jnp.arange(38.0)[:, None, None]
    inputs = jax.tree.map(lambda x: jnp.broadcast_to(numbers, x.shape), problem.data.inputs)
    data = dataclasses.replace(problem.data, inputs=inputs)
    mean = np.mean(np.asarray(data.reference))
    np.testing.assert_allclose(data.inference_reference().pooled, mean, rtol=1e-6)
    pure, model = functional(ReferenceGap(4, DetectorConfig(), rngs=nnx.Rngs(0)))
    data = dataclasses.replace(data, prior=type(data.prior)(jnp.zeros(()), jnp.ones(())))
    for step in range(3):
        batch = jax.tree.map(lambda x, k=step: x[k], batches_of(problem))
        loss = batch_loss(pure, model.params, model.stats, data, batch)[0]
        assert loss < 1e-5


@pytest.mark.slow
def test_a_gap_between_the_scales_would_be_seen():
    pure, model = functional(ReferenceGap(4, DetectorConfig(), rngs=nnx.Rngs(0)))
    problem = make_setting(make_config(detector="devnet"))
    batch = jax.tree.map(lambda x: x[0], batches_of(problem))
    loss = batch_loss(pure, Model(model.params, {}).params, {}, problem.data, batch)[0]
    assert loss > 1e-3


def test_fresh_normalisation_passes_every_channel_on():
    _, model = make_detector(DetectorConfig(), 8, jax.random.key(0))
    np.testing.assert_array_equal(model.params["norm"]["scale"], np.ones(8))
    np.testing.assert_array_equal(model.stats["norm"]["mean"], np.zeros(8))
    np.testing.assert_array_equal(model.stats["norm"]["var"], np.ones(8))
