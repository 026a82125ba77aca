"""A data set in MVTec layout: ``ROOT[/CATEGORY]/{train, test}/{good, <class>}``.

The classes in ``train`` are the labelled anomalies, those in ``test`` are not. ``ground_truth`` and
everything else beside ``train`` and ``test`` is ignored, and so are hidden files; files that no
reader is for are named. Folders inside a class belong to that class. Names may be in any script;
the two Unicode spellings of an accented letter count as the same name.

Without ``train/good``, a folder of normals beside one of anomalies is a data set too, such as
``ROOT/{good, bad}``; see ``NORMAL_WORDS`` for their names.
"""

import os
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from ahl_jax.common.errors import UserError
from ahl_jax.common.files import is_inside
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.formats import SUFFIXES, is_unread, warn_of_unread
from ahl_jax.data.splits import split_normals
from ahl_jax.data.types import ANOMALY, ANOMALY_WORDS, NORMAL_WORDS, Dataset

PREDICTION = "predict.json"
"""What a folder of results is about, in a file that ``ahl predict`` writes into it."""

OUTPUTS = {
    "overlay": "heat_maps", "mask": "defect_masks", "boxes": "defect_boxes", "raw": "heat_values",
}  # fmt: skip
"""What ``ahl predict`` can write for each image -> the folder of them, within that of results."""


def load(config: DataConfig) -> Dataset:
    """The images below the folder ``config.data``, or below one category of it.

    A link that leads out of that folder is never followed: a linked folder of the layout is an
    error, a linked image is left out with a warning. So is any linked folder inside a class.

    Raises:
        UserError: if the category is missing or unknown, if the folder has no ``train/good``, if
            one of its folders is a link that leads elsewhere, or may not be listed.
    """
    try:
        return _load(Path(config.data), config.category)
    except OSError as error:
        raise _unlistable(error) from error


def categories(root: Path) -> list[str]:
    """The names of the categories below a folder; none where it is a single data set.

    Raises:
        UserError: if it may not be listed.
    """
    if (root / "train" / "good").is_dir():
        return []
    try:
        return [_nfc(folder.name) for folder in _categories(root)]
    except OSError as error:
        raise _unlistable(error) from error


