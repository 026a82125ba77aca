import importlib.util
from collections import Counter

import pytest

from ahl_jax.config import DataConfig
from ahl_jax.data.images import read_image
from ahl_jax.data.samples import load_dataset
from ahl_jax.data.splits import make_split
from ahl_jax.errors import UserError

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


def test_elpv_has_no_categories():
    with pytest.raises(UserError, match="--category"):
        load_dataset(DataConfig("elpv", category="mono"))
