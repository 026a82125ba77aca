"""Mastcam: images of Mars in six channels, of which the first three are used.

The validation normals are not used, and neither is the folder ``all`` of novel images, which
repeats those of the classes.
"""

import functools
import io
from pathlib import Path
from typing import ClassVar

import numpy as np

from ahl_jax.common.errors import UserError
from ahl_jax.data.builders.base import NORMAL, AnomalyBuilder, Contents, Example
from ahl_jax.data.builders.sources import find, images, subfolders, whole

_SHAPE = (64, 64, 6)

_PARTS = ("train_typical", "test_typical", "test_novel")


class Builder(AnomalyBuilder):
    """Mastcam."""

    TITLE = "Mastcam"
    PAGE = "https://zenodo.org/records/3732485"
    DOWNLOAD = "train_typical.zip, test_typical.zip and test_novel.zip"
    ARCHIVES = ("train_typical", "test_typical", "test_novel")
    COUNTS: ClassVar = {"": {"train": 9302, "good": 426}}

    @classmethod
    def root(cls, folder: Path) -> Path | None:
        """A folder that the three parts are somewhere in."""
        return folder if all(_part(folder, name) for name in _PARTS) else None

    def contents(self, root: Path) -> Contents:
        """The arrays as they are, whole."""
        train, good, novel = (_part(root, name) or root / name for name in _PARTS)
        classes = [folder for folder in subfolders(novel) if folder.name != "all"]
        if not classes:
            raise UserError(f"{novel} has no folder per class; download test_novel.zip again")
        found = _examples(good, NORMAL)
        for folder in classes:
            found += _examples(folder, folder.name)
        return Contents(_examples(train, NORMAL), found)


def _part(root: Path, name: str) -> Path | None:
    # The zip archives may or may not have a folder of their own name inside.
    outer = find(root, lambda home: home.name == name)
    return outer / name if outer and (outer / name).is_dir() else outer


def _examples(folder: Path, kind: str) -> list[Example]:
    home = f"{folder.parent.name}/{folder.name}" if kind else folder.name
    found = []
    for path in images(folder):
        if path.suffix.lower() != ".npy":
            raise UserError(f"{path} is not an .npy file; move it elsewhere")
        found.append(Example(f"{home}/{path.name}", kind, functools.partial(_array, path)))
    return found


def _array(path: Path) -> bytes:
    content = whole(path)()
    shape = np.load(io.BytesIO(content), allow_pickle=False).shape
    if shape != _SHAPE:
        found, expected = (" x ".join(map(str, one)) for one in (shape, _SHAPE))
        raise UserError(
            f"{path} has {found} values where {expected} are expected; download the data again"
        )
    return content
