"""The meaning of a score, by those of held-out normals: a threshold, and a probability.

Training has not seen the held-out normals, so their scores are like those of normal images to come
(exchangeable with them). That is what split conformal prediction needs for its promise about false
positives, whatever the detector.

Where normals are held out in turn, each is scored by a detector that is fitted without it, and new
images by one that is fitted to all. The promise then holds about, as far as a score hardly changes
where the fit has a part less. Where new images too are scored by the detectors that lack a part
(CV+ of Barber et al., 2021), it is at most twice the rate in theory, whatever the detector.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ahl_jax.common.errors import UserError
from ahl_jax.common.files import read_json
from ahl_jax.common.text import counted
from ahl_jax.config.settings import Config
from ahl_jax.storage.workdir import CALIBRATION, Workdir

FPR = 0.01
"""The rate of false positives that a threshold is set for, unless the user names another."""

RATES = (0.01, 0.02, 0.05, 0.1)
"""Rates that a table of thresholds has."""

_FEW = 10
"""Normals; with fewer, scores by fits without a part are of another size than those by all."""

_NAMED = 3
"""How many of the held-out normals that score highest are named."""

_LONGEST = 4096
"""Letters of a name."""

_TAIL = 0.1
"""The share of the highest scores that the upper tail is fitted to."""


@dataclass(frozen=True)
class Cut:
    """The score above which an image is called an anomaly."""

    threshold: float

    promised_fpr: float | None = None
    """The rate of false positives that is promised; None where the user names the threshold."""

    held_out: int | None = None
    """How many held-out normals it is set by; None where the user names it."""

    folds: int = 0
    """In how many parts they were held out in turn; 0 for once."""

    def rates(self, scores: Float[np.ndarray, " m"], normal: Sequence[bool]) -> dict[str, Any]:
        """The rates on labelled images.

        Returns:
            ``threshold``, ``promised_fpr``, ``held_out`` and ``folds``, as here; ``fpr``, the
            false-positive rate of these images; and ``tpr``, the share of anomalies found; None
            where there are no such images.
        """
        above, normals = scores > self.threshold, np.asarray(normal, bool)

        def rate(chosen: Bool[np.ndarray, " m"]) -> float | None:
            return float(above[chosen].mean()) if chosen.any() else None

        return {
            "threshold": self.threshold,
            "promised_fpr": self.promised_fpr,
            "fpr": rate(normals),
            "tpr": rate(~normals),
            "held_out": self.held_out,
            "folds": self.folds,
        }


@dataclass(frozen=True)
class Calibration:
    """The scores of n held-out normals by the detector as trained."""

    scores: Float[np.ndarray, " n"]
    """In ascending order."""

    locations: tuple[float, float]
    """Median and 99.9th percentile of the scores of their locations."""

    folds: int = 0
    """In how many parts they were held out in turn, each scored without its own; 0 for once."""

    given: bool = False
    """Whether they are of photographs that ``recalibrate`` was given."""

    highest: tuple[str, ...] = ()
    """The images with the highest scores, the highest one first; runs of earlier versions name
    none. A bad part among the good ones is likely to be here."""

    @property
    def contour(self) -> float:
        """The score of a location above which it is outlined: 99.9 % of good locations are not."""
        return self.locations[1]

    def threshold(self, fpr: float = FPR) -> float:
        """The score above which an image is called an anomaly.

        A normal image is above it with a probability of at most ``promised(fpr)``, over the draw
        of the held-out normals and the image (split conformal prediction); where these were held
        out in turn, of about that.
        """
        return float(self.scores[self._rank(fpr) - 1])

    @property
    def lowest_fpr(self) -> float:
        """The lowest rate that n scores can set, which is the step between rates too."""
        return 1 / (len(self.scores) + 1)

    def promised(self, fpr: float = FPR) -> float:
        """``fpr``; but ``lowest_fpr`` where the threshold is the highest of n scores."""
        return fpr if self._rank(fpr) < len(self.scores) else self.lowest_fpr

    def _rank(self, fpr: float) -> int:
        """That of the threshold among the scores, from 1."""
        n = len(self.scores)
        return max(1, min(n, math.ceil((n + 1) * (1 - fpr) - 1e-9)))

    def cut(self, fpr: float = FPR) -> Cut:
        """``threshold(fpr)``, with what is known of it."""
        return Cut(self.threshold(fpr), self.promised(fpr), len(self.scores), self.folds)

    def shortfall(self, fpr: float = FPR) -> str | None:
        """A sentence where the held-out normals are too few for ``fpr``."""
        if self.promised(fpr) <= fpr:
            return None
        kind, advice = "held-out normal", " (see `held_out`)"
        if self.folds:
            kind, advice = "normal", ""
            if len(self.scores) < _FEW:
                advice = (
                    ", and thresholds by fits to so few can be far off, to either side: give "
                    f"{_FEW} or more"
                )
        elif self.given:
            kind, advice = "photograph", "; give that many with `ahl threshold RUN --good`"
        return (
            f"with {counted(len(self.scores), kind)} the lowest rate of false positives that can "
            f"be set is {100 * self.promised(fpr):.2g} %; {100 * fpr:.2g} % takes "
            f"{math.ceil(1 / fpr - 1e-9) - 1} of them{advice}"
        )

    def probability(self, scores: Float[Any, " m"], xp: Any = np) -> Float[Any, " m"]:
        """The share of normal images that score lower, as estimated from the held-out ones.

        Ranks among them, in between linear; an exponential tail for the highest tenth and what is
        above, as exceedances over a high score tend to have.

        Args:
            scores: of m images.
            xp: numpy, or jax.numpy for use in a program.
        """
        n = len(self.scores)
        ranks = np.arange(1, n + 1) / (n + 1)
        tail = max(1, math.floor(_TAIL * n))
        if n < 2 or self.scores[-1] <= self.scores[-1 - tail]:
            return xp.interp(scores, self.scores, ranks)
        start = self.scores[-1 - tail]
        excess = float((self.scores[-tail:] - start).mean())
        above = (1 - ranks[-1 - tail]) * xp.exp(-xp.maximum(scores - start, 0) / excess)
        return xp.where(scores > start, 1 - above, xp.interp(scores, self.scores, ranks))

    def text(self) -> str:
        """As ``read_calibration`` reads it."""
        low, high = self.locations
        values: dict[str, Any] = {"scores": [float(s) for s in self.scores]}
        values |= {"locations": [low, high]} | ({"folds": self.folds} if self.folds else {})
        values |= {"given": True} if self.given else {}
        values |= {"highest": list(self.highest)} if self.highest else {}
        return json.dumps(values, indent=1) + "\n"


def calibration_of(
    scores: Float[np.ndarray, " n"],
    locations: Float[np.ndarray, "..."],
    names: Sequence[str] = (),
    folds: int = 0,
    *,
    given: bool = False,
) -> Calibration:
    """The calibration by held-out normals.

    Args:
        scores: theirs, in any order.
        locations: the scores of all locations, of them or of some.
        names: the images', if they have any.
        folds: in how many parts they were held out in turn; 0 for once.
        given: whether they are of photographs that ``recalibrate`` was given.

    Raises:
        UserError: if a score is no number.
    """
    if not (np.isfinite(scores).all() and np.isfinite(locations).all()):
        raise UserError(
            "the scores of held-out normals are no numbers, as the training diverged; start over "
            "with a smaller `lr_base` and `overwrite=True`"
        )
    low, high = np.quantile(locations, [0.5, 0.999])
    order = np.argsort(scores)
    highest = tuple(names[i] for i in order[: -_NAMED - 1 : -1]) if names else ()
    return Calibration(scores[order], (float(low), float(high)), folds, given, highest)


def read_calibration(folder: Path) -> Calibration | None:
    """The calibration in a checkpoint's folder; None where there is none.

    Raises:
        UserError: if it is damaged.
    """
    text = Workdir(folder.parent).read(f"{folder.name}/{CALIBRATION}")
    if text is None:
        return None
    try:
        values = read_json(text)
        scores, (low, high) = np.asarray(values["scores"], np.float64), values["locations"]
        locations, folds = (float(low), float(high)), int(values.get("folds", 0))
        most = np.finfo(np.float32).max
        # What is no number compares as false.
        if scores.ndim != 1 or not scores.size or not (abs(scores) <= most).all():
            raise ValueError("its scores are no numbers")
        if not np.isfinite(locations).all() or not 0 <= folds <= len(scores):
            raise ValueError("its numbers are none that are written")
        highest = values.get("highest", [])
        few = isinstance(highest, list) and len(highest) <= _NAMED
        if not (few and all(isinstance(name, str) and len(name) <= _LONGEST for name in highest)):
            raise ValueError("its names are none that are written")
        how = folds, bool(values.get("given")), tuple(highest)
        return Calibration(np.sort(scores).astype(np.float32), locations, *how)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{folder / CALIBRATION} is damaged ({error}); delete it, and give the training's "
            "command again"
        ) from error


def why_no_threshold(config: Config) -> str:
    """The reason why a run has no calibration, and the way to one."""
    if config.data.held_out:
        return "its training is not finished; give the training's command again"
    return "no normals were held out of its training; train with `held_out=0.1`"


def cut_of(
    calibration: Calibration | None, fpr: float | None = None, threshold: float | None = None
) -> Cut | None:
    """Where decisions are made: at a threshold that the user names, or at the calibration's.

    Args:
        calibration: the run's, if it has one.
        fpr: the rate of false positives that the threshold is set for, by default ``FPR``.
        threshold: the score, in the place of a rate.

    Returns:
        None where there is neither a threshold nor a calibration.

    Raises:
        UserError: as by ``check_cut``.
    """
    check_cut(fpr, threshold)
    if threshold is not None:
        return Cut(float(threshold))
    if calibration is None:
        return None
    return calibration.cut(FPR if fpr is None else fpr)


@dataclass(frozen=True)
class Choice:
    """A threshold that may be chosen, and what it comes to on a test."""

    fpr: float
    """The rate of false positives that is asked for."""

    cut: Cut
    alarms: int | None = None
    """How many normal images of the test are above it; None without a test."""

    found: int | None = None
    """How many anomalies."""


def choices_of(
    calibration: Calibration,
    scores: Float[np.ndarray, " m"] | None = None,
    normal: Bool[np.ndarray, " m"] | None = None,
) -> list[Choice]:
    """The thresholds of a few rates.

    Args:
        calibration: the run's.
        scores: of the test images, if there are any.
        normal: which of these are normal.
    """
    choices = []
    for fpr in RATES:
        cut = calibration.cut(fpr)
        counts: tuple[int, ...] = ()
        if scores is not None and normal is not None:
            above = scores > cut.threshold
            counts = int(above[normal].sum()), int(above[~normal].sum())
        choices.append(Choice(fpr, cut, *counts))
    return choices


def check_cut(fpr: float | None, threshold: float | None) -> None:
    """Refuse a rate or a threshold that is none, and both at once.

    Raises:
        UserError: saying so.
    """
    if fpr is not None and threshold is not None:
        raise UserError("`fpr` and `threshold` are both given; give one of them")
    if fpr is not None and (not isinstance(fpr, int | float) or not 0 < fpr < 1):
        raise UserError(f"`fpr` is {fpr}; it must be between 0 and 1")
    numbers = int | float | np.number
    if threshold is not None and not (isinstance(threshold, numbers) and np.isfinite(threshold)):
        raise UserError(f"`threshold` is {threshold}; it must be a score, which is a finite number")
