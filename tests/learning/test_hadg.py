import itertools
import logging
import warnings
from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import SubsetConfig
from ahl_jax.learning.hadg import (
    HOLISTIC,
    Roles,
    balanced_clusters,
    cluster_normals,
    error_weights,
    everything,
    make_subsets,
    pool_sets,
    random_groups,
    similar_normals,
)


def make_roles(normals: int, anomalies: int, generators: int, per_generator: int = 6) -> Roles:
    made = np.arange(generators * per_generator)
    return Roles(normals, anomalies, made // per_generator, made % normals)


@st.composite
def cases(draw, most_subsets=14):
    """Clusters of arbitrary members (not ranges), a roles and settings."""
    sizes = draw(st.lists(st.integers(3, 6), min_size=2, max_size=5))
    outside = draw(st.integers(0, 3))
    seed = draw(st.integers(0, 999))
    shuffled = np.random.RandomState(seed).permutation(sum(sizes) + outside)
    clusters = [np.sort(m) for m in np.split(shuffled[: sum(sizes)], np.cumsum(sizes)[:-1])]
    config = SubsetConfig(
        subsets=draw(st.integers(1, most_subsets)),
        clusters=len(sizes),
        holistic=draw(st.booleans()),
        share_anomalies=draw(st.booleans()),
    )
    generators = draw(st.integers(2, 4))
    roles = make_roles(len(shuffled), draw(st.integers(1, 7)), generators)
    return config, roles, clusters, generators, seed


@given(cases())
def test_support_and_query_normals_are_the_members_of_two_different_clusters(case):
    config, roles, clusters, generators, seed = case
    subsets = make_subsets(config, roles, clusters, generators, seed)
    assert len(subsets) == config.subsets + config.holistic
    for subset in subsets[: config.subsets]:
        support, query = subset.clusters
        assert support != query
        np.testing.assert_array_equal(subset.normals[0], clusters[support])
        np.testing.assert_array_equal(subset.normals[1], clusters[query])
        assert not set(subset.normals[0]) & set(subset.normals[1])


@given(cases(most_subsets=45))
def test_no_ordered_pair_of_clusters_returns_before_all_are_used(case):
    config, roles, clusters, generators, seed = case
    subsets = make_subsets(config, roles, clusters, generators, seed)[: config.subsets]
    every = len(clusters) * (len(clusters) - 1)
    for start in range(0, len(subsets), every):
        cycle = [s.clusters for s in subsets[start : start + every]]
        assert len(set(cycle)) == len(cycle)


def test_three_clusters_and_six_subsets_take_every_ordered_pair_once():
    clusters = [np.arange(3 * c, 3 * c + 3) for c in range(3)]
    subsets = make_subsets(SubsetConfig(), make_roles(9, 4, 3), clusters, 3, seed=0)
    pairs = sorted(s.clusters for s in subsets)
    assert pairs == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]


def test_fewer_subsets_than_pairs_take_random_ones():
    clusters = [np.arange(3 * c, 3 * c + 3) for c in range(3)]
    config, roles = SubsetConfig(subsets=1), make_roles(9, 4, 3)
    first = {make_subsets(config, roles, clusters, 3, seed)[0].clusters for seed in range(60)}
    assert len(first) == 6


@given(cases())
def test_the_labelled_anomalies_are_split_between_support_and_query(case):
    config, roles, clusters, generators, seed = case
    for subset in make_subsets(config, roles, clusters, generators, seed):
        support, query = (list(a) for a in subset.anomalies)
        every = list(roles.anomaly_index)
        assert len(set(support)) == len(support)
        if roles.anomalies == 1:
            assert support == query == every
        elif config.share_anomalies:
            assert query == every
            assert set(support) < set(every)
        else:
            assert sorted(support + query) == every
        if roles.anomalies > 1:
            assert len(support) == (roles.anomalies + 1) // 2


def test_subsets_split_the_anomalies_differently():
    clusters = [np.arange(3 * c, 3 * c + 3) for c in range(3)]
    subsets = make_subsets(SubsetConfig(), make_roles(9, 10, 3), clusters, 3, seed=0)
    assert len({tuple(s.anomalies[0]) for s in subsets}) > 1


@given(cases())
def test_support_and_query_pseudo_anomalies_come_from_two_generators(case):
    config, roles, clusters, generators, seed = case
    for subset in make_subsets(config, roles, clusters, generators, seed):
        assert subset.generators[0] != subset.generators[1]
        for maker, members, normals in zip(
            subset.generators, subset.pseudo, subset.normals, strict=True
        ):
            made = members - roles.normals - roles.anomalies
            assert (made >= 0).all()
            assert set(roles.generator[made]) == {maker}
            assert len(made) > 0
            own = (roles.generator == maker) & np.isin(roles.origin, normals)
            if own.any():
                np.testing.assert_array_equal(made, np.flatnonzero(own))
            else:
                np.testing.assert_array_equal(made, np.flatnonzero(roles.generator == maker))