def anomalies_below(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Anomaly class -> images: of the folders in a folder, and ``ANOMALY`` for those beside them.

    A folder in it whose name says no more than that its images are anomalies is looked into.

    Raises:
        UserError: if it may not be listed, or has a folder of normals.
    """
    skipped: list[Path] = []
    try:
        normals, anomalies = _normals_and_anomalies(folder)
        if normals:
            raise UserError(
                f"{folder} is to hold defects alone, and {_named(normals)} in it are good parts by "
                "their name; give the folder of the defects as `defects`, and that of good parts "
                "as `good`"
            )
        found = _anomalies([folder, *anomalies], folder, skipped)
    except OSError as error:
        raise _unlistable(error) from error
    warn_of_unread(skipped, folder)
    return found


def check_good(folder: Path) -> None:
    """Refuse a folder of good parts that has one of anomalies in it.

    Raises:
        UserError: saying so, or if it may not be listed.
    """
    try:
        anomalies = _normals_and_anomalies(folder)[1]
    except OSError as error:
        raise _unlistable(error) from error
    if anomalies:
        raise UserError(
            f"{folder} is to hold good parts alone, and {_named(anomalies)} in it are defects by "
            "their name; give the folder of the good parts as `good`"
        )


def images_below(folder: Path, skipped: list[Path] | None = None) -> list[Path]:
    """All images in a folder and the folders in it, sorted.

    Args:
        folder: the folder.
        skipped: to which links out of it are added, and files that ``is_unread``.

    Raises:
        UserError: if it may not be listed.
    """
    try:
        return list(_images(folder, folder, [] if skipped is None else skipped))
    except OSError as error:
        raise _unlistable(error) from error


def listed(folder: Path) -> list[Path]:
    """What is in a folder, in any order.

    Raises:
        UserError: if it may not be listed.
    """
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise _unlistable(error) from error


def _categories(root: Path) -> list[Path]:
    return [folder for folder in _subfolders(root) if (folder / "train" / "good").is_dir()]


def _load(root: Path, category: str | None) -> Dataset:
    skipped: list[Path] = []
    split = (root / "train" / "good").is_dir() or _categories(root)
    if not split and all(kinds := _normals_and_anomalies(root)):
        if category is not None:
            raise _has_none(root, category)
        dataset = _plain(root, *kinds, skipped)
    else:
        home = _category(root, category)
        train, test = (
            _classes(_subfolders(home / part), root, skipped) for part in ("train", "test")
        )
        normals = train.pop("good", ()), test.pop("good", ())
        dataset = Dataset(_nfc(home.resolve().name), *normals, test, train)
    warn_of_unread(skipped, root)
    if links := [path for path in skipped if not is_unread(path)]:
        warnings.warn(
            f"left out {len(links)} link(s) that lead to a folder or out of {root}, such as "
            f"{links[0]}",
            stacklevel=4,
        )
    return dataset


def _normals_and_anomalies(root: Path) -> tuple[list[Path], list[Path]]:
    """The folders in a folder that have the names of normals, and of anomalies."""
    folders = [(folder, _nfc(folder.name).casefold()) for folder in _subfolders(root)]
    normals, anomalies = (
        [folder for folder, name in folders if name in words]
        for words in (NORMAL_WORDS, ANOMALY_WORDS)
    )
    return normals, anomalies


def _plain(
    root: Path, normals: Sequence[Path], anomalies: Sequence[Path], skipped: list[Path]
) -> Dataset:
    """A data set without a split, whose normals are split here."""
    good = [path for folder in normals for path in _images(folder, root, skipped)]
    classes = _anomalies(anomalies, root, skipped)
    try:
        train, test = split_normals(good)
    except UserError as error:
        raise UserError(f"in {normals[0]} {error}") from error
    others = {*_subfolders(root)} - {*normals, *anomalies}
    bad = sum(map(len, classes.values()))
    note = (
        f"{root} has no folders train and test: the {len(good)} images of {_named(normals)} are "
        "normals, of which a training leaves a quarter to the test, and the "
        f"{bad} of {_named(anomalies)} are anomalies"
    )
    if others:
        note += f"; nothing of {_named(others)} is used"
    return Dataset(_nfc(root.resolve().name), tuple(train), tuple(test), classes, note=note)


def _named(folders: Iterable[Path]) -> str:
    return ", ".join(sorted(folder.name for folder in folders))


def _anomalies(
    folders: Sequence[Path], root: Path, skipped: list[Path]
) -> dict[str, tuple[Path, ...]]:
    """The classes in folders of anomalies; images beside the folders of classes have no other."""
    inner = [each for folder in folders for each in _subfolders(folder) if each not in folders]
    found = _classes(inner, root, skipped)
    links: list[Path] = []
    every = dict.fromkeys(path for folder in folders for path in _images(folder, root, links))
    beside = tuple(path for path in every if path.parent in folders)
    skipped += [path for path in links if path.parent in folders and path not in inner]
    if beside:
        found[ANOMALY] = beside + found.get(ANOMALY, ())
    return dict(sorted(found.items()))


def _classes(
    folders: Iterable[Path], root: Path, skipped: list[Path]
) -> dict[str, tuple[Path, ...]]:
    """Class -> images of the folders of its name, sorted, and none empty."""
    found: dict[str, tuple[Path, ...]] = {}
    for folder in folders:
        name = _nfc(folder.name)
        found[name] = found.get(name, ()) + _images(folder, root, skipped)
    return {name: found[name] for name in sorted(found) if found[name]}


def _category(root: Path, category: str | None) -> Path:
    """The folder that holds ``train`` and ``test``."""
    folders = _categories(root)
    names = ", ".join(_nfc(folder.name) for folder in folders)
    if category is not None:
        # A look-up among the folder's own entries, so that no name can lead out of it.
        for folder in folders:
            if _nfc(folder.name) == _nfc(category):
                return folder
        if not folders and (root / "train" / "good").is_dir():
            raise _has_none(root, category)
        if folders:
            raise UserError(f"{root} has no category {category!r}; it has: {names}")
    elif (root / "train" / "good").is_dir():
        return root
    elif len(folders) == 1:
        return folders[0]
    elif folders:
        raise UserError(f"{root} holds several categories; choose one with `category`: {names}")
    raise UserError(
        f"{root} has no folder train/good; lay the images out as train/good, test/good and "
        "test/CLASS, or as good and bad; of good parts alone train/good will do"
    )


def _has_none(root: Path, category: str) -> UserError:
    return UserError(f"{root} is a single data set; leave out `category={category!r}`")


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return _ordered(
        (entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."), folder
    )


def _images(folder: Path, root: Path, skipped: list[Path]) -> tuple[Path, ...]:
    """The images below ``folder``, sorted; what is left out is added to ``skipped``.

    That is links out of ``root``, and files that ``is_unread``.
    """
    if folder.is_dir() and not is_inside(folder, root):
        raise UserError(
            f"{folder} is a link that leads out of {root}; name the folder that it leads to, or "
            "copy the images"
        )
    found: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=_raise):
        # os.walk does not enter linked folders: a link inside a class could lead anywhere, or in
        # a circle.
        skipped += [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]
        # What an earlier prediction drew is no photograph.
        ours = {*OUTPUTS.values()} if PREDICTION in files else set()
        folders[:] = [name for name in folders if name[0] != "." and name not in ours]
        for name in files:
            path = Path(parent, name)
            if is_unread(path):
                skipped.append(path)
            elif name[0] != "." and path.suffix.lower() in SUFFIXES and path.is_file():
                inside = not path.is_symlink() or is_inside(path, root)
                (found if inside else skipped).append(path)
    return tuple(_ordered(found, folder))


def _raise(error: OSError) -> None:
    # Without it os.walk passes over a folder that it may not list.
    if not isinstance(error, FileNotFoundError):
        raise error


def _unlistable(error: OSError) -> UserError:
    return UserError(f"{error.filename} cannot be listed ({error.strerror}); check its permissions")


def _ordered(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Sorted by relative path, in an order that is the same on every system."""

    def key(path: Path) -> tuple[str, str]:
        relative = path.relative_to(folder).as_posix()
        return _nfc(relative), relative

    return sorted(paths, key=key)


def _nfc(name: str) -> str:
    """The composed Unicode spelling of a name, which is the one that people type."""
    return unicodedata.normalize("NFC", name)
