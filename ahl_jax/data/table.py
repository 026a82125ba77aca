"""Images listed in a CSV file with the columns ``path,label`` and maybe ``class,split,mask``.

``path`` and ``mask`` are relative to the file's folder, and in it. ``label`` is one of
``NORMAL_WORDS`` or ``ANOMALY_WORDS``, or 0 or 1. ``class`` names the kind of an anomaly,
``anomaly`` where it is empty. ``split`` is ``train`` or ``test``. Normals without one are split
here; anomalies without one are drawn from, unless others are labelled by ``train``.
"""

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ahl_jax.common.errors import UserError
from ahl_jax.common.files import as_written, is_inside
from ahl_jax.common.text import printable
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.formats import SUFFIXES, remedy
from ahl_jax.data.splits import split_normals
from ahl_jax.data.types import ANOMALY, ANOMALY_WORDS, NORMAL_WORDS, Dataset

_LABELS = dict.fromkeys((*NORMAL_WORDS, "0"), False) | dict.fromkeys((*ANOMALY_WORDS, "1"), True)
_DELIMITERS = ",;\t"

_SEPARATOR = re.compile(rf'"?sep=[{_DELIMITERS}]"?\s*', re.IGNORECASE)
"""A first line that tells spreadsheets the delimiter."""


def load(config: DataConfig) -> Dataset:
    """The images that a CSV file lists, in its order.

    Raises:
        UserError: if the file cannot be read, a line is not as it should be, or a category is
            asked for.
    """
    file = Path(config.data)
    if config.category is not None:
        raise UserError(f"{file} has no categories; leave out `category={config.category!r}`")
    normals: dict[str, list[Path]] = {"train": [], "test": [], "": []}
    anomalies: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}, "": {}}
    seen: set[Path] = set()
    for where, row in rows(file, ("path", "label"), ("class", "split", "mask")):
        path = file_in(file.parent, row["path"], where)
        if path in seen:
            raise UserError(
                f"{where} lists '{printable(row['path'])}' once more; leave one of the lines out"
            )
        seen.add(path)
        split, kind = row["split"].casefold(), row["class"]
        anomalous = _LABELS.get(row["label"].casefold())
        if anomalous is None:
            raise UserError(f"{where} has the label {row['label']!r}; write normal or anomaly")
        if split not in normals:
            raise UserError(f"{where} has the split {row['split']!r}; write train or test")
        if anomalous:
            if kind.casefold() in NORMAL_WORDS:
                raise UserError(f"{where} has an anomaly of class {kind!r}; name its kind")
            anomalies[split].setdefault(kind or ANOMALY, []).append(path)
            if row["mask"]:
                file_in(file.parent, row["mask"], where)
        else:
            if kind and kind.casefold() not in NORMAL_WORDS:
                raise UserError(f"{where} has a normal of class {kind!r}; leave the class empty")
            normals[split].append(path)
    if not seen:
        raise UserError(f"{file} lists no images; write a line for each below its first one")
    if normals[""]:
        try:
            train, test = split_normals(normals[""])
        except UserError as error:
            raise UserError(f"{file} leaves the split of normals empty, and {error}") from error
        normals["train"] += train
        normals["test"] += test
    for kind, paths in anomalies[""].items():
        anomalies["test"].setdefault(kind, []).extend(paths)
    drawn, labelled = (
        {name: tuple(classes[name]) for name in sorted(classes)}
        for classes in (anomalies["test"], anomalies["train"])
    )
    return Dataset(file.stem, tuple(normals["train"]), tuple(normals["test"]), drawn, labelled)


def masks(file: Path) -> dict[Path, Path]:
    """The masks that a CSV file lists, by their images.

    Raises:
        UserError: as ``load`` does.
    """
    return {
        file_in(file.parent, row["path"], where): file_in(file.parent, row["mask"], where)
        for where, row in rows(file, ("path",), ("mask",))
        if row["mask"]
    }


def rows(
    file: Path, columns: tuple[str, ...], others: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """The lines of a CSV file: where each is, in words, and its values without outer blanks.

    Commas, semicolons or tabs divide them. Lines without any value are left out.

    Args:
        file: the CSV file.
        columns: those that it must have, in any case.
        others: those that it may have; their values are empty where it has not.

    Raises:
        UserError: if the file cannot be read, lacks a column, or a line lacks a value.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            first, before = text.readline(), 1
            if _SEPARATOR.fullmatch(first):
                first, before = text.readline(), 2
            names, delimiter = max(_headers(first), key=lambda each: len(each[0]))
            header = [name.strip().casefold() for name in names]
            if absent := [name for name in columns if name not in header]:
                raise UserError(
                    f"{file} has no column {absent[0]!r}; its first line must name the columns "
                    f"{','.join((*columns, *others))}, with commas, semicolons or tabs in between"
                )
            reader = csv.reader(text, delimiter=delimiter, strict=True, skipinitialspace=True)
            wanted = [name for name in (*columns, *others) if name in header]
            for values in reader:
                if not any(value.strip() for value in values):
                    continue
                where = f"line {reader.line_num + before} of {file}"
                row = dict(zip(header, values, strict=False))
                if len(values) > len(header) or not row.keys() >= {*wanted}:
                    raise UserError(f"{where} does not have {len(header)} values; mend it")
                yield (
                    where,
                    {name: as_written(row.get(name, "").strip()) for name in (*columns, *others)},
                )
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} cannot be read as a CSV file (it is not in UTF-8); save it as CSV UTF-8"
        ) from error
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file} cannot be read as a CSV file ({reason}); mend it") from error


def _headers(line: str) -> Iterator[tuple[list[str], str]]:
    """The names in a first line by each delimiter, and the delimiter."""
    for delimiter in _DELIMITERS:
        reader = csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True)
        yield next(reader, []), delimiter


def file_in(folder: Path, name: str, where: str) -> Path:
    """The image of a name relative to a folder, also as Windows writes it.

    Raises:
        UserError: if it is not there, is no image, or leads out of the folder.
    """
    if "\\" in name and os.sep == "/" and not (folder / name).is_file():
        name = name.replace("\\", "/")
    path, shown = folder / name, f"'{printable(name)}'"
    parts = PurePosixPath(name)
    if not name or parts.is_absolute() or ".." in parts.parts:
        raise UserError(f"{where} has the path {shown}; write one inside of {folder}")
    if path.suffix.lower() not in SUFFIXES:
        how = remedy(name) or "leave the line out"
        raise UserError(f"{where} names {shown}, which is not an image that can be read; {how}")
    if not path.is_file():
        raise UserError(f"{where} names {shown}, which is not in {folder}; mend the path")
    if not is_inside(path, folder):
        raise UserError(f"{where} names {shown}, a link out of {folder}; put the file there")
    return path
