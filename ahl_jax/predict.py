"""``ahl predict``: scores, decisions and heat maps of image files, written as they come."""

import csv
import io
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from jaxtyping import Float, UInt8
from PIL import Image

from ahl_jax.calibration import FPR, Calibration, check_fpr
from ahl_jax.data.folder import images_below
from ahl_jax.data.images import iter_batches, read_display
from ahl_jax.data.records import ImageSource
from ahl_jax.errors import IncompleteError, UserError
from ahl_jax.features.progress import Progress
from ahl_jax.heatmaps import heat_scale, overlay
from ahl_jax.host_arrays import digest
from ahl_jax.inference import Outcome
from ahl_jax.predictor import Predictor, load
from ahl_jax.workdir import replace_file

log = logging.getLogger(__name__)

_POLL = 1.0
"""Seconds between two looks at a watched folder."""


@dataclass(frozen=True)
class Predict:
    """Score images with a trained detector; write scores.csv and a heat map for each.

    The same command goes on with one that was stopped: images that scores.csv has are left out.
    """

    workdir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WORKDIR")]
    """The folder that was given to the training."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """Image files, and folders with images at any depth."""

    out: Path
    """The folder for scores.csv and heat_maps/."""

    fpr: float = FPR
    """The rate of false positives among normal images that the threshold is set for."""

    heat_maps: bool = True
    """Draw where the anomaly is, beside each image; --no-heat-maps leaves it out."""

    json: bool = False
    """Print each result as a line of JSON on stdout, too."""

    watch: bool = False
    """Go on with the images that come into the folders, until stopped."""

    overwrite: bool = False
    """Replace the scores of another detector or threshold that --out holds."""


def run(command: Predict) -> None:
    """Run ``ahl predict``.

    Raises:
        UserError: if an input does not exist, or ``out`` holds the scores of another detector.
        IncompleteError: if images could not be read; all others are written by then.
    """
    check_fpr(command.fpr)
    if not command.images:
        raise UserError("no images are named; name image files or folders after WORKDIR")
    for path in command.images:
        if not path.exists():
            raise UserError(f"there is no file or folder {path}; check the path")
        if command.watch and not path.is_dir():
            raise UserError(f"{path} is a file; --watch takes folders")
    predictor = load(command.workdir)
    if predictor.calibration is None:
        try:
            predictor.calibrated()
        except UserError as error:
            log.warning("scores alone, no decisions: %s", error)
    results = Results(command, predictor)
    bad: dict[Path, str] = {}
    while command.watch:
        bad |= _settled(command, predictor, results, known=bad)
    bad = _all_of(command, predictor, results, list(found_images(command.images).items()))
    log.info(
        "%d images are in %s%s", len(results.done), results.csv,
        f", {results.anomalies} of them anomalies" if predictor.calibration else "",
    )  # fmt: skip
    if bad:
        for reason in bad.values():
            log.warning("left out: %s", reason)
        raise IncompleteError(f"{len(bad)} of the images could not be read; they are listed above")


def found_images(inputs: Sequence[Path]) -> dict[str, Path]:
    """The images that the inputs name, by the name that the results give them.

    That is the path below the folder that was named, or the name of the file; a number makes
    it unique.
    """
    named: dict[str, Path] = {}
    for given in inputs:
        below = images_below(given) if given.is_dir() else [given]
        for path in below:
            name = path.relative_to(given).as_posix() if given.is_dir() else path.name
            unique, number = name, 2
            while unique in named and named[unique] != path:
                unique, number = f"{number}/{name}", number + 1
            named[unique] = path
    return named


class Results:
    """The files that a prediction writes: ``predict.json``, ``scores.csv``, ``heat_maps/``.

    Args:
        command: what was asked for.
        predictor: the detector.

    Raises:
        UserError: if the folder holds the scores of another detector or threshold, or cannot be
            written to.
    """

    def __init__(self, command: Predict, predictor: Predictor) -> None:
        self.folder, self.csv = command.out, command.out / "scores.csv"
        self._command, self._predictor = command, predictor
        self.columns = ["path", "score", "probability", "decision", *predictor.heads]
        self.done: set[str] = set()
        self.anomalies = 0
        try:
            self._claim()
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def _claim(self) -> None:
        found = self._predictor.calibration
        about = {
            "detector": digest(self._predictor.scorer.arrays()),
            "fpr": found.promised(self._command.fpr) if found else None,
            "threshold": found.threshold(self._command.fpr) if found else None,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "predict.json"
        if path.is_file() and not self._command.overwrite:
            if json.loads(path.read_text(encoding="utf-8")) != about:
                raise UserError(
                    f"{self.folder} holds the scores of another detector or threshold; give "
                    "another --out, or --overwrite to replace them"
                )
        elif self.csv.exists() and not self._command.overwrite:
            raise UserError(
                f"{self.csv} is there already, and not of this detector; give another --out, or "
                "--overwrite to replace it"
            )
        else:
            replace_file(self.csv, _line(self.columns))
            replace_file(path, json.dumps(about, indent=2) + "\n")
        text = self.csv.read_text(encoding="utf-8")
        # What a kill cut short is written again.
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            replace_file(self.csv, whole)
        rows = list(csv.DictReader(io.StringIO(whole)))
        self.done = {row["path"] for row in rows}
        self.anomalies = sum(row["decision"] == "anomaly" for row in rows)

    def write(self, names: Sequence[str], paths: Sequence[ImageSource], found: Outcome) -> None:
        """Add the results of some images; the table last, so that it names nothing unfinished."""
        rows = list(_rows(names, found, self._predictor, self._command.fpr))
        try:
            if self._command.heat_maps:
                for name, path, heat in zip(names, paths, found.heat, strict=True):
                    self._draw(name, path, heat)
            with self.csv.open("a", encoding="utf-8", newline="") as file:
                file.write("".join(_line([row[c] for c in self.columns]) for row in rows))
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        if self._command.json:
            for row in rows:
                print(json.dumps(row, ensure_ascii=False), flush=True)
        self.done.update(names)
        self.anomalies += sum(row["decision"] == "anomaly" for row in rows)

    def _draw(self, name: str, path: ImageSource, heat: Float[np.ndarray, "h w"]) -> None:
        calibration = self._predictor.calibration
        scale = heat_scale(calibration.locations if calibration else None, heat)
        target = self.folder / "heat_maps" / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.fromarray(beside(read_display(path), heat, scale)).save(content, "PNG")
        replace_file(target, content.getvalue())


def beside(
    image: UInt8[np.ndarray, "h w 3"], heat: Float[np.ndarray, "h2 w2"], scale: tuple[float, float]
) -> UInt8[np.ndarray, "h w2 3"]:
    """An image, and the same with its heat map over it, side by side."""
    gap = np.full((len(image), max(2, image.shape[1] // 64), 3), 255, np.uint8)
    return np.concatenate([image, gap, overlay(image, heat, scale)], axis=1)


def _rows(
    names: Sequence[str], found: Outcome, predictor: Predictor, fpr: float
) -> Iterator[dict[str, Any]]:
    calibration: Calibration | None = predictor.calibration
    probability = calibration.probability(found.scores) if calibration else None
    for i, name in enumerate(names):
        row = {"path": name, "score": round(float(found.scores[i]), 6)}
        row["probability"] = "" if probability is None else round(float(probability[i]), 6)
        above = calibration is not None and found.scores[i] > calibration.threshold(fpr)
        row["decision"] = ("anomaly" if above else "normal") if calibration else ""
        heads = (round(float(value), 6) for value in found.heads[i])
        yield row | dict(zip(predictor.heads, heads, strict=True))


def _all_of(
    command: Predict, predictor: Predictor, results: Results, images: list[tuple[str, Path]]
) -> dict[Path, str]:
    """Score those that are not done; the ones that cannot be read, with the reason."""
    left = [(name, path) for name, path in images if name not in results.done]
    bad: dict[Path, str] = {}

    def note(path: ImageSource, reason: str) -> None:
        assert isinstance(path, Path)
        # Without the advice, which is for data sets.
        bad[path] = reason.rsplit("; ", 1)[0]
        if command.watch:
            log.warning("left out: %s", bad[path])

    features = predictor.config.features
    batches = iter_batches(
        [path for _, path in left],
        features.image_size,
        features.image_batch,
        skip_bad=True,
        on_bad=note,
    )
    # Always the same program, so that a run that was stopped ends as one that was not; but not for
    # the single images that a camera writes.
    bucket = None if command.watch else features.image_batch
    label = None if command.watch or not left else "images"
    with Progress(len(left), label, cached=len(images) - len(left)) as bar:
        for chosen, arrays in batches:
            names, paths = zip(*(left[i] for i in chosen), strict=True)
            results.write(names, paths, predictor.of_arrays(arrays, bucket=bucket))
            bar.update(len(names))
    return bad


def _settled(
    command: Predict, predictor: Predictor, results: Results, *, known: dict[Path, str]
) -> dict[Path, str]:
    """Wait, then score new files, unless they are still being written."""
    before = {path: _stamp(path) for path in found_images(command.images).values()}
    time.sleep(_POLL)
    ready = [
        (name, path)
        for name, path in found_images(command.images).items()
        if path not in known and before.get(path) == _stamp(path) is not None
    ]
    return _all_of(command, predictor, results, ready)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write to {folder} ({(error.strerror or str(error)).lower()}); give --out another "
        "folder, or make room"
    )
