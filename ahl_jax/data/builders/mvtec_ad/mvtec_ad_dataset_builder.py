"""MVTec AD, as shipped: a configuration per category, with its own training and test images."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from ahl_jax.data.builders.base import NORMAL, AnomalyBuilder, Contents, Example
from ahl_jax.data.builders.sources import find, images, regular_file, subfolders, whole
from ahl_jax.errors import UserError

_COUNTS = {
    "bottle": (209, 20, 63),
    "cable": (224, 58, 92),
    "capsule": (219, 23, 109),
    "carpet": (280, 28, 89),
    "grid": (264, 21, 57),
    "hazelnut": (391, 40, 70),
    "leather": (245, 32, 92),
    "metal_nut": (220, 22, 93),
    "pill": (267, 26, 141),
    "screw": (320, 41, 119),
    "tile": (230, 33, 84),
    "toothbrush": (60, 12, 30),
    "transistor": (213, 60, 40),
    "wood": (247, 19, 60),
    "zipper": (240, 32, 119),
}
"""Training normals, test normals and anomalies, as published."""


class Builder(AnomalyBuilder):
    """MVTec AD."""

    TITLE = "MVTec AD"
    PAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad"
    DOWNLOAD = "mvtec_anomaly_detection.tar.xz, or archives of single categories,"
    ARCHIVES = ("mvtec_anomaly_detection", *_COUNTS)
    COUNTS: ClassVar = {
        name: dict(zip(("train", "good", "anomalies"), counts, strict=True))
        for name, counts in _COUNTS.items()
    }
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=name) for name in _COUNTS]

    @classmethod
    def root(cls, folder: Path) -> Path | None:
        """The folder that categories are in, or a folder of that name around each."""
        return find(folder, lambda home: bool(cls.categories(home)))

    @classmethod
    def categories(cls, root: Path) -> tuple[str, ...]:
        """The published categories that are there."""
        return tuple(name for name in _COUNTS if _category_folder(root, name))

    def contents(self, root: Path) -> Contents:
        """The category's images, each anomaly with its mask."""
        name = self.builder_config.name
        home = _category_folder(root, name)
        if home is None:
            raise UserError(f"{root} has no category {name}; download it from {self.PAGE}")
        train = [
            Example(f"train/good/{path.name}", NORMAL, whole(path))
            for path in images(home / "train" / "good")
        ]
        test = [
            Example(f"test/good/{path.name}", NORMAL, whole(path))
            for path in images(home / "test" / "good")
        ]
        for folder in subfolders(home / "test"):
            if folder.name == "good":
                continue
            masks = home / "ground_truth" / folder.name
            found = images(folder)
            test += [
                Example(
                    f"test/{folder.name}/{path.name}",
                    folder.name,
                    whole(path),
                    whole(regular_file(masks / f"{path.stem}_mask.png")),
                )
                for path in found
            ]
            extra = {mask.stem for mask in images(masks)} - {f"{p.stem}_mask" for p in found}
            if extra:
                raise UserError(
                    f"{masks / min(extra)}.png is the mask of no image; download the data again"
                )
        return Contents(train, test)


def _category_folder(root: Path, name: str) -> Path | None:
    for folder in (root / name, root / name / name):
        if (folder / "train" / "good").is_dir():
            return folder
    return None
