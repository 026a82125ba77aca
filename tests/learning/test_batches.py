import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ahl_jax.detectors.protocol import ANOMALY, NORMAL, PSEUDO
from ahl_jax.learning.batches import PoolSet, draw, draw_batches, equal_parts, pad_pools
from tests.problems import assert_trees_equal

PADDED = 8
drawn = jax.jit(draw, static_argnames="size")


@functools.cache
def pool(size: int):
    """Members 100, 101, ... of a pool that another, larger one pads to ``PADDED``."""
    stacked = pad_pools([np.arange(100, 100 + size), np.arange(PADDED)])
    return jax.tree.map(lambda x: x[0], stacked)


# Few static sizes, so few compilations: below, at and above the padded width.
@settings(max_examples=150)
@given(
    members=st.integers(1, PADDED), size=st.sampled_from([1, 3, 8, 21]), seed=st.integers(0, 9999)
)
def test_a_draw_is_balanced_and_repeats_none_before_all_are_used(members, size, seed):
    index, weights = map(np.asarray, drawn(jax.random.key(seed), pool(members), size=size))
    assert len(index) == min(size, PADDED)
    assert weights.sum() == size
    assert (weights >= 0).all()
    assert (weights == np.round(weights)).all()
    real = weights > 0
    assert set(index[real]) <= set(range(100, 100 + members))
    assert len(set(index[real])) == real.sum() == min(size, members)
    assert weights[real].max() - weights[real].min() <= 1
    assert np.isin(index, np.arange(100, 100 + members)).all()


@settings(max_examples=100)
@given(members=st.integers(1, PADDED), size=st.sampled_from([1, 3, 21]), seed=st.integers(0, 9999))
def test_wider_padding_draws_the_same(members, size, seed):
    narrow = pool(members)
    wide = jax.tree.map(lambda x: x[0], pad_pools([np.arange(100, 100 + members)], 40))
    index, weights = map(np.asarray, drawn(jax.random.key(seed), narrow, size=size))
    wide_index, wide_weights = map(np.asarray, drawn(jax.random.key(seed), wide, size=size))
    real = min(size, members)
    np.testing.assert_array_equal(wide_index[:real], index[:real])
    np.testing.assert_array_equal(wide_weights[:real], weights[:real])
    assert weights[:real].all()
    assert wide_weights[real:].sum() == weights[real:].sum() == 0


def test_every_member_is_drawn_equally_often():
    keys = jax.random.split(jax.random.key(0), 4000)
    index, weights = jax.jit(jax.vmap(lambda k: draw(k, pool(5), 3)))(keys)
    counts = np.zeros(200)
    np.add.at(counts, np.asarray(index).ravel(), np.asarray(weights).ravel())
    share = counts[100:105] / counts.sum()
    # Five standard errors of a share of 1/5.
    np.testing.assert_allclose(share, 0.2, atol=5 * np.sqrt(0.2 * 0.8 / 12000))


def test_what_is_left_over_after_whole_rounds_goes_to_random_members():
    keys = jax.random.split(jax.random.key(0), 300)
    index, weights = jax.jit(jax.vmap(lambda k: draw(k, pool(3), 4)))(keys)
    twice = np.asarray(index)[np.asarray(weights) == 2]
    assert len(twice) == 300
    assert min(np.bincount(twice)[100:103]) > 50


@given(st.integers(3, 200), st.tuples(st.booleans(), st.booleans()))
def test_a_batch_is_in_equal_parts_of_what_there_is_and_normals_take_the_rest(batch, there):
    pools = PoolSet(*(pad_pools([range(3 * one)]) for one in (True, *there)))
    normals, *others = equal_parts(batch, pools)
    assert normals + sum(others) == batch
    part = batch // (1 + sum(there))
    assert others == [part * one for one in there]
    assert 0 <= normals - part <= 2


@pytest.fixture(scope="module")
def batches():
    pools = PoolSet(
        jax.tree.map(lambda x: x[0], pad_pools([range(20), range(30)])),
        jax.tree.map(lambda x: x[0], pad_pools([[50, 51], range(5)])),
        jax.tree.map(lambda x: x[0], pad_pools([range(60, 65), range(60, 65)])),
    )
    return jax.jit(lambda key: draw_batches(key, pools, steps=4, batch=14, references=5))


def test_a_batch_has_a_third_of_each_kind_and_only_from_its_pool(batches):
    batch = batches(jax.random.key(0))
    members = {NORMAL: range(20), ANOMALY: (50, 51), PSEUDO: range(60, 65)}
    # 14 = 6 + 4 + 4; of two anomalies there are four slots, two of them empty.
    for label, share in zip((NORMAL, ANOMALY, PSEUDO), (6, 4, 4), strict=True):
        weights = np.where(batch.labels == label, batch.weights, 0)
        np.testing.assert_array_equal(weights.sum(1), share)
        assert set(np.asarray(batch.index)[weights > 0]) <= set(members[label])
    assert set(np.unique(batch.labels)) == {NORMAL, ANOMALY, PSEUDO}


def test_a_batch_of_normals_alone():
    members = (range(20), (), ())
    pools = PoolSet(*(jax.tree.map(lambda x: x[0], pad_pools([m])) for m in members))
    batch = draw_batches(jax.random.key(0), pools, steps=4, batch=14, references=5)
    assert batch.index.shape == (4, 14)
    assert all(len(set(row)) == 14 for row in np.asarray(batch.index))
    np.testing.assert_array_equal(batch.labels, NORMAL)
    np.testing.assert_array_equal(batch.weights, 1)
    assert batch.reference.shape == (4, 5)


def test_references_are_five_different_normals(batches):
    batch = batches(jax.random.key(0))
    assert batch.reference.shape == (4, 5)
    np.testing.assert_array_equal(batch.reference_weights, 1)
    for reference in np.asarray(batch.reference):
        assert len(set(reference)) == 5
        assert set(reference) <= set(range(20))


def test_batches_depend_on_the_key_alone_and_differ_between_steps(batches):
    batch, again, other = (batches(jax.random.key(k)) for k in (0, 0, 1))
    assert_trees_equal(batch, again)
    assert not np.array_equal(batch.index, other.index)
    sets = {tuple(sorted(row)) for row in np.asarray(batch.index)[:, :6]}
    assert len(sets) == 4
    assert len({tuple(sorted(row)) for row in np.asarray(batch.reference)}) > 1


def test_fewer_normals_than_references_are_repeated():
    pools = [jax.tree.map(lambda x: x[0], pad_pools([m, range(9)])) for m in ([1, 2, 3], [4], [5])]
    batch = draw_batches(jax.random.key(0), PoolSet(*pools), steps=1, batch=3, references=5)
    np.testing.assert_array_equal(batch.reference_weights.sum(1), 5)
    real = np.asarray(batch.reference)[np.asarray(batch.reference_weights) > 0]
    assert sorted(real) == [1, 2, 3]


def test_a_pool_that_alone_is_empty_is_refused():
    with pytest.raises(ValueError, match="pool 1 is empty"):
        pad_pools([[1], []])


def test_a_pool_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a pool of 3 does not fit into a width of 2"):
        pad_pools([[1], [1, 2, 3]], 2)


def test_pools_are_padded_with_their_own_members():
    padded = pad_pools([[7], [1, 2, 3]])
    np.testing.assert_array_equal(padded.members, [[7, 7, 7], [1, 2, 3]])
    np.testing.assert_array_equal(pad_pools([[7, 8]], 4).members, [[7, 8, 7, 7]])
    np.testing.assert_array_equal(padded.size, [1, 3])
    assert padded.members.dtype == jnp.int32
