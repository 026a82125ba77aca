"""The images of a run, found again in data that has changed."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from ahl_jax.config.settings import DataConfig
from ahl_jax.data.open import load_dataset
from ahl_jax.data.remembered import find, listed, with_added
from ahl_jax.data.splits import make_split
from ahl_jax.data.types import Split


@pytest.fixture
def data(tmp_path: Path) -> Path:
    parts = {"train/good": 6, "test/good": 4, "test/cut": 5, "test/hole": 3}
    for part, count in parts.items():
        _put(tmp_path / "data", {f"{part}/{i}.png": f"{part} {i}" for i in range(count)})
    return tmp_path / "data"


def _put(root: Path, files: Mapping[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def _config(data: Path) -> DataConfig:
    return DataConfig(str(data), shots=3, held_out=0.2)


def _split(data: Path) -> Split:
    return make_split(load_dataset(_config(data)), _config(data), 0)


def _contents(split: Split) -> dict[str, list[str]]:
    trained = [*split.train_normals, *(sample.path for sample in split.seen)]
    parts = {"train": trained, "held out": split.held_out, "test": [s.path for s in split.test]}
    return {part: [Path(str(path)).read_text() for path in paths] for part, paths in parts.items()}


@pytest.mark.parametrize("by_name", [True, False])
def test_where_nothing_changed_it_is_the_same_split(data: Path, by_name: bool) -> None:
    split = _split(data)
    found = find(
        listed(split, str(data)), load_dataset(_config(data)), _config(data), by_name=by_name
    )
    assert found.split == with_added(found) == split
    assert (found.added, found.gone, found.in_words()) == ((), 0, "")


def test_what_was_added_is_tested_on_but_no_image_that_training_has_seen(data: Path) -> None:
    split = _split(data)
    rows, before = listed(split, str(data)), _contents(split)
    seen = Path(str(split.seen[0].path))
    normal = Path(str(split.train_normals[0]))
    # Copies under other names, a new normal to train on, and new images to test on.
    more = {"test/cut/copy.png": seen.read_text(), "test/good/copy.png": normal.read_text()}
    _put(data, more | {"test/new/1.png": "x", "test/good/9.png": "y", "train/good/9.png": "z"})
    found = find(rows, load_dataset(_config(data)), _config(data), by_name=True)
    assert _contents(found.split) == before
    assert _contents(with_added(found))["test"] == sorted(
        [*before["test"], "x", "y"], key=lambda text: ("good" not in text and text != "y", text)
    )
    assert len(found.added) == 3
    assert found.in_words() == "3 images added, of which the test has 2"


def test_images_are_told_by_their_content_where_names_changed(data: Path, tmp_path: Path) -> None:
    split = _split(data)
    rows, before = listed(split, str(data)), _contents(split)
    for i, path in enumerate(sorted(data.rglob("*.png"), reverse=True)):
        path.rename(path.with_name(f"_{i}.png"))
    moved = data.rename(tmp_path / "moved")
    # Another image under the name of one that was tested.
    (gone,) = [p for p in moved.rglob("*.png") if p.read_text() == before["test"][0]]
    gone.write_text("replaced")
    found = find(rows, load_dataset(_config(moved)), _config(moved), by_name=False)
    assert _contents(found.split) == before | {"test": before["test"][1:]}
    assert found.gone == 1
    assert [Path(str(sample.path)) for sample in found.to_test] == [gone]


def test_images_beside_the_data_are_found_where_they_were(data: Path, tmp_path: Path) -> None:
    _put(tmp_path, {"elsewhere/1.png": "x"})
    split = _split(data)
    normals = (*split.train_normals, tmp_path / "elsewhere/1.png")
    rows = listed(Split(normals, split.seen, split.test, split.held_out), str(data))
    found = find(rows, load_dataset(_config(data)), _config(data), by_name=True)
    assert found.split.train_normals == normals
    _put(tmp_path, {"elsewhere/1.png": "another"})
    found = find(rows, load_dataset(_config(data)), _config(data), by_name=True)
    assert (found.split.train_normals, found.gone) == (split.train_normals, 1)
