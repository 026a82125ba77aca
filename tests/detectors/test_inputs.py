import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahl_jax.detectors.inputs import Blocks, Grid, make_inputs, mean_of, to_maps
from ahl_jax.detectors.whitening import Whitening
from ahl_jax.features.pooling import averages_of, global_averages, pooled_features

grids = st.builds(Grid, st.integers(3, 14), st.integers(3, 14))


@given(grids)
def test_patch_order_is_a_permutation_and_to_map_inverts_it(grid):
    np.testing.assert_array_equal(np.sort(grid.order), np.arange(grid.height * grid.width))
    values = np.arange(2 * grid.height * grid.width).reshape(2, -1)
    maps = values.reshape(2, grid.height, grid.width)
    np.testing.assert_array_equal(grid.to_map(values[:, grid.order]), maps)


@given(grids)
def test_patches_are_3x3_do_not_overlap_and_lie_centred(grid):
    row, column = np.divmod(grid.order[: 9 * grid.patches].reshape(-1, 3, 3), grid.width)
    top, left = row[:, 0, 0], column[:, 0, 0]
    steps = np.arange(3)
    np.testing.assert_array_equal(row, (top[:, None] + steps)[:, :, None].repeat(3, 2))
    np.testing.assert_array_equal(column, (left[:, None] + steps)[:, None].repeat(3, 1))
    for position, side in ((row, grid.height), (column, grid.width)):
        before, after = position.min(), side - 1 - position.max()
        assert before + after == side % 3
        assert 0 <= after - before <= 1


@given(grids)
def test_spread_gives_every_location_the_value_of_its_own_or_the_nearest_patch(grid):
    values = np.arange(grid.patches) + 10
    spread = np.asarray(grid.spread(values[None]))[0]
    assert spread.shape == (grid.height, grid.width)
    row, column = np.divmod(grid.order[: 9 * grid.patches].reshape(-1, 9), grid.width)
    np.testing.assert_array_equal(spread[row, column], values[:, None].repeat(9, 1))
    # Chebyshev distance to the patches' centres: the value is that of a nearest one.
    centres = np.stack([row.mean(1), column.mean(1)], 1)
    here = np.stack(np.indices(spread.shape), -1)
    distance = np.abs(here[:, :, None] - centres).max(-1)
    own = np.take_along_axis(distance, (spread - 10)[..., None], 2)[..., 0]
    np.testing.assert_array_equal(own, distance.min(-1))


@pytest.mark.parametrize("side", [(2, 5), (5, 2)])
def test_a_map_without_room_for_a_patch_is_refused(side):
    with pytest.raises(ValueError, match="holds no 3x3 patch"):
        Grid(*side)


@pytest.fixture
def maps():
    random = np.random.RandomState(0)
    return [random.normal(size=(4, *side, 2)).astype(np.float32) for side in ((7, 5), (4, 3))]