@given(cases())
def test_the_holistic_subset_is_all_normals_in_two_random_halves(case):
    config, roles, clusters, generators, seed = case
    config = replace(config, holistic=True)
    last = make_subsets(config, roles, clusters, generators, seed)[-1]
    assert last.clusters == (HOLISTIC, HOLISTIC)
    support, query = last.normals
    np.testing.assert_array_equal(np.sort(np.concatenate([support, query])), roles.normal_index)
    assert abs(len(support) - len(query)) <= 1


def test_the_holistic_halves_are_random():
    clusters = [np.arange(10), np.arange(10, 20)]
    config, roles = SubsetConfig(holistic=True), make_roles(20, 2, 2)
    halves = {tuple(make_subsets(config, roles, clusters, 2, k)[-1].normals[0]) for k in range(4)}
    assert len(halves) == 4


@given(cases())
def test_the_seed_decides_everything(case):
    config, roles, clusters, generators, seed = case
    subsets, again = (make_subsets(config, roles, clusters, generators, seed) for _ in range(2))
    for a, b in zip(subsets, again, strict=True):
        assert (a.clusters, a.generators) == (b.clusters, b.generators)
        for one, two in zip(
            a.normals + a.anomalies + a.pseudo, b.normals + b.anomalies + b.pseudo, strict=True
        ):
            np.testing.assert_array_equal(one, two)


@settings(max_examples=15)
@given(cases())
def test_pools_hold_each_subsets_members_and_their_number(case):
    config, roles, clusters, generators, seed = case
    subsets = make_subsets(config, roles, clusters, generators, seed)
    for side, pools in enumerate(jax.device_get(pool_sets(subsets, roles))):
        for name in ("normals", "anomalies", "pseudo"):
            pool = getattr(pools, name)
            for row, subset in enumerate(subsets):
                members = getattr(subset, name)[side]
                assert pool.size[row] == len(members)
                np.testing.assert_array_equal(pool.members[row, : len(members)], members)
                assert set(np.asarray(pool.members[row])) == set(members)


@settings(max_examples=15)
@given(cases())
def test_the_shapes_of_pools_come_from_counts_not_from_the_clusters(case):
    config, roles, clusters, generators, seed = case
    subsets = make_subsets(config, roles, clusters, generators, seed)
    side = (roles.anomalies + 1) // 2, max(roles.anomalies // 2, 1)
    if config.share_anomalies:
        side = side[0], roles.anomalies
    for pools, anomalies in zip(pool_sets(subsets, roles), side, strict=True):
        widths = [pool.members.shape for pool in pools]
        assert widths == [(len(subsets), n) for n in (roles.normals, anomalies, 6)]


def test_everything_is_each_training_image_once():
    roles = make_roles(7, 3, 2)
    pools = everything(roles)
    members = [np.asarray(pool.members) for pool in pools]
    np.testing.assert_array_equal(np.concatenate(members), np.arange(7 + 3 + 12))
    assert [int(pool.size) for pool in pools] == [7, 3, 12]


@given(cases())
def test_error_weights_follow_what_a_base_model_has_seen(case):
    config, roles, clusters, generators, seed = case
    subsets = make_subsets(config, roles, clusters, generators, seed)
    weights = error_weights(subsets, roles)
    assert weights.shape == (len(subsets), roles.normals + roles.anomalies)
    for row, subset in zip(weights, subsets, strict=True):
        for j, weight in enumerate(row):
            if j in subset.normals[0]:
                expected = 0.0
            elif j >= roles.normals and j not in subset.anomalies[0]:
                expected = 1.0
            else:
                expected = 0.5
            assert weight == expected


def blobs(sizes: list[int]) -> np.ndarray:
    """Shuffled points in well separated blobs of these sizes."""
    random = np.random.RandomState(0)
    which = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return np.eye(len(sizes))[which] * 20 + random.normal(0, 0.1, (sum(sizes), len(sizes)))


def test_kmeans_finds_the_clusters_and_gives_their_members():
    features = blobs([5, 4, 7])
    truth = features.argmax(1)
    clusters = cluster_normals(features, 3, seed=0)
    assert sorted(map(len, clusters)) == [4, 5, 7]
    for members in clusters:
        assert len(set(truth[members])) == 1
    np.testing.assert_array_equal(np.sort(np.concatenate(clusters)), np.arange(16))
    # Members are not merely the first n images of a cluster of n.
    assert any(not np.array_equal(m, np.arange(len(m))) for m in clusters)


