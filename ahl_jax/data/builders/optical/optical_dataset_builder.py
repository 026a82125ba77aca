"""DAGM 2007: ten kinds of artificial texture, each with defects of its own.

The normals of all classes are pooled; a defect's class is the class of its texture.
"""

from pathlib import Path
from typing import ClassVar

from ahl_jax.common.errors import UserError
from ahl_jax.data.builders.base import NORMAL, AnomalyBuilder, Contents, Example
from ahl_jax.data.builders.sources import find, images, mask_of, regular_file, text_lines, whole
from ahl_jax.data.splits import split_normals

_CLASSES = tuple(f"Class{number}" for number in range(1, 11))


class Builder(AnomalyBuilder):
    """DAGM 2007."""

    TITLE = "DAGM 2007"
    PAGE = "https://hci.iwr.uni-heidelberg.de/content/weakly-supervised-learning-industrial-optical-inspection"
    DOWNLOAD = "all ten classes"
    ARCHIVES = ("DAGM*", "Class*", "archive")
    COUNTS: ClassVar = {
        "": {"train": 10500, "good": 3500}
        | {name: 150 if number < 6 else 300 for number, name in enumerate(_CLASSES)}
    }

    @classmethod
    def root(cls, folder: Path) -> Path | None:
        """The folder with Class1 to Class10, or with a folder of that name around each."""
        return find(folder, lambda home: _class_folder(home, "Class1") is not None)

    def contents(self, root: Path) -> Contents:
        """The images of Train and Test alike, as the labels have them."""
        normals, anomalies = [], []
        for name in _CLASSES:
            home = _class_folder(root, name)
            if home is None:
                raise UserError(f"{root} has no {name}; download all ten classes of DAGM 2007")
            for half in ("Train", "Test"):
                for path, mask in _labelled(home / half):
                    title = f"{name}/{half}/{path.name}"
                    if mask is None:
                        normals.append(Example(title, NORMAL, whole(path)))
                    else:
                        anomalies.append(Example(title, name, whole(path), mask_of(path, mask)))
        train, good = split_normals(normals)
        return Contents(train, good + sorted(anomalies, key=lambda each: each.anomaly_class))


def _class_folder(home: Path, name: str) -> Path | None:
    for folder in (home / name, home / name / name):
        if (folder / "Train").is_dir():
            return folder
    return None


def _labelled(folder: Path) -> list[tuple[Path, Path | None]]:
    """The images of a folder and their masks, by its Labels.txt."""
    labels = folder / "Label" / "Labels.txt"
    found: dict[Path, Path | None] = {}
    # The first line is the number of the file's format; then there is a line per image with its
    # number, 1 or 0 for a defect, its file, and the same for the mask.
    for number, line in enumerate(text_lines(labels)[1:], 2):
        if not line.strip():
            continue
        fields = line.split()
        named = [Path(field).name == field for field in (fields[2:3] + fields[4:5])]
        if len(fields) != 5 or fields[1] not in "01" or not all(named):
            raise UserError(
                f"line {number} of {labels} is not NUMBER DEFECT FILE MASK MASKFILE; download the "
                "data again"
            )
        mask = regular_file(folder / "Label" / fields[4]) if fields[1] == "1" else None
        found[regular_file(folder / fields[2])] = mask
    for path in images(folder):
        if path not in found:
            raise UserError(f"{path} has no line in {labels}; download the data again")
    return sorted(found.items())
