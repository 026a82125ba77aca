"""BrainMRI: slices of the brain in two folders, no and yes."""

from pathlib import Path
from typing import ClassVar

from ahl_jax.data.builders.base import NORMAL, AnomalyBuilder, Contents, Example
from ahl_jax.data.builders.sources import find, images, whole
from ahl_jax.data.splits import split_normals


class Builder(AnomalyBuilder):
    """BrainMRI."""

    TITLE = "BrainMRI"
    PAGE = "https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection"
    DOWNLOAD = "archive.zip"
    ARCHIVES = ("brain*", "archive")
    COUNTS: ClassVar = {"": {"train": 73, "good": 25, "tumor": 155}}

    @classmethod
    def root(cls, folder: Path) -> Path | None:
        """The folder with no and yes, of which the archive has two copies."""
        return find(folder, lambda home: (home / "no").is_dir() and (home / "yes").is_dir())

    def contents(self, root: Path) -> Contents:
        """The slices without and with a tumour."""
        normals = [Example(f"no/{p.name}", NORMAL, whole(p)) for p in images(root / "no")]
        tumors = [Example(f"yes/{p.name}", "tumor", whole(p)) for p in images(root / "yes")]
        train, good = split_normals(normals)
        return Contents(train, good + tumors)
