"""A data set in MVTec layout: ``ROOT[/CATEGORY]/{train/good, test/good, test/<class>}``.

``ground_truth`` and everything else beside ``train`` and ``test`` is ignored, and so are hidden
files and files with other extensions. Folders inside a class belong to that class. Names may be in
any script; the two Unicode spellings of an accented letter count as the same name.
"""

import os
import unicodedata
import warnings
from collections.abc import Iterable
from pathlib import Path

from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.images import SUFFIXES
from ahl_jax.data.types import Dataset

PREDICTION, HEAT_MAPS = "predict.json", "heat_maps"
"""What ``ahl predict`` writes into its folder: what it is about, and a folder of pictures."""


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
    """The names of the categories below a folder; none where it is a single data set."""
    if (root / "train" / "good").is_dir():
        return []
    return [_nfc(folder.name) for folder in _categories(root)]


def images_below(folder: Path) -> list[Path]:
    """All images in a folder and the folders in it, sorted; links out of it are left out.

    Raises:
        UserError: if it may not be listed.
    """
    try:
        return list(_images(folder, folder, []))
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
    home = _category(root, category)
    skipped: list[Path] = []
    found = {
        part: _images(home / part, root, skipped)
        for part in (Path("train/good"), Path("test/good"))
    }
    anomalies: dict[str, tuple[Path, ...]] = {}
    for folder in _subfolders(home / "test"):
        if folder.name != "good":
            name = _nfc(folder.name)
            anomalies[name] = anomalies.get(name, ()) + _images(folder, root, skipped)
    if skipped:
        warnings.warn(
            f"left out {len(skipped)} link(s) that lead to a folder or out of {root}, such as "
            f"{skipped[0]}",
            stacklevel=4,
        )
    return Dataset(
        name=_nfc(home.resolve().name),
        train_normals=found[Path("train/good")],
        test_normals=found[Path("test/good")],
        anomalies={name: anomalies[name] for name in sorted(anomalies) if anomalies[name]},
    )


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
            raise UserError(f"{root} is a single data set; leave out `category={category!r}`")
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
        "test/CLASS"
    )


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return _ordered(
        (entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."), folder
    )


def _images(folder: Path, root: Path, skipped: list[Path]) -> tuple[Path, ...]:
    """The images below ``folder``, sorted; links out of ``root`` are added to ``skipped``."""
    if folder.is_dir() and not _inside(folder, root):
        raise UserError(
            f"{folder} is a link that leads out of {root}; name the folder that it leads to, or "
            "copy the images"
        )
    found: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=_raise):
        # os.walk does not enter linked folders: a link inside a class could lead anywhere, or in
        # a circle.
        skipped += [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]
        # Heat maps of an earlier prediction are no photographs.
        ours = {HEAT_MAPS} if PREDICTION in files else set()
        folders[:] = [name for name in folders if name[0] != "." and name not in ours]
        for name in files:
            path = Path(parent, name)
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES or not path.is_file():
                continue
            (found if _inside(path, root) else skipped).append(path)
    return tuple(_ordered(found, folder))


def _raise(error: OSError) -> None:
    # Without it os.walk passes over a folder that it may not list.
    if not isinstance(error, FileNotFoundError):
        raise error


def _unlistable(error: OSError) -> UserError:
    return UserError(f"{error.filename} cannot be listed ({error.strerror}); check its permissions")


def _inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def _ordered(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Sorted by relative path, in an order that is the same on every system."""

    def key(path: Path) -> tuple[str, str]:
        relative = path.relative_to(folder).as_posix()
        return _nfc(relative), relative

    return sorted(paths, key=key)


def _nfc(name: str) -> str:
    """The composed Unicode spelling of a name, which is the one that people type."""
    return unicodedata.normalize("NFC", name)
