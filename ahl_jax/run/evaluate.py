"""Metrics of a run on its test images."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import Config
from ahl_jax.data.copies import copy_of
from ahl_jax.data.masks import MaskSource, marks, masks_of, warn_of_unused
from ahl_jax.data.remembered import Found, category_of, with_added
from ahl_jax.data.types import Split
from ahl_jax.distributed.memory import on_host
from ahl_jax.features import Store
from ahl_jax.features.split import (
    TestFeatures,
    test_features,
)
from ahl_jax.inference.predictor import Predictor, load
from ahl_jax.inference.threshold import Cut, check_cut, cut_of
from ahl_jax.run.again import find_split, moved, tell_places
from ahl_jax.run.calibrate import calibrated
from ahl_jax.run.claim import Run
from ahl_jax.run.metrics import category_metrics, image_metrics
from ahl_jax.run.options import RunOptions
from ahl_jax.run.pixel_metrics import pixel_metrics
from ahl_jax.storage.workdir import Workdir

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TestData:
    """The newest detector of a run, and its test images."""

    predictor: Predictor
    config: Config
    """The run's settings, with the data where it is now."""

    split: Split
    test: TestFeatures
    found: Found
    """The run's images, as they are in the data now."""

    masks: dict[int, MaskSource]
    """The masks of test anomalies by their positions, where the data has masks."""

    @property
    def classes(self) -> list[str | None]:
        """The anomaly class of each test image, None for normals."""
        return [sample.anomaly_class for sample in self.test.samples]

    @property
    def categories(self) -> list[str]:
        """The category of each test image, where several are joined; else there are none."""
        data = self.config.data
        if not data.joint:
            return []
        return [category_of(sample.path, data.data) for sample in self.test.samples]

    def metrics(
        self,
        scores: Float[np.ndarray, " n"],
        heat: Float[np.ndarray, "n h w"] | None,
        cut: Cut | None,
    ) -> dict[str, Any]:
        """The metrics that ``evaluate`` returns, by scores and heat maps of the test images.

        Heat maps are needed where there are masks alone; ``cut`` is where decisions are made.
        """
        metrics = image_metrics(scores, self.classes) if self.split.is_tested else {}
        if self.split.is_tested and (categories := self.categories):
            metrics["per_category"] = category_metrics(scores, self.classes, categories)
        if cut is not None:
            metrics["at_threshold"] = cut.rates(scores, [name is None for name in self.classes])
        if heat is not None:
            masks = marks(self.test.samples, self.masks)
            pixels = pixel_metrics(heat, masks, self.predictor.frame)
            metrics |= {"pixel": pixels} if pixels else {}
        metadata = self.predictor.metadata
        return metrics | {
            "n_train_normal": metadata["n_train_normal"],
            "n_seen": metadata["n_seen"],
            "n_test": len(self.test.samples),
            "n_left_out_copies": len(self.split.copies),
            "setting": self.config.data.setting,
            "seed": self.config.seed,
            "epochs": metadata["epochs"],
            "seconds": metadata["seconds"],
        }

    def scored(
        self, fpr: float | None = None, threshold: float | None = None
    ) -> tuple[Float[np.ndarray, " n"], dict[str, Any]]:
        """Scores of the test images, and the metrics that ``evaluate`` returns.

        Heat maps take time, and are made only for pixel metrics.
        """
        cut = cut_of(self.predictor.calibration, fpr, threshold)
        if not (self.masks and self.split.is_tested):
            scores = self.predictor.scorer.score(self.test.maps)
            return scores, self.metrics(scores, None, cut)
        paths = [sample.path for sample in self.test.samples]
        outcome = self.predictor.outcome_of(self.test.maps, paths)
        return outcome.scores, self.metrics(outcome.scores, outcome.heat, cut)


