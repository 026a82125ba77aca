import dataclasses
import unicodedata
import warnings
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.splits import distinct, extended, make_split, shared_images
from ahl_jax.data.types import Dataset, Sample, Split


def dataset(train=20, test=10, **classes):
    classes = classes or {"cut": 8, "dent": 9, "hole": 5}

    def paths(kind, count):
        return tuple(Path(f"/nowhere/{kind}/{i:03}.png") for i in range(count))

    return Dataset(
        name="parts",
        train_normals=paths("train", train),
        test_normals=paths("test", test),
        anomalies={name: paths(name, count) for name, count in sorted(classes.items())},
    )


def labelled(**values):
    some = {"cut": (Path("/nowhere/train/cut.png"),), "rust": (Path("/nowhere/train/rust.png"),)}
    return dataclasses.replace(dataset(**values), labelled=some)


def config(**values):
    return DataConfig("parts", **values)


counts = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 12), min_size=1)


@given(counts=counts, seed=st.integers(0, 2**31 - 1), data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_general_split_is_a_partition(counts, seed, data):
    total = sum(counts.values())
    shots = data.draw(st.integers(1, total))
    parts = dataset(**counts)
    split = make_split(parts, config(shots=shots), seed)
    assert split == make_split(parts, config(shots=shots), seed)
    assert split.train_normals == parts.train_normals
    assert len(set(split.seen)) == shots
    assert not set(split.seen) & set(split.test)
    assert split.is_tested == (shots < total)
    assert split.copies == split.unused == ()
    every = {Sample(path, name) for name, paths in parts.anomalies.items() for path in paths}
    assert set(split.seen) | set(split.test[len(parts.test_normals) :]) == every
    assert split.test[: len(parts.test_normals)] == tuple(
        Sample(path, None) for path in parts.test_normals
    )
    classes = [sample.anomaly_class for sample in split.test[len(parts.test_normals) :]]
    assert classes == sorted(classes)


@given(counts=counts.filter(lambda c: len(c) > 1), seed=st.integers(0, 2**31 - 1), data=st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_hard_split_sees_one_class_and_tests_the_others(counts, seed, data):
    seen_class = data.draw(st.sampled_from(sorted(counts)))
    shots = data.draw(st.integers(1, counts[seen_class]))
    parts = dataset(**counts)
    split = make_split(parts, config(setting="hard", seen_class=seen_class, shots=shots), seed)
    assert len(set(split.seen)) == shots
    assert {sample.anomaly_class for sample in split.seen} == {seen_class}
    anomalies = [sample for sample in split.test if sample.anomaly_class is not None]
    assert anomalies == [
        Sample(path, name)
        for name, paths in parts.anomalies.items()
        if name != seen_class
        for path in paths
    ]


@given(counts=counts, seed=st.integers(0, 2**31 - 1), data=st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_full_split_sees_m_of_every_class_and_tests_the_rest(counts, seed, data):
    shots = data.draw(st.integers(1, min(counts.values())))
    parts = dataset(**counts)
    settings_ = config(setting="full", shots=shots)
    split = make_split(parts, settings_, seed)
    assert split == make_split(parts, settings_, seed)
    assert Counter(s.anomaly_class for s in split.seen) == dict.fromkeys(counts, shots)
    anomalies = [sample for sample in split.test if sample.anomaly_class is not None]
    every = [Sample(path, name) for name, paths in parts.anomalies.items() for path in paths]
    assert anomalies == [sample for sample in every if sample not in set(split.seen)]
    assert len(set(split.seen)) + len(anomalies) == len(every)


def test_every_anomaly_is_drawn_about_equally_often():
    times = Counter(
        sample
        for seed in range(400)
        for sample in make_split(dataset(), config(shots=11), seed).seen
    )
    assert len(times) == 22
    assert min(times.values()) > 150  # 200 expected, standard deviation 10
    assert max(times.values()) < 250


def test_limit_thins_evenly_and_draws_the_same_anomalies():
    full = make_split(dataset(), config(shots=4), 7)
    quick = make_split(dataset(), config(shots=4, limit=3), 7)
    assert quick.seen == full.seen
    assert [path.stem for path in quick.train_normals] == ["000", "006", "013"]
    assert len(quick.test) == 3 + 3 * 3
    assert set(quick.test) < set(full.test)
    left = {sample.path for sample in full.test} - {sample.path for sample in quick.test}
    assert {sample.path for sample in quick.unused} == left | {*full.train_normals} - {
        *quick.train_normals
    }
    # More labelled anomalies than the limit are still all there.
    assert len(make_split(dataset(), config(shots=19, limit=3), 0).seen) == 19


def test_a_class_may_be_spelled_in_either_unicode_form():
    split = make_split(
        dataset(fissuré=3, cut=2),
        config(setting="hard", seen_class=unicodedata.normalize("NFD", "fissuré"), shots=2),
        0,
    )
    assert {sample.anomaly_class for sample in split.seen} == {"fissuré"}


def test_where_there_are_no_anomalies_and_none_are_asked_for_there_is_no_test():
    parts = dataclasses.replace(dataset(test=0), anomalies={})
    split = make_split(parts, config(shots=0, held_out=0.1), 0)
    assert split.test == split.seen == ()
    assert {*split.train_normals, *split.held_out} == {*parts.train_normals}
    assert not make_split(dataset(test=0), config(shots=0), 0).is_tested


def test_anomalies_that_the_data_labels_are_all_trained_on_and_none_is_drawn():
    split = make_split(labelled(), config(shots=1), 0)
    assert split.seen == tuple(
        Sample(path, name) for name, paths in labelled().labelled.items() for path in paths
    )
    assert len(split.test) == 10 + 22
    hard = make_split(labelled(), config(setting="hard", seen_class="cut"), 0)
    assert [sample.anomaly_class for sample in hard.seen] == ["cut"]
    assert {sample.anomaly_class for sample in hard.test} == {None, "dent", "hole"}
    none = make_split(labelled(), config(shots=0), 0)
    assert none.seen == ()
    assert {sample.anomaly_class for sample in none.unused} == {"cut", "rust"}
    alone = dataclasses.replace(labelled(test=0), anomalies={})
    assert make_split(alone, config(), 0).test == ()


def test_a_split_is_extended_by_new_images_alone(tmp_path):
    parts = on_disk(
        tmp_path, train=[f"n{i}" for i in range(9)], test=["t1"], cut=["c1", "c2"],
        hole=["h1", "c1", "c2", "h1"],
    )  # fmt: skip
    with warnings.catch_warnings(action="ignore"):
        before = make_split(parts, config(shots=1, held_out=0.2), 0)
    more = [Sample(path, "hole") for path in parts.anomalies["hole"]]
    (seen,) = before.seen
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        after = extended(before, more, [], 0.2)
    assert "passed over" in str(said[0].message)
    contents = [sample.path.read_text() for sample in after.seen]
    assert sorted(contents) == ["c1", "c2", "h1"]
    assert contents[0] == seen.path.read_text()
    assert [sample.path for sample in after.test] == list(parts.test_normals)
    good = tmp_path / "good"
    good.mkdir()
    for i in range(6):
        (good / f"{i}.png").write_text(f"new {i}")
    normals = sorted(good.iterdir())
    after = extended(before, [], normals, 0.2)
    assert len(after.held_out) == 3
    assert after.held_out[:2] == before.held_out
    assert {*after.train_normals, *after.held_out} >= {*normals}
    assert len(extended(before, [], normals[:1], 0.5).train_normals) == 8
    with pytest.raises(UserError, match="does not have already"):
        extended(before, [seen], [], 0.2)
    with pytest.raises(UserError, match="as normal and as an anomaly"):
        extended(before, [Sample(parts.train_normals[0], "cut")], [], 0.2)


@pytest.mark.parametrize(
    ("parts", "settings_", "words"),
    [
        (dataset(), {"shots": 23}, ["22", "23", "parts", "`shots`"]),
        (dataset(), {"setting": "hard", "seen_class": "rust"}, ["'rust'", "cut, dent, hole"]),
        (dataset(), {"setting": "hard", "seen_class": "hole"}, ["5", "class hole", "10"]),
        (dataset(cut=20), {"setting": "hard", "seen_class": "cut"}, ['`setting="general"`']),
        (dataset(), {"setting": "full", "shots": 6}, ["5", "class hole", "6", "`shots`"]),
        (dataclasses.replace(dataset(), anomalies={}), {"setting": "full"}, ["no anomalies"]),
        (dataset(train=0), {}, ["train/good", "parts"]),
        (labelled(), {"setting": "hard", "seen_class": "hole"}, ["to train on", "cut, rust"]),
        (dataset(train=0), {"category": "cup"}, ["parts (cup)"]),
        (dataclasses.replace(dataset(), anomalies={}), {}, ["no anomalies", "`shots=0`"]),
    ],
)
def test_impossible_splits_are_explained(parts, settings_, words):
    with pytest.raises(UserError) as caught:
        make_split(parts, config(**settings_), 0)
    for word in words:
        assert word in str(caught.value)


def on_disk(root, **contents):
    """A data set of real files; equal strings make byte-identical files."""

    def write(kind):
        paths = []
        for i, content in enumerate(contents.get(kind, ())):
            path = root / kind / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
            paths.append(path)
        return tuple(paths)

    return Dataset(
        "parts", write("train"), write("test"), {"cut": write("cut"), "hole": write("hole")}
    )


def test_test_copies_of_training_images_are_left_out(tmp_path):
    parts = on_disk(
        tmp_path,
        train=["n1", "n2", "twin"], test=["n3", "twin", "n4"],
        cut=["same", "c2"], hole=["same", "n1", "h3"],
    )  # fmt: skip
    settings_ = config(setting="hard", seen_class="cut", shots=2)
    with pytest.warns(UserWarning, match="left 3 image"):
        split = make_split(parts, settings_, 0)
    assert [sample.path for sample in split.test] == [
        parts.test_normals[0], parts.test_normals[2], parts.anomalies["hole"][2],
    ]  # fmt: skip
    assert len(split.copies) == 3
    kept = make_split(parts, dataclasses.replace(settings_, keep_copies=True), 0)
    assert {sample.path for sample in kept.test} > {sample.path for sample in split.test}
    assert (len(kept.test), len(kept.copies)) == (6, 0)
    assert shared_images(split) == []


def test_shared_images_pairs_training_with_test(tmp_path):
    parts = on_disk(tmp_path, train=["a", "b", "b"], test=["b", "long", "c"], cut=["c"])
    split = Split(
        parts.train_normals,
        (Sample(parts.anomalies["cut"][0], "cut"),),
        tuple(Sample(path, None) for path in parts.test_normals),
    )
    assert shared_images(split) == [
        (parts.train_normals[1], parts.test_normals[0]),
        (parts.anomalies["cut"][0], parts.test_normals[2]),
    ]


def test_copies_are_found_among_images_and_in_others(tmp_path):
    parts = on_disk(tmp_path, train=["a", "b", "long", "b"], test=["c", "long", "b", "c", "d"])
    normals = [*parts.test_normals, tmp_path / "gone", tmp_path / "nowhere"]
    assert distinct(parts.train_normals) == [0, 1, 2]
    assert distinct(normals) == [0, 1, 2, 4, 5, 6]
    assert distinct(normals, parts.train_normals) == [0, 4, 5, 6]


def test_nothing_may_be_left_after_copies_are_out(tmp_path):
    parts = on_disk(tmp_path, train=["a"], test=["a"], cut=["b", "c"])
    with pytest.warns(UserWarning, match="left 1 image"):
        split = make_split(parts, config(shots=1), 0)
    assert not split.is_tested
