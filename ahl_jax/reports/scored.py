"""A run with its test images scored: what reports are about."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ahl_jax.common.errors import UserError
from ahl_jax.common.remote import any_path
from ahl_jax.config.presets import PRESETS
from ahl_jax.config.settings import Config, flat
from ahl_jax.data.types import Sample, Split
from ahl_jax.inference.predictor import Predictor
from ahl_jax.inference.threshold import Calibration, Choice, check_cut, choices_of
from ahl_jax.reports.bootstrap import Resampled, resample
from ahl_jax.run.evaluate import load_test
from ahl_jax.storage.workdir import Workdir

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Scored:
    """A run and what its newest detector says of the test images."""

    folder: Path
    predictor: Predictor
    config: Config
    split: Split
    samples: tuple[Sample, ...]
    """The n test images."""

    categories: Sequence[str]
    """The category of each, where several are joined; else there are none."""

    same_images: bool
    """Whether the images that the run was trained and tested with are as they were."""

    changes: str
    """How the images differ from those, in words; empty where they do not."""

    scores: Float[np.ndarray, " n"]
    """Of the test images, higher for more anomalous."""

    metrics: dict[str, Any]
    """As ``ahl_jax.evaluate`` has them."""

    resampled: Resampled | None
    """None where the test lacks normals or anomalies."""

    history: list[dict[str, str]]
    """The rows of history.csv; none where the file is gone."""

    @property
    def normal(self) -> Bool[np.ndarray, " n"]:
        """Which test images are normal."""
        return np.array([sample.anomaly_class is None for sample in self.samples], bool)

    @property
    def calibration(self) -> Calibration | None:
        """The threshold's, if the run has one."""
        return self.predictor.calibration

    @property
    def threshold(self) -> float | None:
        """The score above which an image is called an anomaly, if there is one."""
        at = self.metrics.get("at_threshold")
        return at and at["threshold"]

    def choices(self) -> list[Choice]:
        """The thresholds of a few rates, if the run has a calibration."""
        return choices_of(self.calibration, self.scores, self.normal) if self.calibration else []

    def by_class(self) -> dict[str, Bool[np.ndarray, " n"]]:
        """Anomaly class -> which test images are of it."""
        names = np.array([sample.anomaly_class or "" for sample in self.samples])
        kinds = sorted({s.anomaly_class for s in self.samples if s.anomaly_class is not None})
        return {name: (names == name) & ~self.normal for name in kinds}

    def settings(self) -> dict[str, Any]:
        """Every setting by its option's name."""
        return settings(self.config)

    def preset(self) -> tuple[str, dict[str, tuple[Any, Any]]]:
        """The preset that the run is nearest to, and what differs: here, and there."""
        mine = self.settings()
        differing = {}
        for name, make in PRESETS.items():
            theirs = settings(make(self.config.data.data))
            differing[name] = {k: (v, theirs[k]) for k, v in mine.items() if v != theirs[k]}
        nearest = min(differing, key=lambda name: len(differing[name]))
        return nearest, differing[nearest]


def settings(config: Config) -> dict[str, Any]:
    """Every setting of a config by its option's name."""
    return {name.replace("_", "-"): value for name, value in flat(config.to_dict())}


def score(
    workdir: Path | str,
    *,
    data: str | None = None,
    fpr: float | None,
    threshold: float | None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> Scored:
    """Score the test images of a run; the arguments are those of ``ahl_jax.evaluate``.

    Raises:
        UserError: as ``ahl_jax.evaluate`` does.
    """
    check_cut(fpr, threshold)
    tested = load_test(workdir, data=data, cache_dir=cache_dir, progress=progress)
    scores, metrics = tested.scored(fpr, threshold)
    try:
        history = Workdir(workdir).read_history(metrics["epochs"])
    except UserError as error:
        log.warning("no losses: %s", error)
        history = []
    normal = np.array([name is None for name in tested.classes], bool)
    return Scored(
        folder=any_path(workdir),
        predictor=tested.predictor,
        config=tested.config,
        split=tested.split,
        samples=tested.test.samples,
        categories=tested.categories,
        same_images=tested.found.same,
        changes=tested.found.in_words(),
        scores=scores,
        metrics=metrics,
        resampled=resample(scores, normal) if tested.split.is_tested else None,
        history=history,
    )
