"""Images listed in a CSV file with the columns ``path,label,class,split``.

``path`` is relative to the file's folder, and in it. ``label`` is ``normal`` or ``anomaly`` (or 0
or 1). ``class`` names the kind of an anomaly, ``anomaly`` where it is empty. ``split`` is ``train``
or ``test`` for a normal, and ``test`` or empty for an anomaly: which anomalies training sees is
drawn from all of them.
"""

import csv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.images import SUFFIXES
from ahl_jax.data.types import Dataset

_LABELS = {"normal": False, "0": False, "anomaly": True, "1": True}
_NORMAL_CLASSES = ("", "normal", "good")


def load(config: DataConfig) -> Dataset:
    """The images that a CSV file lists, in its order.

    Raises:
        UserError: if the file cannot be read, a line is not as it should be, or a category is
            asked for.
    """
    file = Path(config.data)
    if config.category is not None:
        raise UserError(f"{file} has no categories; leave out `category={config.category!r}`")
    normals: dict[str, list[Path]] = {"train": [], "test": []}
    anomalies: dict[str, list[Path]] = {}
    seen: set[Path] = set()
    for where, row in rows(file, ("path", "label", "class", "split")):
        path = file_in(file.parent, row["path"], where)
        if path in seen:
            raise UserError(f"{where} lists {row['path']!r} once more; leave one of the lines out")
        seen.add(path)
        split, kind = row["split"], row["class"]
        anomalous = _LABELS.get(row["label"])
        if anomalous is None:
            raise UserError(f"{where} has the label {row['label']!r}; write normal or anomaly")
        if anomalous:
            if split not in ("", "test"):
                raise UserError(
                    f"{where} has an anomaly in the split {split!r}; leave it empty, because which "
                    "anomalies training sees is drawn from all (`shots`)"
                )
            if kind in ("normal", "good"):
                raise UserError(f"{where} has an anomaly of class {kind!r}; name its kind")
            anomalies.setdefault(kind or "anomaly", []).append(path)
        else:
            if split not in normals:
                raise UserError(f"{where} has the split {split!r}; write train or test")
            if kind not in _NORMAL_CLASSES:
                raise UserError(f"{where} has a normal of class {kind!r}; leave the class empty")
            normals[split].append(path)
    if not seen:
        raise UserError(f"{file} lists no images; write a line for each below its first one")
    return Dataset(
        name=file.stem,
        train_normals=tuple(normals["train"]),
        test_normals=tuple(normals["test"]),
        anomalies={name: tuple(anomalies[name]) for name in sorted(anomalies)},
    )


def rows(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """The lines of a CSV file: where each is, in words, and its values without outer blanks.

    Raises:
        UserError: if the file cannot be read, lacks a column, or a line lacks a value.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, strict=True, skipinitialspace=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            if absent := [name for name in columns if name not in header]:
                raise UserError(
                    f"{file} has no column {absent[0]!r}; its first line must name the columns "
                    f"{','.join(columns)}, with commas in between"
                )
            reader.fieldnames = header
            for row in reader:
                where = f"line {reader.line_num} of {file}"
                if any(row[name] is None for name in columns) or None in row:
                    raise UserError(f"{where} does not have {len(header)} values; mend it")
                yield where, {name: row[name].strip() for name in columns}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file} cannot be read as a CSV file ({reason}); mend it") from error


def file_in(folder: Path, name: str, where: str) -> Path:
    """The image of a name relative to a folder.

    Raises:
        UserError: if it is not there, is no image, or leads out of the folder.
    """
    path = folder / name
    parts = PurePosixPath(name)
    if not name or parts.is_absolute() or ".." in parts.parts:
        raise UserError(f"{where} has the path {name!r}; write one inside of {folder}")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{where} names {name!r}, which is not an image; leave the line out")
    if not path.is_file():
        raise UserError(f"{where} names {name!r}, which is not in {folder}; mend the path")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{where} names {name!r}, a link out of {folder}; put the file there")
    return path
