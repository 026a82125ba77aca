"""KolektorSDD: every image cut in three along its length.

A third is an anomaly where its mask is not empty, and a normal otherwise, whichever image it is of.
"""

import itertools
import re
from pathlib import Path

from ahl_jax.common.errors import UserError
from ahl_jax.data.builders.base import NORMAL, AnomalyBuilder, Contents, Example
from ahl_jax.data.builders.sources import (
    Box,
    find,
    images,
    mask_part,
    part,
    regular_file,
    size,
    subfolders,
    union,
)
from ahl_jax.data.splits import split_normals


class Builder(AnomalyBuilder):
    """KolektorSDD."""

    TITLE = "KolektorSDD"
    PAGE = "https://www.vicos.si/resources/kolektorsdd/"
    DOWNLOAD = "KolektorSDD.zip"
    ARCHIVES = ("KolektorSDD",)
    IMAGES, FAULTY = 399, 52
    """Published numbers of images, and of those with a defect."""

    @classmethod
    def root(cls, folder: Path) -> Path | None:
        """The folder with kos01, kos02 and so on."""
        return find(folder, lambda home: (home / "kos01").is_dir())

    def contents(self, root: Path) -> Contents:
        """The thirds of all images."""
        normals, anomalies = [], []
        pictures = [path for item in subfolders(root) for path in _pictures(item)]
        faulty = 0
        for path in pictures:
            mask = regular_file(path.with_name(f"{path.stem}_label.bmp"))
            width, height = size(path)
            marked = union([mask], (width, height))
            faulty += bool(marked.any())
            for i, box in enumerate(_thirds(width, height)):
                left, top, right, bottom = box
                name = f"{path.parent.name}/{path.name}#{i}"
                if marked[top:bottom, left:right].any():
                    cut = mask_part([mask], box)
                    anomalies.append(Example(name, "defect", part(path, box), cut))
                else:
                    normals.append(Example(name, NORMAL, part(path, box)))
        for found, published, kind in (
            (len(pictures), self.IMAGES, "images"),
            (faulty, self.FAULTY, "images with a defect"),
        ):
            if found != published:
                raise UserError(
                    f"{root} has {found} {kind} where {published} were published; download "
                    f"KolektorSDD again from {self.PAGE}"
                )
        train, good = split_normals(normals)
        return Contents(train, good + anomalies)


def _pictures(item: Path) -> list[Path]:
    if not re.fullmatch(r"kos\d+", item.name):
        return []
    found = []
    for path in images(item):
        if re.fullmatch(r"Part\d+", path.stem):
            found.append(path)
        elif not re.fullmatch(r"Part\d+_label", path.stem):
            raise UserError(f"{path} is neither PartN nor PartN_label; move it elsewhere")
    names = {path.stem for path in found}
    for path in images(item):
        if path.stem.removesuffix("_label") not in names:
            raise UserError(f"{path} is the mask of no image; download the data again")
    return found


def _thirds(width: int, height: int) -> list[Box]:
    """Three boxes along the longer side that cover it, as equal as whole pixels allow."""
    cuts = [max(width, height) * i // 3 for i in range(4)]
    pairs = list(itertools.pairwise(cuts))
    if height >= width:
        return [(0, start, width, stop) for start, stop in pairs]
    return [(start, 0, stop, height) for start, stop in pairs]
