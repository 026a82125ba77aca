"""VisA as it is unpacked: ``ROOT/CATEGORY/Data/Images/{Normal, Anomaly}``.

The split is that of ``ROOT/split_csv/1cls.csv`` where the archive's own file is there. Without it
the normals of a category split 75/25. All anomalies are of the one class ``anomaly``.
"""

from collections.abc import Sequence
from pathlib import Path

from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.formats import SUFFIXES, warn_of_unread
from ahl_jax.data.splits import split_normals
from ahl_jax.data.table import file_in, rows
from ahl_jax.data.types import Dataset

_SPLIT = Path("split_csv/1cls.csv")
_IMAGES = Path("Data/Images")


def is_visa(root: Path) -> bool:
    """Whether a folder is VisA, or one of its categories."""
    try:
        return (root / _SPLIT).is_file() or bool(_homes(root))
    except OSError:
        return False  # whoever lists the folder next reports it


def categories(root: Path) -> list[str]:
    """The names of the categories of VisA; none where the folder is one of them."""
    if (root / _SPLIT).is_file():
        return list(dict.fromkeys(row["object"] for _, row in rows(root / _SPLIT, ("object",))))
    names = list(_homes(root))
    return names if len(names) > 1 else []


def load(config: DataConfig) -> Dataset:
    """The images of one category.

    Raises:
        UserError: if the category is missing or unknown, or an image or a value is not as it
            should be.
    """
    root = Path(config.data)
    if (root / _SPLIT).is_file():
        return _by_csv(root, config.category)
    homes = _homes(root)
    home = homes[_chosen(list(homes), config.category, root)]
    warn_of_unread((home / _IMAGES).glob("*/*"), home)
    normals = _images(home, "Normal")
    try:
        train, test = split_normals(normals)
    except UserError as error:
        raise UserError(f"in {home / _IMAGES / 'Normal'} {error}") from error
    return _dataset(home.resolve().name, train, test, _images(home, "Anomaly"))


def _by_csv(root: Path, category: str | None) -> Dataset:
    columns = ("object", "split", "label", "image")
    table = list(rows(root / _SPLIT, columns))
    names = list(dict.fromkeys(row["object"] for _, row in table))
    name = _chosen(names, category, root)
    found: dict[tuple[str, str], list[Path]] = {
        (split, label): [] for split in ("train", "test") for label in ("normal", "anomaly")
    }
    for where, row in table:
        if row["object"] != name:
            continue
        if (row["split"], row["label"]) not in found:
            raise UserError(
                f"{where} has the split {row['split']!r} and the label {row['label']!r}; they must "
                "be train or test, and normal or anomaly"
            )
        found[row["split"], row["label"]].append(file_in(root, row["image"], where))
    anomalies = found["train", "anomaly"] + found["test", "anomaly"]
    return _dataset(name, found["train", "normal"], found["test", "normal"], anomalies)


def _dataset(
    name: str, train: Sequence[Path], test: Sequence[Path], anomalies: Sequence[Path]
) -> Dataset:
    kinds = {"anomaly": tuple(anomalies)} if anomalies else {}
    return Dataset(name, tuple(train), tuple(test), kinds)


def _homes(root: Path) -> dict[str, Path]:
    """Category -> its folder; the folder itself where it is one category."""
    if (root / _IMAGES / "Normal").is_dir():
        return {"": root}
    return {
        folder.name: folder
        for folder in sorted(root.iterdir())
        if (folder / _IMAGES / "Normal").is_dir() and not folder.is_symlink()
    }


def _chosen(names: list[str], category: str | None, root: Path) -> str:
    if names == [""] and category is not None:
        raise UserError(f"{root} is a single data set; leave out `category={category!r}`")
    if category is None and len(names) == 1:
        return names[0]
    if category in names:
        return category
    if category is None:
        raise UserError(
            f"{root} holds several categories; choose one with `category`: {', '.join(names)}"
        )
    raise UserError(f"{root} has no category {category!r}; it has: {', '.join(names)}")


def _images(home: Path, part: str) -> list[Path]:
    folder = home / _IMAGES / part
    if not folder.is_dir():
        return []
    where = f"the folder {folder}"
    return [
        file_in(home, path.relative_to(home).as_posix(), where)
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
