"""Images for a page: small, and inside the page itself."""

import base64
import contextlib
import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from ahl_jax.common.errors import BadImageError
from ahl_jax.data.images import read_display
from ahl_jax.data.records import ImageSource
from ahl_jax.data.remembered import category_of
from ahl_jax.inference.heatmaps import legend, overlay
from ahl_jax.reports.scored import Scored

SMALL = 96
"""The side of a training image."""

LABELLED = 100
"""Labelled anomalies that are shown, at most."""

_SIDE = 200
_QUALITY = 80


@dataclass(frozen=True)
class Sample:
    """A training image and what it is."""

    image: str
    text: str


@dataclass(frozen=True)
class Scene:
    """A test image beside its heat map."""

    name: str
    kind: str
    """Normal, or its class."""

    image: str
    heat: str
    score: float
    share: str
    """The share of normal images that score lower, if that is known."""

    alarm: bool | None
    """Whether it is above the threshold, if there is one."""

    right: bool
    """Whether that is as it should be."""

    @property
    def verdict(self) -> str:
        """The decision by the threshold, in words."""
        if self.alarm is None:
            return ""
        if self.alarm:
            return "found" if self.right else "false alarm"
        return "passed" if self.right else "missed"


@dataclass(frozen=True)
class Strip:
    """Some test images under a heading."""

    title: str
    remark: str
    scenes: list[Scene]


def data_uri(image: UInt8[np.ndarray, "h w 3"], side: int = _SIDE) -> str:
    """An image as a JPEG of no more than that side, for ``src``."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def file_name(run: Scored, path: ImageSource) -> str:
    """The name of an image without its folders, but for its category where several are joined."""
    name, data = path.name.replace("\\", "/").rsplit("/", 1)[-1], run.config.data
    return f"{category_of(path, data.data)}/{name}" if data.joint else name


def labelled(run: Scored) -> list[Sample]:
    """The labelled anomalies of a run that can be read; of many some, evenly spread."""
    seen, found = run.split.seen, []
    for i in np.linspace(0, len(seen) - 1, min(len(seen), LABELLED)).astype(int):
        sample = seen[i]
        with contextlib.suppress(BadImageError):  # Training left it out, and warned.
            image = data_uri(read_display(sample.path), SMALL)
            found.append(Sample(image, f"{sample.anomaly_class}, {file_name(run, sample.path)}"))
    return found


def sheet(run: Scored, shown: int = 6) -> list[Strip]:
    """The test images that are ranked worst, and those that are ranked best; each at most once.

    Args:
        run: the run.
        shown: images of each kind.

    Raises:
        BadImageError: if one of them cannot be read.
    """
    scores, normal = run.scores, run.normal
    if not len(scores):
        return []
    normals, anomalies = (
        where[np.argsort(-scores[where], kind="stable")]
        for where in (np.flatnonzero(normal), np.flatnonzero(~normal))
    )
    worst_normals, best_normals = _ends(normals, shown)
    worst_anomalies, best_anomalies = _ends(anomalies[::-1], shown)
    kinds = [
        ("Normals with the highest scores", "The false alarms come first from these.",
         worst_normals),
        ("Anomalies with the lowest scores", "These are missed first.", worst_anomalies),
        ("Anomalies with the highest scores", "These are found first.", best_anomalies),
        ("Normals with the lowest scores", "The most normal images.", best_normals),
    ]  # fmt: skip
    calibration = run.calibration
    chosen = sorted(int(number) for _, _, ranked in kinds for number in ranked)
    heat = run.predictor.heat_maps([run.samples[number].path for number in chosen])
    heat_of = dict(zip(chosen, heat, strict=True))
    scale = run.predictor.heat_scale(heat)

    def scene(number: int) -> Scene:
        sample = run.samples[number]
        # In the size that it is shown in, so that lines stay whole.
        image, seen = read_display(sample.path, _SIDE), run.predictor.seen(sample.path)
        score = float(scores[number])
        alarm = None if run.threshold is None else score > run.threshold
        return Scene(
            name=file_name(run, sample.path),
            kind="normal" if sample.anomaly_class is None else sample.anomaly_class,
            image=data_uri(image),
            heat=data_uri(overlay(image, heat_of[number], scale, seen, run.predictor.contour)),
            score=score,
            share=_percent(calibration.probability(scores[[number]])[0]) if calibration else "",
            alarm=alarm,
            right=alarm == (sample.anomaly_class is not None),
        )

    return [
        Strip(title, remark, [scene(int(number)) for number in ranked])
        for title, remark, ranked in kinds
        if len(ranked)
    ]


def _ends(
    ranked: Int[np.ndarray, " n"], shown: int
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " m"]]:
    """The first and the last of a ranking, the last one first; of few, half of them each."""
    half = (len(ranked) + 1) // 2
    return ranked[:half][:shown], ranked[half:][::-1][:shown]


def key(run: Scored) -> str:
    """The legend of the heat maps of ``sheet``."""
    words = legend(outline=run.predictor.contour is not None)
    return data_uri(words, max(words.shape))


def _percent(share: float) -> str:
    """A share in words that does not round to all of them."""
    return "99.9 %" if share > 0.999 else f"{100 * share:.1f} %"
