"""Several categories as one data set."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ahl_jax.common.errors import UserError
from ahl_jax.config.presets import preset
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.copies import copy_of
from ahl_jax.data.open import joined, load_dataset
from ahl_jax.data.records import Record
from ahl_jax.data.remembered import category_of, find, listed
from ahl_jax.data.splits import make_split
from ahl_jax.data.types import Dataset
from ahl_jax.run.metrics import category_metrics, image_metrics


@pytest.fixture
def config(textures: Path) -> DataConfig:
    return DataConfig(str(textures), joint=True, shots=3, held_out=0.1)


def test_each_category_has_the_images_that_it_has_alone(config: DataConfig) -> None:
    split = make_split(load_dataset(config), config, 1)
    alone = []
    for name in ("carpet", "grid"):
        own = dataclasses.replace(config, joint=False, category=name)
        alone.append((name, make_split(load_dataset(own), own, 1)))
    assert [*split.train_normals] == [p for _, each in alone for p in each.train_normals]
    assert [*split.held_out] == [p for _, each in alone for p in each.held_out]
    for mine, theirs in (
        (split.seen, [(name, s) for name, each in alone for s in each.seen]),
        (split.test, [(name, s) for name, each in alone for s in each.test]),
    ):
        named = {(s.path, s.anomaly_class and f"{name}/{s.anomaly_class}") for name, s in theirs}
        assert {(s.path, s.anomaly_class) for s in mine} == named
        assert len(mine) == len(theirs)
        for sample in mine:
            category = category_of(sample.path, config.data)
            assert sample.anomaly_class is None or sample.anomaly_class.startswith(f"{category}/")
    kinds = [sample.anomaly_class or "" for sample in split.test]
    assert kinds == sorted(kinds)


def test_a_copy_in_another_category_is_not_tested(textures: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(textures, data)
    shutil.copy(data / "carpet/train/good/00.png", data / "grid/test/good/copy.png")
    config = DataConfig(str(data), joint=True, shots=0)
    with pytest.warns(UserWarning, match="left 1 image"):
        split = make_split(load_dataset(config), config, 0)
    assert [sample.path.name for sample in split.copies] == ["copy.png"]


def test_records_of_equal_names_are_told_apart_and_found_again(tmp_path: Path) -> None:
    def part(category: str) -> Dataset:
        home = tmp_path / category / "1.0.0"

        def records(split: str, *names: str) -> tuple[Record, ...]:
            return tuple(Record(home, split, i, name, 9) for i, name in enumerate(names))

        normals = records("train", "a.png", "b.png"), records("test", "c.png")
        return Dataset(category, *normals, {"cut": records("test", "d.png", "e.png")})

    whole = joined({name: part(name) for name in ("nut", "screw")}, "parts")
    config = DataConfig("mvtec_ad", joint=True, shots=1, keep_copies=True)
    split = make_split(whole, config, 0)
    categories = [category_of(sample.path, config.data) for sample in split.test]
    assert sorted(categories) == ["nut", "nut", "screw", "screw"]
    found = find(listed(split, config.data), whole, config, by_name=True)
    assert found.split == split
    assert not found.in_words()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"category": "grid"}, "`joint` takes every category; leave out `category='grid'`"),
        ({"data": "weave"}, "weave has no categories; leave out `joint`"),
        ({"joint": False, "category": "all"}, "has 2 categories, and a run takes one"),
    ],
)
def test_what_cannot_be_joined_is_refused(
    config: DataConfig, settings: dict[str, Any], message: str
) -> None:
    if "data" in settings:
        settings = {"data": str(Path(config.data).parent / settings["data"])}
    with pytest.raises(UserError, match=message):
        load_dataset(dataclasses.replace(config, **settings))
    with pytest.raises(UserError, match="hard setting sees a class of one category"):
        preset("density", "parts", joint=True, setting="hard", seen_class="cut")


def test_a_category_is_compared_with_its_own_normals() -> None:
    scores = np.array([0.0, 5, 9, 1, 6, 7, 3])
    classes = [None, None, None, "a/cut", "b/cut", "b/cut", "c/cut"]
    categories = ["a", "b", "", "a", "b", "b", "c"]
    found = category_metrics(scores, classes, categories)
    assert found == {
        "a": {"auc_roc": 1.0, "auc_pr": 1.0, "n_test": 2},
        "b": {"auc_roc": 1.0, "auc_pr": 1.0, "n_test": 3},
    }
    assert image_metrics(scores, classes)["auc_roc"] < 1


def test_the_category_is_told_of_copies_of_object_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AHL_DATA", str(tmp_path))
    image = copy_of("gs://bucket/parts/screw/test/good/0.png")
    assert category_of(image, "gs://bucket/parts") == "screw"
