"""The files that ``ahl predict`` writes: the table of scores, and the heat maps."""

import codecs
import contextlib
import csv
import errno
import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ahl_jax.common.errors import BadImageError, UserError
from ahl_jax.common.files import reason, replace_file
from ahl_jax.common.text import counted, printable
from ahl_jax.data.folder import HEAT_MAPS, PREDICTION
from ahl_jax.data.frame import Seen
from ahl_jax.data.images import read_display, without_skipping
from ahl_jax.distributed.host_arrays import digest
from ahl_jax.inference.heatmaps import heat_scale, overlay
from ahl_jax.inference.predictor import Predictor
from ahl_jax.inference.scorer import Outcome
from ahl_jax.inference.threshold import Cut

log = logging.getLogger(__name__)

_DIGITS = 6
"""Of the numbers in the table, after the point."""

_LONGEST = 255
"""Bytes of a file's name on most file systems."""

_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
"""Errors of a file system that does not take a name."""


@dataclass(frozen=True)
class NamedImage:
    """An image file, told from others by its place and content."""

    path: Path
    digest: str
    """The first 16 digits of the SHA-256 of its bytes: what replaces it is another image."""

    @property
    def key(self) -> tuple[str, str]:
        """What it has in common with no other image, by whatever path it is named."""
        return printable(self.path.resolve().as_posix()), self.digest


class Results:
    """The files that a prediction writes: ``predict.json``, ``scores.csv``, ``heat_maps/``.

    Args:
        folder: where they are; it is there already.
        predictor: the detector.
        cut: where decisions are made; None for none.
        heat_maps: whether to draw them.
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
        heat_maps: bool,
        lines: bool,
        tell: bool,
        overwrite: bool,
    ) -> None:
        self.folder, self.csv = folder, folder / "scores.csv"
        self._predictor, self.cut = predictor, cut
        self._heat_maps, self._lines, self._tell = heat_maps, lines, tell
        self.columns = ["path", "score", "probability", "decision", *predictor.heads, "sha256"]
        self.done: set[tuple[str, str]] = set()
        self._drawn: dict[Path, NamedImage] = {}
        self.anomalies = 0
        self._claim(overwrite)

    def _claim(self, overwrite: bool) -> None:
        calibration = self._predictor.calibration
        text = calibration.text() if calibration else ""
        about = {
            "detector": digest(self._predictor.scorer.arrays()),
            "fpr": self.cut.promised_fpr if self.cut else None,
            "threshold": self.cut.threshold if self.cut else None,
            "calibration": hashlib.sha256(text.encode()).hexdigest(),
        }
        path = self.folder / PREDICTION
        held = None if overwrite else _read_json(path)
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
        if held is not None and rows and about != about | held:
            log.info("%s decided anew, by another threshold", counted(len(rows), "row"))
            decided = self._decided([float(row[1]) for row in rows])
            for row, (probability, decision) in zip(rows, decided, strict=True):
                row[2:4] = str(probability), decision
        text = "".join(_line(row) for row in ([*self.columns], *rows))
        if overwrite or not self.csv.is_file() or self.csv.read_bytes() != text.encode():
            replace_file(self.csv, text)
        if held != about:
            replace_file(path, json.dumps(about, indent=2) + "\n")
        for row in rows:
            image = NamedImage(Path(row[0]), row[-1])
            self.done.add(image.key)
            self._heat_map(image)
        self.anomalies = sum(row[3] == "anomaly" for row in rows)

    def write(self, images: Sequence[NamedImage], found: Outcome) -> None:
        """Add the results of some images; the table last, so that it names nothing unfinished."""
        rows = list(self._rows(images, found))
        if self._heat_maps:
            for image, heat in zip(images, found.heat, strict=True):
                self._draw(image, heat)
        # Never made anew, as where the folder's disk is gone for a while.
        with self.csv.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            try:
                file.write("".join(_line([row[c] for c in self.columns]) for row in rows).encode())
                file.flush()
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise
        if self._lines:
            for row in rows:
                print(json.dumps(row, ensure_ascii=False), flush=True)
        if self._tell:
            for row in rows:
                log.info("%s: %s %s", row["path"], row["score"], row["decision"])
        self.done.update(image.key for image in images)
        self.anomalies += sum(row["decision"] == "anomaly" for row in rows)

    def _rows(self, images: Sequence[NamedImage], found: Outcome) -> Iterator[dict[str, Any]]:
        scores = [round(float(score), _DIGITS) for score in found.scores]
        decided = self._decided(scores)
        for image, score, each, heads in zip(images, scores, decided, found.heads, strict=True):
            row = {"path": printable(image.path.as_posix()), "score": score}
            row |= dict(zip(("probability", "decision"), each, strict=True))
            rounded = (round(float(value), _DIGITS) for value in heads)
            yield (
                row
                | dict(zip(self._predictor.heads, rounded, strict=True))
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

    def _heat_map(self, image: NamedImage) -> Path:
        """The file of an image's heat map."""
        target = self.folder / HEAT_MAPS / heat_map_name(image.path)
        # Another image may have that one: /a.png that of a.png, or an older one under its name.
        if self._drawn.setdefault(target, image) != image:
            target = target.with_name(f"{target.stem}.{image.digest}.png")
        return target

    def _draw(self, image: NamedImage, heat: Float[np.ndarray, "h w"]) -> None:
        calibration = self._predictor.calibration
        scale = heat_scale(calibration.locations if calibration else None, heat)
        content = io.BytesIO()
        try:
            picture = beside(
                read_display(image.path), heat, scale, self._predictor.seen(image.path)
            )
            Image.fromarray(picture).save(content, "PNG")
            target = self._heat_map(image)
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_file(target, content.getvalue())
        except BadImageError as error:
            # Gone since it was scored, as in a camera's ring buffer.
            log.warning("no heat map: %s", without_skipping(str(error)))
        except OSError as error:
            if error.errno not in _NAMES:
                raise
            log.warning("no heat map of %s (%s)", printable(image.path), reason(error))


