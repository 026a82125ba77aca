"""ELPV, from the PyPI package ``elpv-dataset``: nothing has to be downloaded."""

from pathlib import Path
from typing import ClassVar

from ahl_jax.config.settings import DataConfig
from ahl_jax.data import elpv
from ahl_jax.data.builders.base import NORMAL, AnomalyBuilder, Contents, Example
from ahl_jax.data.builders.sources import whole


class Builder(AnomalyBuilder):
    """ELPV."""

    TITLE = "ELPV"
    PAGE = "https://github.com/zae-bayern/elpv-dataset"
    DOWNLOAD = "the PyPI package elpv-dataset"
    NEEDS_FOLDER = False
    COUNTS: ClassVar = {"": {"train": 1131, "good": 377, "mono": 313, "poly": 402}}

    @classmethod
    def root(cls, folder: Path) -> Path | None:
        """Any folder: the package is found where Python keeps it."""
        return folder

    def contents(self, root: Path) -> Contents:
        """The split and the classes that training from the package has too."""
        found = elpv.load(DataConfig("elpv"))
        test = [(path, NORMAL) for path in found.test_normals]
        test += [(path, kind) for kind, paths in found.anomalies.items() for path in paths]
        return Contents(
            [_example(Path(str(path)), NORMAL) for path in found.train_normals],
            [_example(Path(str(path)), kind) for path, kind in test],
        )


def _example(path: Path, kind: str) -> Example:
    return Example(f"images/{path.name}", kind, whole(path))
