"""The files that ``ahl predict`` writes: the table of scores, and the heat maps."""

import csv
import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ahl_jax.common.errors import UserError
from ahl_jax.common.files import replace_file
from ahl_jax.data.images import read_display
from ahl_jax.distributed.host_arrays import digest
from ahl_jax.inference.heatmaps import heat_scale, overlay
from ahl_jax.inference.predictor import Predictor
from ahl_jax.inference.scorer import Outcome
from ahl_jax.inference.threshold import Calibration

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NamedImage:
    """An image file, told from others by its place and content."""

    path: Path
    digest: str
    """The first 16 digits of the SHA-256 of its bytes: what replaces it is another image."""

    @property
    def key(self) -> tuple[Path, str]:
        """What it has in common with no other image, by whatever path it is named."""
        return self.path.resolve(), self.digest


class Results:
    """The files that a prediction writes: ``predict.json``, ``scores.csv``, ``heat_maps/``.

    Args:
        folder: where they are; it is there already.
        predictor: the detector.
        fpr: what the threshold is set for.
        heat_maps: whether to draw them.
        lines: whether to print each result as a line of JSON.
        tell: whether to log each result.
        overwrite: replace what another detector or threshold gave.

    Raises:
        UserError: if the folder holds the scores of another detector or threshold, or cannot be
            written to.
    """

    def __init__(
        self,
        folder: Path,
        predictor: Predictor,
        fpr: float,
        *,
        heat_maps: bool,
        lines: bool,
        tell: bool,
        overwrite: bool,
    ) -> None:
        self.folder, self.csv = folder, folder / "scores.csv"
        self._predictor, self._fpr = predictor, fpr
        self._heat_maps, self._lines, self._tell = heat_maps, lines, tell
        self.columns = ["path", "score", "probability", "decision", *predictor.heads, "sha256"]
        self.done: set[tuple[Path, str]] = set()
        self._drawn: dict[Path, NamedImage] = {}
        self.anomalies = 0
        self._claim(overwrite)

    def _claim(self, overwrite: bool) -> None:
        found = self._predictor.calibration
        about = {
            "detector": digest(self._predictor.scorer.arrays()),
            "fpr": found.promised(self._fpr) if found else None,
            "threshold": found.threshold(self._fpr) if found else None,
        }
        path = self.folder / "predict.json"
        if path.is_file() and not overwrite:
            if json.loads(path.read_text(encoding="utf-8")) != about:
                raise UserError(
                    f"{self.folder} holds the scores of another detector or threshold; give "
                    "another `out`, or `overwrite=True` to replace them"
                )
        elif self.csv.exists() and not overwrite:
            raise UserError(
                f"{self.csv} is there already, and not of this detector; give another `out`, or "
                "`overwrite=True` to replace it"
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
        for row in rows:
            image = NamedImage(Path(row["path"]), row["sha256"])
            self.done.add(image.key)
            self._heat_map(image)
        self.anomalies = sum(row["decision"] == "anomaly" for row in rows)

    def write(self, images: Sequence[NamedImage], found: Outcome) -> None:
        """Add the results of some images; the table last, so that it names nothing unfinished."""
        rows = list(_rows(images, found, self._predictor, self._fpr))
        if self._heat_maps:
            for image, heat in zip(images, found.heat, strict=True):
                self._draw(image, heat)
        with self.csv.open("a", encoding="utf-8", newline="") as file:
            file.write("".join(_line([row[c] for c in self.columns]) for row in rows))
        if self._lines:
            for row in rows:
                print(json.dumps(row, ensure_ascii=False), flush=True)
        if self._tell:
            for row in rows:
                log.info("%s: %s %s", row["path"], row["score"], row["decision"])
        self.done.update(image.key for image in images)
        self.anomalies += sum(row["decision"] == "anomaly" for row in rows)

    def _heat_map(self, image: NamedImage) -> Path:
        """The file of an image's heat map, within the folder, wherever the image is."""
        path = image.path
        parts = ["__" if part == ".." else part for part in path.parts if part != path.anchor]
        target = self.folder.joinpath("heat_maps", *parts[:-1], f"{parts[-1]}.png")
        # Another image may have that one: /a.png that of a.png, or an older one under its name.
        if self._drawn.setdefault(target, image) != image:
            target = target.with_name(f"{parts[-1]}.{image.digest}.png")
        return target

    def _draw(self, image: NamedImage, heat: Float[np.ndarray, "h w"]) -> None:
        calibration = self._predictor.calibration
        scale = heat_scale(calibration.locations if calibration else None, heat)
        target = self._heat_map(image)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.fromarray(beside(read_display(image.path), heat, scale)).save(content, "PNG")
        replace_file(target, content.getvalue())


def beside(
    image: UInt8[np.ndarray, "h w 3"], heat: Float[np.ndarray, "h2 w2"], scale: tuple[float, float]
) -> UInt8[np.ndarray, "h w2 3"]:
    """An image, and the same with its heat map over it, side by side."""
    gap = np.full((len(image), max(2, image.shape[1] // 64), 3), 255, np.uint8)
    return np.concatenate([image, gap, overlay(image, heat, scale)], axis=1)


def _rows(
    images: Sequence[NamedImage], found: Outcome, predictor: Predictor, fpr: float
) -> Iterator[dict[str, Any]]:
    calibration: Calibration | None = predictor.calibration
    probability = calibration.probability(found.scores) if calibration else None
    for i, image in enumerate(images):
        row = {"path": image.path.as_posix(), "score": round(float(found.scores[i]), 6)}
        row["probability"] = "" if probability is None else round(float(probability[i]), 6)
        above = calibration is not None and found.scores[i] > calibration.threshold(fpr)
        row["decision"] = ("anomaly" if above else "normal") if calibration else ""
        heads = (round(float(value), 6) for value in found.heads[i])
        yield row | dict(zip(predictor.heads, heads, strict=True)) | {"sha256": image.digest}


def _line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
