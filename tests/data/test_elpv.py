import importlib.util
from collections import Counter

import pytest

from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import DataConfig
from ahl_jax.data import prepared
from ahl_jax.data.builders import builder_class
from ahl_jax.data.images import read_image
from ahl_jax.data.open import load_dataset
from ahl_jax.data.prepare import prepare
from ahl_jax.data.prepared import read_manifest
from ahl_jax.data.splits import make_split
from tests.data.builders.miniatures import put

needs_elpv = pytest.mark.skipif(
    importlib.util.find_spec("elpv_dataset") is None, reason="elpv-dataset is not installed"
)


@pytest.fixture(scope="module")
def elpv():
    return load_dataset(DataConfig("elpv"))


@needs_elpv
def test_published_counts_and_split(elpv):
    assert len(elpv.train_normals) == 1131
    assert len(elpv.test_normals) == 377
    assert {name: len(paths) for name, paths in elpv.anomalies.items()} == {
        "mono": 313,
        "poly": 402,
    }
    # The first images that scikit-learn's shuffle with seed 42 gives for the source's order.
    assert [path.stem for path in elpv.train_normals[:3]] == ["cell1215", "cell2035", "cell1677"]
    assert [path.stem for path in elpv.test_normals[:3]] == ["cell1270", "cell2158", "cell0965"]
    everything = [*elpv.train_normals, *elpv.test_normals, *sum(elpv.anomalies.values(), ())]
    assert len(set(everything)) == len(everything)


@needs_elpv
@pytest.mark.filterwarnings("error")
def test_general_split_keeps_every_image_because_none_is_shared(elpv):
    split = make_split(elpv, DataConfig("elpv"), seed=0)
    assert len(split.seen) == 10
    assert Counter(s.anomaly_class is None for s in split.test) == {True: 377, False: 705}


@needs_elpv
def test_images_are_readable_and_not_blank(elpv):
    image = read_image(elpv.anomalies["mono"][0], 64)
    assert image.std() > 5


def test_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install elpv-dataset"):
        load_dataset(DataConfig("elpv"))


def test_damaged_package_is_named(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_loader("elpv_dataset", None, is_package=True)
    spec.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match=r"labels\.csv"):
        load_dataset(DataConfig("elpv"))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small copy of the package's folder, and a builder that expects what is in it."""
    monkeypatch.setenv("AHL_DATA", str(tmp_path / "prepared"))
    monkeypatch.setattr("ahl_jax.data.elpv._package_folder", lambda: tmp_path / "elpv_dataset")
    counts = {"train": 6, "good": 2, "mono": 2, "poly": 3}
    monkeypatch.setattr(builder_class("elpv"), "COUNTS", {"": counts})
    cells = ["0.0  mono"] * 8 + ["1.0  mono"] * 2 + ["1.0  poly"] * 3
    cells += ["0.3333333333333333  mono", "0.6666666666666666  poly"]
    lines = [f"images/cell{i:04}.png  {cell}" for i, cell in enumerate(cells, 1)]
    for i in range(1, len(cells) + 1):
        put(tmp_path / f"elpv_dataset/data/images/cell{i:04}.png", 30, 30, 1)
    (tmp_path / "elpv_dataset/data/labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "elpv_dataset/data"


def test_a_miniature_of_the_package_is_prepared(package):
    (folder,) = prepare("elpv")
    counts = [part["counts"] for part in read_manifest(folder).values()]
    assert counts == [{"good": 6}, {"good": 2, "mono": 2, "poly": 3}]
    records = prepared.load(DataConfig("elpv")).anomalies["poly"]
    names = [f"images/cell{i:04}.png" for i in (11, 12, 13)]
    assert [record.name for record in records] == names
    assert [record.read() for record in records] == [(package / n).read_bytes() for n in names]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.3333333333333333  mono", "1.0  mono", "has 3 mono where 2 were published"),
        ("cell0003.png  0.0  mono", "cell0003.png  0.0", r"labels\.csv cannot be read"),
        ("cell0003.png", "cell0099.png", r"cell0099\.png is missing"),
    ],
)
def test_a_broken_copy_of_the_package_is_refused(package, old, new, message):
    text = (package / "labels.csv").read_text()
    assert old in text
    (package / "labels.csv").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        prepare("elpv")
    with pytest.raises(UserError, match="not prepared"):
        prepared.load(DataConfig("elpv"))


def test_elpv_has_no_categories():
    with pytest.raises(UserError, match="`category="):
        load_dataset(DataConfig("elpv", category="mono"))
