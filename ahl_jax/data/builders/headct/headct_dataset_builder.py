"""HeadCT: 200 slices, half of them with a haemorrhage."""

from pathlib import Path
from typing import ClassVar

from ahl_jax.common.errors import UserError
from ahl_jax.data.builders.base import NORMAL, AnomalyBuilder, Contents, Example
from ahl_jax.data.builders.sources import find, images, text_lines, whole
from ahl_jax.data.splits import split_normals


class Builder(AnomalyBuilder):
    """HeadCT."""

    TITLE = "HeadCT"
    PAGE = "https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage"
    DOWNLOAD = "head_ct.zip and labels.csv (or archive.zip, which has both)"
    ARCHIVES = ("head_ct", "head-ct*", "archive")
    COUNTS: ClassVar = {"": {"train": 75, "good": 25, "hemorrhage": 100}}

    @classmethod
    def root(cls, folder: Path) -> Path | None:
        """The folder that labels.csv and head_ct are somewhere in."""
        if find(folder, _has_labels) is None or find(folder, _has_slices) is None:
            return None
        return folder

    def contents(self, root: Path) -> Contents:
        """The slices, as labels.csv has them."""
        home, slices = find(root, _has_labels), find(root, _has_slices)
        if home is None or slices is None:
            raise UserError(f"{root} has no labels.csv, or no head_ct/000.png")
        labels = home / "labels.csv"
        kinds: dict[str, str] = {}
        for number, row in enumerate(text_lines(labels)[1:], 2):
            values = [field.strip() for field in row.split(",")]
            if len(values) != 2 or not values[0].isdecimal() or values[1] not in ("0", "1"):
                raise UserError(f"line {number} of {labels} is not ID,0 or ID,1; download it again")
            kinds[f"{int(values[0]):03}"] = "hemorrhage" if values[1] == "1" else NORMAL
        paths = images(slices)
        for path in paths:
            if path.stem not in kinds:
                raise UserError(f"{path} has no line in {labels}; download the data again")
        if absent := sorted(set(kinds) - {path.stem for path in paths}):
            raise UserError(f"{slices / absent[0]}.png is missing; download the data again")
        found = [Example(f"head_ct/{p.name}", kinds[p.stem], whole(p)) for p in paths]
        train, good = split_normals([each for each in found if not each.anomaly_class])
        return Contents(train, good + [each for each in found if each.anomaly_class])


def _has_labels(folder: Path) -> bool:
    return (folder / "labels.csv").is_file()


def _has_slices(folder: Path) -> bool:
    return folder.name == "head_ct" and (folder / "000.png").is_file()
