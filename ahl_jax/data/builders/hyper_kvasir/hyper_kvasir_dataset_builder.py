"""Hyper-Kvasir, upper digestive tract: landmarks are normal, pathological findings are not."""

from pathlib import Path
from typing import ClassVar

from ahl_jax.data.builders.base import NORMAL, AnomalyBuilder, Contents, Example
from ahl_jax.data.builders.sources import find, images, subfolders, whole
from ahl_jax.data.splits import split_normals


class Builder(AnomalyBuilder):
    """Hyper-Kvasir."""

    TITLE = "Hyper-Kvasir"
    PAGE = "https://datasets.simula.no/hyper-kvasir/"
    DOWNLOAD = "hyper-kvasir-labeled-images.zip"
    ARCHIVES = ("hyper-kvasir-labeled-images",)
    COUNTS: ClassVar = {
        "": {
            "train": 2021,
            "good": 674,
            "anomalies": 757,
            "barretts": 41,
            "barretts-short-segment": 53,
            "esophagitis-a": 403,
            "esophagitis-b-d": 260,
        }
    }

    @classmethod
    def root(cls, folder: Path) -> Path | None:
        """The folder upper-gi-tract."""
        return find(
            folder,
            lambda home: (home / "anatomical-landmarks").is_dir() and home.name == "upper-gi-tract",
        )

    def contents(self, root: Path) -> Contents:
        """All landmarks pooled, and the findings class by class."""
        normals = [
            example
            for folder in subfolders(root / "anatomical-landmarks")
            for example in _examples(folder, NORMAL)
        ]
        findings = [
            example
            for folder in subfolders(root / "pathological-findings")
            for example in _examples(folder, folder.name)
        ]
        train, good = split_normals(normals)
        return Contents(train, good + findings)


def _examples(folder: Path, kind: str) -> list[Example]:
    return [Example(f"{folder.name}/{path.name}", kind, whole(path)) for path in images(folder)]
