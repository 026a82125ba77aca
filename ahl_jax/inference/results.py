"""The files that ``ahl predict`` writes: the table of scores, and the heat maps."""

import codecs
import contextlib
import csv
import dataclasses
import errno
import hashlib
import io
import itertools
import json
import logging
import math
import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image

from ahl_jax.common.errors import BadImageError, UserError
from ahl_jax.common.files import (
    as_written,
    csv_line,
    is_inside,
    make_folder,
    read_file,
    read_json,
    reason,
    replace_file,
)
from ahl_jax.common.remote import objects, url_of
from ahl_jax.common.text import counted, printable
from ahl_jax.data.copies import copy_of, origin
from ahl_jax.data.folder import OUTPUTS, PREDICTION
from ahl_jax.data.images import seen_size, without_skipping
from ahl_jax.distributed.host_arrays import digest
from ahl_jax.inference.heatmaps import Region, regions, upsampled
from ahl_jax.inference.predictor import Predictor
from ahl_jax.inference.scorer import Outcome
from ahl_jax.inference.threshold import Cut

log = logging.getLogger(__name__)

_DIGITS = 6
"""Of the numbers in the table, after the point."""

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)

_DEFECT = ("defect_area", "defect_left", "defect_top", "defect_width", "defect_height")
"""The columns of what is outlined: its share of the image, and a rectangle around the hottest."""

_SUFFIXES = {"overlay": ".png", "mask": ".png", "boxes": ".json", "raw": ".tif"}
"""Of the files of ``OUTPUTS``."""

_LONGEST = 230
"""Bytes of a file's name, without digest and suffix; most file systems take 255 in all."""

_LARGEST = 2**31
"""Bytes of a table: a row in every second for four months."""

_PAUSE = 10.0
"""Seconds between two writings of a table in object storage."""

_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
"""Errors of a file system that does not take a name."""


@dataclass(frozen=True)
class NamedImage:
    """An image file, told from others by its place and content."""

    path: Path
    digest: str
    """The first ``DIGITS`` of the SHA-256 of its bytes: what replaces it is another image."""

    @property
    def key(self) -> tuple[str, str]:
        """What it has in common with no other image, by whatever path it is named."""
        # Unlike ``resolve`` it takes any name, as tables of strangers have.
        return printable(os.path.realpath(self.path)), self.digest


