"""MVTec AD, as shipped: a configuration per category, with its own training and test images."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from ahl_jax.common.errors import UserError
from ahl_jax.data.builders.base import NORMAL, AnomalyBuilder, Contents, Example
from ahl_jax.data.builders.sources import find, images, mask_of, regular_file, subfolders, whole

_COUNTS = {
    "bottle": (209, 20, {"broken_large": 20, "broken_small": 22, "contamination": 21}),
    "cable": (224, 58, {"bent_wire": 13, "cable_swap": 12, "combined": 11,
                        "cut_inner_insulation": 14, "cut_outer_insulation": 10,
                        "missing_cable": 12, "missing_wire": 10, "poke_insulation": 10}),
    "capsule": (219, 23, {"crack": 23, "faulty_imprint": 22, "poke": 21, "scratch": 23,
                          "squeeze": 20}),
    "carpet": (280, 28, {"color": 19, "cut": 17, "hole": 17, "metal_contamination": 17,
                         "thread": 19}),
    "grid": (264, 21, {"bent": 12, "broken": 12, "glue": 11, "metal_contamination": 11,
                       "thread": 11}),
    "hazelnut": (391, 40, {"crack": 18, "cut": 17, "hole": 18, "print": 17}),
    "leather": (245, 32, {"color": 19, "cut": 19, "fold": 17, "glue": 19, "poke": 18}),
    "metal_nut": (220, 22, {"bent": 25, "color": 22, "flip": 23, "scratch": 23}),
    "pill": (267, 26, {"color": 25, "combined": 17, "contamination": 21, "crack": 26,
                       "faulty_imprint": 19, "pill_type": 9, "scratch": 24}),
    "screw": (320, 41, {"manipulated_front": 24, "scratch_head": 24, "scratch_neck": 25,
                        "thread_side": 23, "thread_top": 23}),
    "tile": (230, 33, {"crack": 17, "glue_strip": 18, "gray_stroke": 16, "oil": 18, "rough": 15}),
    "toothbrush": (60, 12, {"defective": 30}),
    "transistor": (213, 60, {"bent_lead": 10, "cut_lead": 10, "damaged_case": 10,
                             "misplaced": 10}),
    "wood": (247, 19, {"color": 8, "combined": 11, "hole": 10, "liquid": 10, "scratch": 21}),
    "zipper": (240, 32, {"broken_teeth": 19, "combined": 16, "fabric_border": 17,
                         "fabric_interior": 16, "rough": 17, "split_teeth": 18,
                         "squeezed_teeth": 16}),
}  # fmt: skip
"""Training normals, test normals and anomalies of each class, as published."""


class Builder(AnomalyBuilder):
    """MVTec AD."""

    TITLE = "MVTec AD"
    PAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad"
    DOWNLOAD = "mvtec_anomaly_detection.tar.xz, or archives of single categories,"
    ARCHIVES = ("mvtec_anomaly_detection", *_COUNTS)
    COUNTS: ClassVar = {
        name: {"train": train, "good": good, "anomalies": sum(classes.values()), **classes}
        for name, (train, good, classes) in _COUNTS.items()
    }
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=name) for name in _COUNTS]

    @classmethod
    def root(cls, folder: Path) -> Path | None:
        """The folder that categories are in, or a folder of that name around each, or just one."""
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
                    mask_of(path, regular_file(masks / f"{path.stem}_mask.png")),
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
    for folder in (root / name, root / name / name, root):
        if folder.name == name and (folder / "train" / "good").is_dir():
            return folder
    return None
