import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ahl_jax.common.errors import UserError
from ahl_jax.detectors import DETECTORS
from ahl_jax.distributed.mesh import mesh_for
from ahl_jax.learning.base import Plain
from ahl_jax.learning.hadg import error_weights
from ahl_jax.learning.seeds import compile_epochs, spread, stack_problems
from tests.problems import assert_trees_equal, make_config, make_setting, plain, prepared


@pytest.fixture(scope="module")
def problem():
    return make_setting(make_config(detector="devnet", subsets=4, holistic=True))


def test_labels_and_error_weights_belong_to_the_normals_and_anomalies(problem):
    np.testing.assert_array_equal(problem.data.labels, [0] * 15 + [1] * 5)
    weights = np.asarray(problem.data.error_weights)
    assert weights.shape == (5, 20)
    for row, subset in zip(weights, problem.subsets, strict=True):
        assert np.flatnonzero(row == 0).tolist() == subset.normals[0].tolist()
        assert np.flatnonzero(row == 1).tolist() == subset.anomalies[1].tolist()
        assert set(row) == {0, 0.5, 1}


def test_error_weights_are_those_of_the_subsets(problem):
    class Roles:
        normals, anomalies = 15, 5

    expected = error_weights(problem.subsets, Roles)
    np.testing.assert_array_equal(problem.data.error_weights, expected)


def test_the_bank_is_normals_then_anomalies_then_pseudo_anomalies(problem):
    assert problem.data.inputs.images == 15 + 5 + 18
    for pooled in np.asarray(problem.data.inputs.pooled).swapaxes(0, 1):
        assert (pooled[15:20, 2] > 1).all()
        assert (np.delete(pooled, range(15, 20), 0)[:, 2] < 1).all()
        assert (pooled[20:, 3] > 0.8).all()


@pytest.mark.parametrize("references", [1, 5, 15, 50])
def test_references_are_different_normals_and_no_more_than_there_are(references):
    data = make_setting(make_config(detector="devnet", references=references)).data
    chosen = np.asarray(data.reference)
    assert len(chosen) == len(set(chosen)) == min(references, 15)
    assert set(chosen) <= set(range(15))


def test_the_same_seed_gives_the_same_problem_and_another_seed_another():
    def arrays(seed: int):
        problem = make_setting(make_config(detector="devnet", seed=seed))
        return jax.tree.map(plain, (problem.model, problem.data, problem.key))

    first, again, other = arrays(0), arrays(0), arrays(1)
    assert_trees_equal(first, again)
    for pick in (
        lambda p: p[0].params["locate"]["kernel"],
        lambda p: p[1].prior.mean,
        lambda p: p[1].support.anomalies.members,
        lambda p: p[2],
    ):
        assert not np.array_equal(pick(first), pick(other))


@pytest.mark.parametrize(("method", "shapes"), [("ahl", 3), ("base", 1)])
def test_neither_seed_nor_clusters_make_another_program(method, shapes, monkeypatch):
    def splits(features, clusters, seed):
        """What k-means could find: other sizes, and other members, with every seed."""
        random = np.random.RandomState(seed)
        inside = random.permutation(len(features))
        ends = np.sort(random.choice(np.arange(3, len(features) - 3, 3), clusters - 1, False))
        return [np.sort(members) for members in np.split(inside, ends)]

    monkeypatch.setattr("ahl_jax.learning.problem.cluster_normals", splits)

    def program(seed: int, clusters: int) -> tuple[str, set[int]]:
        problem = make_setting(
            make_config(detector="devnet", seed=seed, clusters=clusters, method=method)
        )
        states, data = spread(*stack_problems([problem]), mesh_for(1, 3))
        step = compile_epochs(mesh_for(1, 3))
        sizes = {len(subset.normals[0]) for subset in problem.subsets}
        return step.lower(problem.learner, states, data, np.arange(2)).as_text(), sizes

    programs = [program(0, 3), program(1, 3), program(2, 2)]
    # Without AHL there is no clustering.
    assert len({frozenset(sizes) for _, sizes in programs}) == shapes
    first, *others = (text for text, _ in programs)
    assert "while" in first
    assert all(text == first for text in others)


def test_runs_with_the_same_settings_share_their_learner():
    def learner(**settings):
        return make_setting(make_config(detector="devnet", **settings)).learner

    assert learner(seed=0) is learner(seed=1)
    assert learner(seed=0) is not learner(seed=0, clip=0.5)


def test_one_labelled_anomaly_is_enough():
    data = make_setting(make_config(detector="devnet"), anomalies=1).data
    for pools in (data.support, data.query):
        np.testing.assert_array_equal(pools.anomalies.members, 15)


def test_the_detector_alone_sees_every_training_image():
    problem = make_setting(make_config(detector="devnet", method="base"))
    assert isinstance(problem.learner, Plain)
    assert sum(int(pool.size) for pool in problem.data.everything) == 15 + 5 + 18


@pytest.mark.parametrize("detector", sorted(DETECTORS))
def test_every_detector_can_train_on_normals_alone(detector):
    config = make_config(detector=detector, method="base", whiten=detector == "density")
    problem = make_setting(config, anomalies=0, per_generator=0)
    learner, data = problem.learner, problem.data
    model = prepared(learner.functional, problem.model, data, 15)
    state, log = jax.jit(learner.epoch)(learner.init(model, data, problem.key), data, jnp.int32(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(learner.model(state)))
    assert np.isfinite(log.support_losses).all()
    names = learner.functional.kind.heads
    if names in (DETECTORS["dra"].heads, DETECTORS["density"].heads):
        assert (np.asarray(log.support_losses) > 0).all()


def test_random_groups_take_the_place_of_clusters():
    by = {
        grouping: make_setting(make_config(detector="devnet", grouping=grouping)).subsets
        for grouping in ("kmeans", "random")
    }
    # The three clusters of normals are the images whose number leaves the same rest.
    assert all(len(set(s.normals[0] % 3)) == 1 for s in by["kmeans"])
    assert all(len(set(s.normals[0] % 3)) > 1 for s in by["random"])
    assert [len(s.normals[1]) for s in by["random"]] == [5, 5, 5]


@pytest.mark.parametrize(
    ("normals", "message"),
    [(2, "only 2 training normals"), (4, "only 4 training normals; give more normals")],
)
def test_too_few_normals_are_the_users_error(normals, message):
    with pytest.raises(UserError, match=message):
        make_setting(make_config(detector="devnet"), normals=normals)


def test_an_unknown_detector_is_the_users_error():
    with pytest.raises(UserError, match="no detector 'draa'"):
        make_setting(make_config(detector="draa"))