def test_normals_that_are_alike_are_grouped_without_a_word():
    with warnings.catch_warnings(action="error"):
        groups = similar_normals(np.ones((6, 4)), 3, 0)
    assert set(groups) == {0}


def test_clusters_of_one_or_two_members_are_dropped_with_a_warning(caplog):
    features = blobs([5, 2, 3, 1])
    with caplog.at_level(logging.WARNING):
        clusters = cluster_normals(features, 4, seed=0)
    assert sorted(map(len, clusters)) == [3, 5]
    assert "2 of 4 clusters had fewer than 3 members and were dropped" in caplog.text


def test_no_warning_where_nothing_is_dropped(caplog):
    with caplog.at_level(logging.WARNING):
        cluster_normals(blobs([5, 4]), 2, seed=0)
    assert not caplog.records


@pytest.mark.parametrize(("sizes", "expected"), [([8, 2, 2], [4, 4, 4]), ([2, 2, 2, 2], [4, 4])])
def test_where_k_means_leaves_one_cluster_they_are_made_equal(sizes, expected, caplog):
    with caplog.at_level(logging.WARNING):
        clusters = cluster_normals(blobs(sizes), len(sizes), seed=0)
    assert [len(members) for members in clusters] == expected
    np.testing.assert_array_equal(np.sort(np.concatenate(clusters)), np.arange(sum(sizes)))
    assert "AHL needs two; they are divided into" in caplog.text


@given(st.integers(2, 4), st.integers(6, 30), st.integers(0, 99))
def test_balanced_clusters_are_the_cheapest_of_equal_size(clusters, normals, seed):
    features = np.random.default_rng(seed).normal(size=(normals, 3))
    found = balanced_clusters(features, clusters, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.arange(normals))
    assert max(map(len, found)) - min(map(len, found)) <= 1
    # No two members can change places and both be nearer, in sum.
    scaled = (features - features.mean(0)) / features.std(0)
    centres = [scaled[members].mean(0) for members in found]
    cost = np.square(scaled[:, None] - centres).sum(-1)
    for a, b in itertools.combinations(range(clusters), 2):
        kept = cost[found[a], a][:, None] + cost[found[b], b]
        changed = cost[found[a], b][:, None] + cost[found[b], a]
        assert (kept <= changed + 1e-9).all()


def test_balanced_clusters_find_groups_of_equal_size():
    features = blobs([5, 5, 5])
    for members in balanced_clusters(features, 3, seed=0):
        assert np.ptp(features[members], axis=0).max() < 3


@pytest.mark.parametrize("sizes", [[2, 2], [1, 1, 1]])
def test_too_few_normals_for_two_clusters_are_the_users_error(sizes):
    with pytest.raises(UserError, match=r"needs two clusters of 3 or more normals, .* only [34] "):
        cluster_normals(blobs(sizes), len(sizes), seed=0)


def test_fewer_normals_than_clusters_is_the_users_error():
    with pytest.raises(UserError, match="`clusters` is 3, but there are only 2 training normals"):
        cluster_normals(blobs([1, 1]), 3, seed=0)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_identical_normals_are_divided_too():
    assert [len(members) for members in cluster_normals(np.ones((9, 4)), 3, seed=0)] == [3, 3, 3]


@given(st.integers(2, 6), st.integers(0, 40), st.integers(0, 999))
def test_random_groups_divide_the_normals_evenly(groups, more, seed):
    normals = 3 * groups + more
    found = random_groups(normals, groups, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.arange(normals))
    sizes = [len(members) for members in found]
    assert len(sizes) == groups
    assert max(sizes) - min(sizes) <= 1
    for members, again in zip(found, random_groups(normals, groups, seed), strict=True):
        np.testing.assert_array_equal(members, again)
        assert (np.diff(members) > 0).all()


def test_random_groups_are_chances_own():
    firsts = {tuple(random_groups(30, 3, seed)[0]) for seed in range(5)}
    assert len(firsts) == 5


def test_too_few_normals_for_random_groups_are_the_users_error():
    with pytest.raises(UserError, match="8 training normals make no 3 random groups of 3"):
        random_groups(8, 3, seed=0)


def test_every_generator_pair_is_used_before_one_returns():
    clusters = [np.arange(3 * c, 3 * c + 3) for c in range(3)]
    subsets = make_subsets(SubsetConfig(), make_roles(9, 2, 3), clusters, 3, seed=0)
    assert set(Counter(s.generators for s in subsets).values()) == {1}
