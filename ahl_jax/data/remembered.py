"""The images of a run as a list, and the split that they make when they are found again."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from ahl_jax.common.errors import BadImageError
from ahl_jax.common.files import is_inside
from ahl_jax.common.text import counted
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.copies import copy_of, origin
from ahl_jax.data.formats import SUFFIXES
from ahl_jax.data.images import image_digest
from ahl_jax.data.records import ImageSource
from ahl_jax.data.types import Dataset, Sample, Split, in_order

Part = Literal["train", "held-out", "test", "copy", "unused"]

DIGITS = 16
"""Of an image's SHA-256 that tables of images have."""


class Row(NamedTuple):
    """An image of a run."""

    path: str
    """Below the data's folder; absolute where it is elsewhere; a name where it is no file."""

    anomaly_class: str
    """Empty for normals."""

    part: Part
    """copy: not in the test because training has the same file; unused: in neither."""

    sha256: str
    """The first ``DIGITS``, of images that training or the test has and that can be read."""


@dataclass(frozen=True)
class Found:
    """The split of a run in the data as it is now.

    Attributes:
        split: The images of the run that are there.
        added: Images that the run's data did not have.
        to_test: Those of them that a test may have, in the order of a split's.
        gone: How many images of training and test are not there.
        same: Whether the images of training and test are those of the run.
        listed: Whether the run has a list of its images; those of earlier versions have none.
    """

    split: Split
    added: tuple[Sample, ...] = ()
    to_test: tuple[Sample, ...] = ()
    gone: int = 0
    same: bool = True
    listed: bool = True

    def in_words(self) -> str:
        """How the images differ from those of the run; empty where they do not."""
        if not self.listed:
            return "" if self.same else "the test may hold images that training has seen"
        some = counted(len(self.added), "image")
        said = [f"{some} added, of which the test has {len(self.to_test)}"] if self.added else []
        said += [f"{counted(self.gone, 'image')} gone or changed"] if self.gone else []
        return " and ".join(said) or ("" if self.same else "some are of another class")


def listed(split: Split, data: str) -> list[Row]:
    """The images of a run, those of training first, each part in the split's order.

    Args:
        split: the run's.
        data: what ``DataConfig.data`` names.
    """
    folder = _folder(data)
    parts: list[tuple[Part, Sequence[Sample]]] = [
        ("train", [*_normals(split.train_normals), *split.seen]),
        ("held-out", _normals(split.held_out)),
        ("test", split.test),
        ("copy", split.copies),
        ("unused", split.unused),
    ]
    return [
        Row(
            _name(sample.path, folder),
            sample.anomaly_class or "",
            part,
            "" if part in ("copy", "unused") else _content(sample.path),
        )
        for part, samples in parts
        for sample in samples
    ]


def places(rows: Sequence[Row], data: str) -> list[str]:
    """What ``DataConfig.data`` names, and the folders of a run's images that are elsewhere."""
    paths = [Path(row.path) for row in rows]
    return [data, *sorted({str(path.parent) for path in paths if path.is_absolute()})]


def find(rows: Sequence[Row], dataset: Dataset, config: DataConfig, *, by_name: bool) -> Found:
    """The images of a run in a data set that may have changed since.

    An image is told by its content, so that none that training has seen gets into the test under
    another name.

    Args:
        rows: the run's images.
        dataset: the images as they are now.
        config: the run's settings, with the data where it is now.
        by_name: take files that have the names of the run's images to be those.
    """
    folder, known = _folder(config.data), {row.path: row.sha256 for row in rows}

    def content(sample: Sample) -> str:
        name = _name(sample.path, folder)
        # Nothing is known of images that the run leaves out but their names.
        if name in known and (by_name or not known[name]):
            return known[name] or name
        return _content(sample.path) or name

    contents = {sample: content(sample) for sample in dataset.samples()}
    here: dict[str, Sample] = {}
    exact: dict[tuple[str, str], Sample] = {}
    for sample, what in contents.items():
        here.setdefault(what, sample)
        exact[_name(sample.path, folder), what] = sample
    parts: dict[Part, list[Sample]] = {
        "train": [], "held-out": [], "test": [], "copy": [], "unused": [],
    }  # fmt: skip
    gone = 0
    for row in rows:
        what = row.sha256 or row.path
        found = exact.get((row.path, what)) or here.get(what) or _elsewhere(row, folder)
        if found is None:
            gone += row.part not in ("copy", "unused")
        elif row.part == "test":
            parts[row.part].append(found)
        else:
            # Whatever it counts as now, training took it for this.
            parts[row.part].append(Sample(found.path, row.anomaly_class or None))
    old = {row.sha256 or row.path for row in rows}
    added = tuple(sample for sample, what in contents.items() if what not in old)
    tested = {*dataset.test_normals, *(p for paths in dataset.anomalies.values() for p in paths)}
    wanted = [s for s in added if s.path in tested]
    if config.seen_class is not None:
        seen = unicodedata.normalize("NFC", config.seen_class)
        wanted = [s for s in wanted if s.anomaly_class != seen]
    split = Split(
        train_normals=tuple(s.path for s in parts["train"] if s.anomaly_class is None),
        seen=tuple(s for s in parts["train"] if s.anomaly_class is not None),
        test=in_order(parts["test"]),
        held_out=tuple(s.path for s in parts["held-out"]),
        copies=tuple(parts["copy"]),
        unused=tuple(parts["unused"]),
    )
    return Found(split, added, in_order(wanted), gone)


def with_added(found: Found) -> Split:
    """The split, with the added images in its test."""
    return replace(found.split, test=in_order([*found.split.test, *found.to_test]))


def category_of(path: ImageSource, data: str) -> str:
    """The category of an image of several that are joined; empty for one that is elsewhere.

    Args:
        path: the image.
        data: what ``DataConfig.data`` names.
    """
    # The first part of its name: that of a folder, or what ``joined`` puts before a record's.
    return unicodedata.normalize("NFC", _name(path, copy_of(data)).partition("/")[0])


def _normals(paths: Sequence[ImageSource]) -> list[Sample]:
    return [Sample(path, None) for path in paths]


def names_in(data: str, paths: Sequence[ImageSource]) -> list[str]:
    """Images as ``listed`` names them."""
    folder = _folder(data)
    return [_name(path, folder) for path in paths]


def _name(path: ImageSource, folder: Path) -> str:
    if not isinstance(path, Path):
        return path.name
    if path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    return origin(path.absolute())


def _folder(data: str) -> Path:
    path = copy_of(data)
    return path.parent if path.is_file() else path


def _content(path: ImageSource) -> str:
    try:
        return image_digest(path)[:DIGITS]
    except BadImageError:
        return ""


def _elsewhere(row: Row, folder: Path) -> Sample | None:
    """The image of a row that the data set does not have, such as one that was added by hand.

    A row may be a stranger's: it names an image, within the data's folder or in full. Of images in
    object storage the copies here count.
    """
    path = folder / copy_of(row.path)
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        return None
    if not (copy_of(row.path).is_absolute() or is_inside(path, folder)):
        return None
    if _content(path) != row.sha256:
        return None
    return Sample(path, row.anomaly_class or None)