def test_patches_and_pooled_features_are_those_of_the_maps(maps):
    inputs = make_inputs(maps)
    assert (inputs.images, inputs.channels) == (4, 2)
    np.testing.assert_allclose(
        inputs.pooled, np.stack([m.mean((1, 2)) for m in maps], 1), rtol=1e-5, atol=1e-6
    )
    for features, patches in zip(maps, inputs.at_patches(lambda x: x), strict=True):
        (h, w) = features.shape[1:3]
        top, left = (h % 3) // 2, (w % 3) // 2
        first = features[:, top : top + 3, left : left + 3].reshape(4, -1)
        np.testing.assert_array_equal(patches[:, 0], first)
        assert patches.shape == (4, (h // 3) * (w // 3), 18)


@pytest.mark.parametrize("poolings", [1, 3])
def test_each_mean_over_views_is_pooled_apart_and_the_first_gives_the_places(maps, poolings):
    second = [m[..., ::-1] * 3 + 1 for m in maps]
    both = [np.concatenate(pair, -1) for pair in zip(maps, second, strict=True)]
    rows, side = 2 * poolings * len(maps), 2 * len(maps)
    eye, scaled = np.eye(2, dtype=np.float32), 2 * np.eye(side, dtype=np.float32)
    whitening = Whitening(
        np.zeros((rows, 2), np.float32), np.stack([eye, eye]), np.tile(scaled, (2 * poolings, 1))
    )
    inputs = make_inputs(both, whitening=whitening)
    assert (inputs.channels, inputs.pooled.shape) == (2, (4, rows, 2))
    for first, back in zip(maps, to_maps(inputs), strict=True):
        np.testing.assert_allclose(back, first, rtol=1e-6)
    ways = [lambda m: m.mean((1, 2)), lambda m: m.std((1, 2)), lambda m: m.max((1, 2))]
    expected = [way(m) for way in ways[:poolings] for mean in (maps, second) for m in mean]
    np.testing.assert_allclose(inputs.pooled, 2 * np.stack(expected, 1), rtol=1e-5, atol=1e-5)
    pooled = pooled_features(both, Blocks(poolings, 2))
    np.testing.assert_allclose(pooled, np.concatenate(expected, 1), rtol=1e-5, atol=1e-5)
    averages = averages_of(pooled, 2 * poolings)
    np.testing.assert_array_equal(averages, global_averages(maps))
    np.testing.assert_array_equal(averages, global_averages(both, 2))


@pytest.mark.parametrize("of", [np.asarray, jnp.asarray])
def test_inputs_hold_every_location_once(maps, of):
    inputs = make_inputs([of(m) for m in maps])
    assert all(isinstance(leaf, type(of(maps[0]))) for leaf in jax.tree.leaves(inputs))
    for features, back in zip(maps, to_maps(inputs), strict=True):
        np.testing.assert_array_equal(features, back)
    one = inputs.take(jnp.array(2))
    for features, back in zip(maps, to_maps(one), strict=True):
        np.testing.assert_array_equal(features[2], back)


def test_a_function_of_locations_gets_every_location_in_patch_order(maps):
    found = make_inputs(maps).at_locations(lambda x: x.sum(-1))
    for features, sums in zip(maps, found, strict=True):
        grid = Grid(*features.shape[1:3])
        np.testing.assert_allclose(grid.to_map(sums), features.sum(-1), rtol=1e-6)


def test_maps_whose_sides_3_divides_leave_no_rest():
    maps = [np.ones((2, 6, 3, 4), np.float32), np.ones((2, 3, 3, 4), np.float32)]
    inputs = make_inputs(maps)
    assert inputs.rest.shape == (2, 0, 4)
    assert [x.shape for x in inputs.at_locations(lambda x: x)] == [(2, 18, 4), (2, 9, 4)]


def test_take_works_on_images(maps):
    inputs = make_inputs(maps)
    taken = inputs.take(jnp.array([2, 0]))
    for chosen, whole in zip(jax.tree.leaves(taken), jax.tree.leaves(inputs), strict=True):
        np.testing.assert_array_equal(chosen, whole[np.array([2, 0])])


def test_a_reference_is_the_same_weighted_mean_at_both_scales(maps):
    # Image j holds the number j at both scales, so the mean tells which images are in it.
    numbered = make_inputs([np.zeros_like(m) + np.arange(4).reshape(4, 1, 1, 1) for m in maps])
    weights = jnp.array([0.0, 1.0, 0.0, 3.0])
    for leaf, whole in zip(
        jax.tree.leaves(mean_of(numbered, weights)), jax.tree.leaves(numbered), strict=True
    ):
        np.testing.assert_allclose(leaf, np.full(whole.shape[1:], (1 + 3 * 3) / 4))
    for mean, features in zip(to_maps(mean_of(make_inputs(maps), weights)), maps, strict=True):
        expected = (features[1] + 3 * features[3]) / 4
        np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)


def test_a_reference_in_half_precision_adds_up_in_float32():
    # In bfloat16 a third weighs 0.3340, so three thirds of 1.5 would make 1.5030.
    maps = [np.full((3, 3, 3, 2), 1.5, np.float32)]
    mean = mean_of(make_inputs(maps, jnp.bfloat16), jnp.ones(3))
    assert (mean.patches.dtype, mean.pooled.dtype) == (jnp.bfloat16, np.float32)
    np.testing.assert_array_equal(np.asarray(mean.patches, np.float32), 1.5)