class Results:
    """The files that a prediction writes: ``predict.json``, ``scores.csv``, and ``OUTPUTS``.

    Args:
        folder: where they are; it is there already, unless it is in object storage.
        predictor: the detector.
        cut: where decisions are made; None for none.
        save: which of ``OUTPUTS`` to write; masks and boxes take a calibration.
        lines: whether to print each result as a line of JSON.
        tell: whether to log each result.
        overwrite: replace what another detector gave.

    Scores of this detector with other decisions are kept, and decided anew.

    Raises:
        UserError: if the folder holds the scores of another detector, or cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        predictor: Predictor,
        cut: Cut | None,
        *,
        save: Sequence[str],
        lines: bool,
        tell: bool,
        overwrite: bool,
    ) -> None:
        self.folder, self.csv = folder, folder / "scores.csv"
        self._predictor, self.cut = predictor, cut
        self._save, self._lines, self._tell = save, lines, tell
        self.columns = [
            "path", "score", "probability", "decision", *predictor.heads, *_DEFECT, "sha256",
        ]  # fmt: skip
        # The images with a row, and the paths of what is drawn of them.
        self.done: dict[tuple[str, str], Path] = {}
        self._drawn: dict[Path, NamedImage] = {}
        self._there: set[str] = set()
        self.anomalies = 0
        self._table: bytearray | None = None
        self._written, self._due = 0, 0.0
        self._claim(overwrite)

    def _claim(self, overwrite: bool) -> None:
        calibration = self._predictor.calibration
        text = calibration.text() if calibration else ""
        path = self.folder / PREDICTION
        held = None if overwrite else _read_json(path)
        begun = _begun(held)
        about = {
            "detector": digest(self._predictor.scorer.arrays()),
            "fpr": self.cut.promised_fpr if self.cut else None,
            "threshold": self.cut.threshold if self.cut else None,
            "calibration": hashlib.sha256(text.encode()).hexdigest(),
            "folder": str(begun),
        }
        rows = [] if overwrite else read_table(self.csv, self.columns)
        if held is not None and held.get("detector") != about["detector"]:
            raise UserError(
                f"{self.folder} holds the scores of another detector; give another `out`, or "
                "`overwrite=True` to replace them"
            )
        if held is None and rows:
            raise UserError(
                f"{self.csv} is there already, and not of this detector; give another `out`, or "
                "`overwrite=True` to replace it"
            )
        # Earlier versions did not say which calibration it was.
        decided_by = ("fpr", "threshold", "calibration")
        if held is not None and rows and any(held.get(k, about[k]) != about[k] for k in decided_by):
            log.info("%s decided anew, by another threshold", counted(len(rows), "row"))
            decided = self._decided([float(row[1]) for row in rows])
            for row, (probability, decision) in zip(rows, decided, strict=True):
                row[2:4] = str(probability), decision
        text = "".join(map(csv_line, ([*self.columns], *rows)))
        if overwrite or not self.csv.is_file() or self.csv.read_bytes() != text.encode():
            replace_file(self.csv, text)
        if held != about:
            replace_file(path, json.dumps(about, indent=2) + "\n")
        if url_of(self.csv):
            self._table = bytearray(text.encode())
            self._written = len(self._table)
        for row in rows:
            image = NamedImage(copy_of(row[0]), row[-1])
            placed = dataclasses.replace(image, path=begun / image.path)
            self.done.setdefault(placed.key, self._name(image))
        if rows:
            folders = [OUTPUTS[kind] for kind in self._save]
            # Names as the table has them.
            self._there = {printable(f"{a}/{b}") for a in folders for b in self._files(a)}
        self.anomalies = sum(row[3] == "anomaly" for row in rows)

    def _files(self, folder: str) -> Collection[str]:
        """The paths of the files below a folder of results."""
        path = self.folder / folder
        if url_of(path):
            return objects(path)
        return [each.relative_to(path).as_posix() for each in path.rglob("*")]

    def wanted(self, image: NamedImage) -> bool:
        """Whether an image has no row, or one of the files that are to be written is missing."""
        return image.key not in self.done or bool(self._missing(image))

    def _missing(self, image: NamedImage) -> list[str]:
        """What of ``OUTPUTS`` is to be written of an image: where it has no row, all of it."""
        name = self.done.get(image.key)
        return [
            kind
            for kind in self._save
            if name is None or printable(_file(kind, name)) not in self._there
        ]

    def write(self, images: Sequence[NamedImage], found: Outcome) -> None:
        """Add the results of some images; the table last, so that it names nothing unfinished.

        Of one that has a row, only what is missing beside it.
        """
        hot = list(map(self._regions, images, found.heat))
        new = [image.key not in self.done for image in images]
        rows = list(itertools.compress(self._rows(images, found, hot), new))
        for image, heat, where in zip(images, found.heat, hot, strict=True):
            name = self.done.get(image.key) or self._name(image)
            for kind in self._missing(image):
                self._write(kind, image, name, heat, where)
        self._append("".join(csv_line(row[c] for c in self.columns) for row in rows).encode())
        if self._lines:
            for row in rows:
                print(json.dumps(row, ensure_ascii=False), flush=True)
        if self._tell:
            for row in rows:
                log.info("%s: %s %s", row["path"], row["score"], row["decision"])
        for image in images:
            self.done.setdefault(image.key, self._name(image))
        self.anomalies += sum(row["decision"] == "anomaly" for row in rows)

    def close(self) -> None:
        """Write the rows that are not written yet."""
        if self._table and self._written < len(self._table):
            replace_file(self.csv, bytes(self._table))
            self._written = len(self._table)

    def _append(self, lines: bytes) -> None:
        """Write rows; to object storage, where nothing can be appended to, all of them at times."""
        if self._table is not None:
            self._table += lines
            if time.monotonic() > self._due:
                self.close()
                self._due = time.monotonic() + _PAUSE
            return
        # Never made anew, as where the folder's disk is gone for a while.
        with self.csv.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            try:
                file.write(lines)
                file.flush()
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise

    def _rows(
        self, images: Sequence[NamedImage], found: Outcome, hot: Sequence[Sequence[Region] | None]
    ) -> Iterator[dict[str, Any]]:
        scores = [round(float(score), _DIGITS) for score in found.scores]
        decided = self._decided(scores)
        for image, score, each, heads, where in zip(
            images, scores, decided, found.heads, hot, strict=True
        ):
            row = {"path": printable(origin(image.path)), "score": score}
            row |= dict(zip(("probability", "decision"), each, strict=True))
            rounded = (round(float(value), _DIGITS) for value in heads)
            yield (
                row
                | dict(zip(self._predictor.heads, rounded, strict=True))
                | _defect(where)
                | {"sha256": image.digest}
            )

    def _decided(self, scores: Sequence[float]) -> Iterator[tuple[float | str, str]]:
        """Probabilities and decisions by scores as the table has them, so that it can follow."""
        calibration, cut = self._predictor.calibration, self.cut
        values = calibration.probability(np.array(scores)) if calibration else None
        for i, score in enumerate(scores):
            above = cut is not None and score > round(cut.threshold, _DIGITS)
            yield (
                "" if values is None else round(float(values[i]), _DIGITS),
                ("anomaly" if above else "normal") if cut else "",
            )

    def _name(self, image: NamedImage) -> Path:
        """The path of what is drawn of an image, within a folder of ``OUTPUTS``."""
        name = output_name(Path(origin(image.path).replace("://", "/")))
        # Another image may have that one: a.jpg or /a.png that of a.png, or an older one of it.
        if self._drawn.setdefault(name, image) != image:
            name = name.with_name(f"{name.name}.{image.digest}")
        return name

    def _regions(self, image: NamedImage, heat: Float[np.ndarray, "h w"]) -> list[Region] | None:
        """The regions that are outlined; None where that is not known."""
        calibration = self._predictor.calibration
        if calibration is None:
            return None
        try:
            width, height = seen_size(image.path)[0]
        except BadImageError:
            # Gone since it was scored, as in a camera's ring buffer.
            return None
        seen = self._predictor.frame.seen(width, height)
        return regions(heat, calibration.contour, height, width, seen)

    def _write(
        self,
        kind: str,
        image: NamedImage,
        name: Path,
        heat: Float[np.ndarray, "h w"],
        where: Sequence[Region] | None,
    ) -> None:
        file = _file(kind, name)
        try:
            content = self._content(kind, image, heat, where)
            target = self.folder / file
            if not is_inside(target, self.folder):
                raise UserError(
                    f"{target.parent} is a link out of {self.folder}; put a folder there, or give "
                    "another `out`"
                )
            make_folder(target.parent)
            replace_file(target, content)
            self._there.add(printable(file))
        except BadImageError as error:
            log.warning("no %s: %s", kind, without_skipping(str(error)))
        except OSError as error:
            if error.errno not in _NAMES:
                raise
            log.warning("no %s of %s (%s)", kind, printable(image.path), reason(error))

    def _content(
        self,
        kind: str,
        image: NamedImage,
        heat: Float[np.ndarray, "h w"],
        where: Sequence[Region] | None,
    ) -> bytes:
        """The bytes of what is written of an image."""
        if kind == "boxes":
            return f"{json.dumps([each._asdict() for each in where or ()])}\n".encode()
        if kind == "overlay":
            return _encoded(self._predictor.picture(image.path, heat), "PNG")
        calibration, (width, height) = self._predictor.calibration, seen_size(image.path)[0]
        seen = self._predictor.frame.seen(width, height)
        values = upsampled(heat, height, width, seen)
        if kind == "raw":
            return _encoded(values, "TIFF")
        assert calibration is not None
        return _encoded(np.uint8(255) * (values > calibration.contour), "PNG")


def begun_in(folder: Path, *, overwrite: bool) -> Path:
    """Where relative paths of a table of scores begin: where its first images were named.

    Args:
        folder: the table's.
        overwrite: whether the table is about to be replaced.

    Raises:
        UserError: if that cannot be read.
    """
    return _begun(None if overwrite else _read_json(folder / PREDICTION))


def _begun(held: dict[str, Any] | None) -> Path:
    """The same by what ``PREDICTION`` holds, if it is there."""
    begun = held and held.get("folder")
    there = isinstance(begun, str) and "\0" not in begun and Path(begun).is_dir()
    return Path(str(begun)) if there else Path.cwd()


def _file(kind: str, name: Path) -> str:
    """The path of what is written of an image, within the folder of results."""
    return f"{OUTPUTS[kind]}/{name.as_posix()}{_SUFFIXES[kind]}"


def output_name(path: Path) -> Path:
    """The path of what is drawn of an image, without a suffix, wherever the image is."""
    folders = ["__" if part == ".." else part for part in path.parts[:-1] if part != path.anchor]
    name = path.stem
    if len(os.fsencode(name)) > _LONGEST:
        start = os.fsencode(name)[: _LONGEST - 17].decode(errors="ignore")
        name = f"{start}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return Path(*folders, name)


def read_table(file: Path, columns: Sequence[str]) -> list[list[str]]:
    """The rows of a table of scores, also as a spreadsheet writes it.

    What a kill cut short, or a program changed so that it is no score, is left out: such images are
    scored again.

    Args:
        file: the table; it may not be there.
        columns: the table's.

    Raises:
        UserError: if it is no such table.
    """
    try:
        text = _decoded(read_file(file, _LARGEST))
        lines = text.splitlines()
        mark = next((m for m in ",;\t" if lines and m in lines[0]), ",")
        found = list(csv.DictReader(io.StringIO(text), delimiter=mark))
        header = (
            list(found[0]) if found else next(csv.reader(lines[:1], delimiter=mark), [*columns])
        )
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{file} cannot be read ({reason(error)}); give another `out`, or `overwrite=True` to "
            "replace it"
        ) from error
    # Earlier versions had no columns of defects.
    if set(header) - {None} | {*_DEFECT} != set(columns):
        raise UserError(
            f"{file} is damaged (its columns are no longer {','.join(columns)}); restore it, give "
            "another `out`, or `overwrite=True` to replace it"
        )
    rows = [
        [as_written(row.get(name, "")) for name in columns]
        for row in found
        if None not in row.values()
    ]
    if mark == ";":
        # Where numbers have commas.
        rows = [[r[0], *(value.replace(",", ".") for value in r[1:])] for r in rows]
    whole = [row for row in rows if _is_whole(row)]
    if lost := len(found) - len(whole) - (not text.endswith("\n")):
        log.warning("%s of %s cannot be read; what is missing is scored again",
                    counted(lost, "row"), file)  # fmt: skip
    return whole


def _is_whole(row: Sequence[str]) -> bool:
    path, score, probability, decision, *others, digest = row
    numbers = [score, *filter(None, (probability, *others))]
    return (
        "\0" not in path
        and all(_NUMBER.fullmatch(each) and math.isfinite(float(each)) for each in numbers)
        and decision in ("anomaly", "normal", "")
        and re.fullmatch("[0-9a-f]{16}", digest) is not None
    )


def _decoded(content: bytes) -> str:
    """Text in the encodings that spreadsheets write."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(read_file(path).decode())
        if not isinstance(found, dict):
            raise ValueError("it describes no prediction")
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged, so it is not known what gave the scores beside it; give another "
            "`out`, or `overwrite=True` to score all images again"
        ) from error


def _defect(where: Sequence[Region] | None) -> dict[str, float | str]:
    """The columns of what is outlined; empty where that is not known or there is none."""
    if not where:
        return dict.fromkeys(_DEFECT, "") | ({} if where is None else {_DEFECT[0]: 0.0})
    box = where[0][:4]
    area = round(sum(each.area for each in where), _DIGITS)
    return dict(zip(_DEFECT, (area, *box), strict=True))


def _encoded(pixels: Shaped[np.ndarray, "h w *c"], form: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, form)
    return content.getvalue()