def heat_map_name(path: Path) -> Path:
    """The path of an image's heat map, within the folder of them wherever the image is."""
    *folders, name = ["__" if part == ".." else part for part in path.parts if part != path.anchor]
    if len(os.fsencode(f"{name}.png")) > _LONGEST:
        start = os.fsencode(name)[: _LONGEST - 24].decode(errors="ignore")
        name = f"{start}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return Path(*folders, f"{name}.png")


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
        content = file.read_bytes()
    except FileNotFoundError:
        return []
    text = _decoded(content)
    lines = text.splitlines()
    mark = next((m for m in ",;\t" if lines and m in lines[0]), ",")
    found = list(csv.DictReader(io.StringIO(text), delimiter=mark))
    header = list(found[0]) if found else next(csv.reader(lines[:1], delimiter=mark), [*columns])
    if set(header) - {None} != set(columns):
        raise UserError(
            f"{file} is damaged (its columns are no longer {','.join(columns)}); restore it, give "
            "another `out`, or `overwrite=True` to replace it"
        )
    rows = [[row[name] for name in columns] for row in found if None not in row.values()]
    if mark == ";":
        # Where numbers have commas.
        rows = [[r[0], *(value.replace(",", ".") for value in r[1:])] for r in rows]
    whole = [row for row in rows if _is_whole(row)]
    if lost := len(found) - len(whole) - (not text.endswith("\n")):
        log.warning("%s of %s cannot be read; these images are scored again",
                    counted(lost, "row"), file)  # fmt: skip
    return whole


def _is_whole(row: Sequence[str]) -> bool:
    try:
        float(row[1])
        [float(value or 0) for value in (row[2], *row[4:-1])]
    except ValueError:
        return False
    return re.fullmatch("[0-9a-f]{16}", row[-1]) is not None


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
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it describes no prediction")
        return found
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{path} is damaged, so it is not known what gave the scores beside it; give another "
            "`out`, or `overwrite=True` to score all images again"
        ) from error


def beside(
    image: UInt8[np.ndarray, "h w 3"],
    heat: Float[np.ndarray, "h2 w2"],
    scale: tuple[float, float],
    seen: Seen,
) -> UInt8[np.ndarray, "h w2 3"]:
    """An image, and the same with its heat map over it, side by side."""
    gap = np.full((len(image), max(2, image.shape[1] // 64), 3), 255, np.uint8)
    return np.concatenate([image, gap, overlay(image, heat, scale, seen)], axis=1)


def _line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
