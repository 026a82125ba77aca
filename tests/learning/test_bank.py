import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahl_jax.detectors.inputs import make_inputs
from ahl_jax.distributed.part import Part
from ahl_jax.learning.bank import HostBank, Streamed, shared_bank
from tests.problems import assert_trees_close, assert_trees_equal, make_config, make_setting


def parts(count: int = 3) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        [rng.standard_normal((n, *side, 2), np.float32) for side in ((4, 5), (3, 3))]
        for n in (5, 70, 2)[:count]
    ]


def test_rows_of_the_host_bank_are_the_images_of_its_parts():
    maps = parts()
    bank = HostBank(maps, "float32")
    whole = make_inputs([np.concatenate(scale) for scale in zip(*maps, strict=True)])
    assert bank.images == 77
    assert bank.nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves(whole))
    assert bank.channels == 2
    assert_trees_equal(bank.on_device(), jax.tree.map(jnp.asarray, whole))
    index = np.array([[76, 0, 4], [5, 5, 74]])
    found = bank.rows(index)
    for leaf, expected in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(leaf, expected[index])


def test_runs_with_the_same_normals_hold_them_once():
    normals, first, second = parts()
    one, two = shared_bank([(normals, first, second), (normals, second, first)])
    assert one.inputs is two.inputs
    assert one.inputs.images == 77
    np.testing.assert_array_equal(one.place, np.arange(77))
    np.testing.assert_array_equal(two.place, [*range(5), 75, 76, *range(5, 75)])


def test_rows_past_the_last_image_are_zeros():
    bank = HostBank(parts(), "float32", Part(shards=4))
    found = bank.rows(np.array([76, 77, 79]))
    assert all((leaf[0] != 0).all() for leaf in jax.tree.leaves(found))
    assert all((leaf[1:] == 0).all() for leaf in jax.tree.leaves(found))


@given(
    processes=st.integers(1, 4),
    shards=st.integers(1, 3),
    lengths=st.lists(st.integers(0, 12), min_size=3, max_size=3).filter(any),
    left_out=st.sets(st.integers(0, 11)),
)
def test_every_image_is_with_the_process_that_has_its_part(processes, shards, lengths, left_out):
    """Parts of lists, of which some images could not be read, shared by two runs."""
    numbers = [np.array([100 * k + i for i in range(n) if i not in left_out])
               for k, n in enumerate(lengths)]  # fmt: skip

    def own(k: int, part: Part) -> list[np.ndarray]:
        kept = [i for i in part.span(lengths[k]) if i not in left_out]
        return [
            np.broadcast_to(100.0 * k + np.array(kept)[:, None, None, None], (len(kept), 3, 3, 1))
        ]

    parts = [Part(p, processes, shards) for p in range(processes)]
    lists = [[own(k, part) for k in range(3)] for part in parts]
    counts = np.array([[len(maps[0]) for maps in of_process] for of_process in lists])
    assert counts.sum(0).tolist() == [len(of_list) for of_list in numbers]
    banks = [
        shared_bank(
            [(a, b, c), (a, c, b)],
            part=part,
            counts=[counts, counts[:, [0, 2, 1]]],
        )
        for part, (a, b, c) in zip(parts, lists, strict=True)
    ]
    hosts = [runs[0].inputs for runs in banks]
    each = hosts[0].rows_each
    assert each % shards == 0
    assert counts.sum(1).max() <= each < max(counts.sum(1).max(), 1) + shards
    found = np.concatenate([
        host.rows(host.first + np.arange(each)).pooled[:, 0, 0] for host in hosts
    ])  # fmt: skip
    assert len(found) == hosts[0].size == processes * each
    for run, order in enumerate(([0, 1, 2], [0, 2, 1])):
        place = banks[0][run].place
        assert all((other[run].place == place).all() for other in banks)
        expected = np.concatenate([numbers[k] for k in order])
        np.testing.assert_array_equal(found[place], expected)
    padding = np.setdiff1d(np.arange(len(found)), banks[0][0].place)
    assert not found[padding].any()
    assert hosts[0].images == sum(map(len, numbers))


@given(processes=st.integers(1, 9), count=st.integers(0, 30))
def test_parts_share_out_a_list_evenly_and_in_order(processes, count):
    parts = [Part(p, processes) for p in range(processes)]
    assert [i for part in parts for i in part.span(count)] == list(range(count))
    lengths = parts[0].lengths(count)
    assert lengths == [len(part.span(count)) for part in parts]
    assert max(lengths) - min(lengths) <= 1


def test_rows_of_another_process_are_refused():
    bank = HostBank(parts(), "float32", Part(1, 2, 3), [70, 77])
    assert (bank.rows_each, bank.first, bank.size) == (78, 78, 156)
    with pytest.raises(IndexError, match="not in this process's part"):
        bank.rows(np.array([78, 77]))
    with pytest.raises(IndexError, match="not in this process's part"):
        bank.rows(np.array([156]))


def test_half_precision_halves_the_features_and_keeps_the_averages():
    (maps,) = parts(1)
    found = HostBank([maps], "bfloat16").on_device()
    exact = make_inputs(maps)
    assert {found.patches.dtype, found.rest.dtype} == {jnp.dtype("bfloat16")}
    np.testing.assert_array_equal(found.pooled, exact.pooled)
    np.testing.assert_allclose(np.asarray(found.patches, np.float32), exact.patches, rtol=2**-8)


def test_a_bank_within_its_budget_goes_to_the_device_and_one_over_it_is_streamed():
    (maps,) = parts(1)
    runs = [(maps, maps, maps)]
    size = HostBank([maps], "float32").nbytes
    assert isinstance(shared_bank(runs, budget=size)[0].inputs, HostBank)
    assert isinstance(shared_bank(runs, budget=size - 1)[0].inputs, Streamed)
    assert isinstance(shared_bank(runs, "bfloat16", budget=size - 1)[0].inputs, HostBank)


def test_streamed_images_are_those_of_the_bank_under_jit_and_vmap():
    bank = HostBank(parts(), "float32")
    streamed, whole = Streamed(bank), bank.on_device()
    index = jnp.arange(24).reshape(2, 3, 4) * 3
    taken = jax.jit(jax.vmap(jax.vmap(streamed.take)))(index)
    assert_trees_equal(taken, whole.take(index))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_is_the_same_streamed(precision):
    config = make_config(detector="dra", precision=precision, history=1)
    problem = make_setting(config)
    learner, data = problem.learner, problem.data
    assert data.inputs.patches.dtype == precision
    host = jax.tree.map(np.asarray, data.inputs)

    class Rows:
        """A host bank in the layout of the device's."""

        one = jax.tree.map(lambda leaf: leaf[:1], host)

        def rows(self, index):
            return jax.tree.map(lambda leaf: leaf[np.asarray(index)], host)

    streamed = dataclasses.replace(data, inputs=Streamed(Rows()))  # type: ignore[arg-type]
    epoch = jax.jit(learner.epoch)
    here = there = learner.init(problem.model, data, problem.key)
    for number in range(2):
        here, _ = epoch(here, data, jnp.int32(number))
        there, _ = epoch(there, streamed, jnp.int32(number))
    assert_trees_close(there.model, here.model, rtol=1e-5, atol=1e-6)
    assert_trees_close(there.importance.weights, here.importance.weights, rtol=1e-5)
