"""AITEX fabric: strips of 4096 x 256 pixels, cut into squares of 256.

A square of a faulty strip is an anomaly where its mask is not empty, and left out otherwise.
"""

import re
from pathlib import Path

from ahl_jax.common.errors import UserError
from ahl_jax.data.builders.base import NORMAL, AnomalyBuilder, Contents, Example
from ahl_jax.data.builders.sources import find, images, mask_part, part, size, subfolders, union
from ahl_jax.data.splits import split_normals

_SIDE = 256
_PARTS = 16

_CLASSES = {
    "002": "Broken_end",
    "006": "Broken_yarn",
    "010": "Broken_pick",
    "016": "Weft_curling",
    "019": "Fuzzyball",
    "022": "Cut_selvage",
    "023": "Crease",
    "025": "Warp_ball",
    "027": "Knots",
    "029": "Contamination",
    "030": "Nep",
    "036": "Weft_crack",
}

_WITHOUT_MASK = frozenset({"0100_025_08"})
"""Strips that were published without a mask; which of their squares are faulty is not known."""

_NARROW = {"0094_027_05": 3796}
"""Strips that were published with another width than 4096; their last squares are left out."""


class Builder(AnomalyBuilder):
    """AITEX."""

    TITLE = "AITEX"
    PAGE = "https://www.aitex.es/afid/"
    DOWNLOAD = "and unpack (7z x) Defect_images.7z, NODefect_images.7z and Mask_images.7z"
    ARCHIVES = ("aitex*", "archive")

    @classmethod
    def root(cls, folder: Path) -> Path | None:
        """The folder with Defect_images, NODefect_images and Mask_images."""
        names = ("Defect_images", "NODefect_images", "Mask_images")
        return find(folder, lambda home: all((home / name).is_dir() for name in names))

    def contents(self, root: Path) -> Contents:
        """Sixteen squares of every good strip, and the faulty squares of the others."""
        home = root / "NODefect_images"
        strips = [*images(home), *(path for inner in subfolders(home) for path in images(inner))]
        normals = [
            Example(f"{strip.relative_to(root).as_posix()}#{i}", NORMAL, part(strip, _box(i)))
            for strip in sorted(strips)
            for i in range(_squares(strip))
        ]
        train, good = split_normals(normals)
        return Contents(train, good + _anomalies(root))


def _anomalies(root: Path) -> list[Example]:
    masks_of: dict[str, list[Path]] = {}
    for mask in images(root / "Mask_images"):
        masks_of.setdefault(re.sub(r"_mask\d*$", "", mask.stem), []).append(mask)
    found = []
    strips = images(root / "Defect_images")
    if unknown := sorted(set(masks_of) - {strip.stem for strip in strips}):
        raise UserError(
            f"{masks_of[unknown[0]][0]} is the mask of no image in {root / 'Defect_images'}; "
            "download the data again"
        )
    for strip in strips:
        code = re.fullmatch(r"\d{4}_(\d{3})_\d{2}", strip.stem)
        if code is None or code[1] not in _CLASSES:
            raise UserError(
                f"{strip} has no known defect code in its name, which is NUMBER_CODE_FABRIC; "
                "download the data again"
            )
        masks = masks_of.get(strip.stem)
        if masks is None:
            if strip.stem in _WITHOUT_MASK:
                continue
            raise UserError(
                f"{strip} has no mask {strip.stem}_mask.png in {root / 'Mask_images'}; download "
                "the data again"
            )
        squares = _squares(strip)
        faulty = union(masks, size(strip))
        found += [
            Example(
                f"Defect_images/{strip.name}#{i}",
                _CLASSES[code[1]],
                part(strip, _box(i)),
                mask_part(masks, _box(i)),
            )
            for i in range(squares)
            if faulty[:, i * _SIDE : (i + 1) * _SIDE].any()
        ]
    return sorted(found, key=lambda example: example.anomaly_class)


def _squares(strip: Path) -> int:
    width, height = size(strip)
    expected = _NARROW.get(strip.stem, _PARTS * _SIDE)
    # The narrow strip is also passed around padded to the width of the others.
    if height != _SIDE or width not in (expected, _PARTS * _SIDE):
        raise UserError(
            f"{strip} has {width} x {height} pixels where {expected} x {_SIDE} are expected; "
            "download the data again"
        )
    return width // _SIDE


def _box(index: int) -> tuple[int, int, int, int]:
    return index * _SIDE, 0, (index + 1) * _SIDE, _SIDE
