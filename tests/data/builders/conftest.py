import pytest

from ahl_jax.data.builders import builder_class
from tests.data.builders import miniatures


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    folder = tmp_path / "prepared"
    monkeypatch.setenv("AHL_DATA", str(folder))
    return folder


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Makes the miniature of a source, and lets its builder expect the miniature's counts."""

    def make(name):
        builder = builder_class(name)
        counts = miniatures.published(builder, miniatures.EXPECTED[name])
        monkeypatch.setattr(builder, "COUNTS", counts)
        if name == "sdd":
            monkeypatch.setattr(builder, "IMAGES", 9)
            monkeypatch.setattr(builder, "FAULTY", 3)
        root = tmp_path / "downloads"
        miniatures.ALL[name](root)
        return root

    return make