def evaluate(
    workdir: Path | str,
    *,
    data: str | None = None,
    split: Split | None = None,
    fpr: float | None = None,
    threshold: float | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Score the test images with the newest checkpoint.

    They are those that ``images.csv`` lists, and what was added to the test's folders since. None
    is among them that training has seen.

    Args:
        workdir: the folder that ``train`` was given.
        data: where the data is now, if not where it was in training.
        split: the images that ``train`` was given, if it was.
        fpr: the rate of false positives that the threshold is set for, by default 0.01.
        threshold: the score above which an image is an anomaly, in the place of ``fpr``.
        cache_dir: the feature store's folder; see ``ahl_jax.features.default_folder``.
        progress: whether to show progress on stderr.

    Returns:
        What ``metrics.json`` holds: auc_roc, auc_pr, per_class, n_train_normal, n_seen, n_test,
        n_left_out_copies (images that are not in the test because training has the same file),
        setting, seed, epochs, and the seconds that the epochs took; where there is a threshold,
        at_threshold, see ``ahl_jax.inference.threshold.Cut.rates``; and where the data has
        masks of anomalous pixels, pixel, see ``ahl_jax.run.pixel_metrics``; and of ``joint`` runs
        per_category, see ``ahl_jax.run.metrics.category_metrics``. Where the test lacks normals or
        anomalies, there are no auc_roc, auc_pr, per_class, per_category and pixel.

    Raises:
        UserError: if the folder holds no checkpoint, or the data cannot be read.
    """
    check_cut(fpr, threshold)
    test = load_test(workdir, data=data, split=split, cache_dir=cache_dir, progress=progress)
    return test.scored(fpr, threshold)[1]


def load_test(
    workdir: Path | str,
    *,
    data: str | None = None,
    split: Split | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> TestData:
    """The newest detector of a run, and the features of its test images.

    Args:
        workdir: the folder that ``train`` was given.
        data: as for ``evaluate``.
        split: as for ``evaluate``.
        cache_dir: as for ``evaluate``.
        progress: whether to show progress on stderr.

    Raises:
        UserError: as by ``evaluate``.
    """
    predictor = load(workdir)
    config, run = moved(predictor.config, data), Workdir(workdir)
    if data is None and split is None and progress:
        tell_places(run, config)
    try:
        found = find_split(run, config, split)
    except UserError as error:
        if data is not None:
            raise
        raise UserError(
            f"the data of {workdir} is not where it was ({error}); say where with `data`"
        ) from error
    split = with_added(found)
    labelled = [sample.path for sample in (*split.seen, *split.test)]
    warn_of_unused(labelled, copy_of(config.data.data))
    if said := found.in_words():
        log.warning(
            "the images are not the ones that %s was trained and tested with: %s", workdir, said
        )
    return _test_data(predictor, config, split, Store(cache_dir), found, progress=progress)


def test_run(run: Run, options: RunOptions) -> dict[str, Any]:
    """Set the threshold of a finished run, test it, and keep its metrics.

    Args:
        run: the run, whose images are those that it was trained on.
        options: how it is carried out.

    Returns:
        As ``evaluate`` does; empty, and not kept, where the test lacks normals or anomalies.

    Raises:
        UserError: as by ``evaluate``.
    """
    predictor = calibrated(load(run.workdir.path), run, options)
    if not run.split.is_tested:
        return {}
    test = _test_data(
        predictor,
        moved(predictor.config, run.data or None),
        run.split,
        Store(options.cache_dir, on_host(options.feature_memory)),
        Found(run.split),
        progress=options.progress,
    )
    metrics = test.scored()[1]
    run.workdir.write_metrics(metrics)
    return metrics


def _test_data(
    predictor: Predictor,
    config: Config,
    split: Split,
    store: Store,
    found: Found,
    *,
    progress: bool,
) -> TestData:
    test = test_features(config, split, predictor.trunk, store, progress=progress)
    masks = masks_of(test.samples, copy_of(config.data.data))
    return TestData(predictor, config, split, test, found, masks)
