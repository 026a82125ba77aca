"""Sentences for the command line: results of runs and tests."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from ahl_jax.cli.mentions import with_options
from ahl_jax.common.text import counted, printable
from ahl_jax.config.settings import Config
from ahl_jax.data.types import NO_METRICS
from ahl_jax.detectors import DETECTORS
from ahl_jax.detectors.names import method_name
from ahl_jax.inference.threshold import FPR, Calibration, Choice, why_no_threshold


def training_in_words(config: Config, metrics: Mapping[str, Any], workdir: Path) -> str:
    """The result of a run in words.

    Args:
        config: its settings.
        metrics: what ``metrics.json`` holds; empty where nothing was tested.
        workdir: its folder.
    """
    method = method_name(config)
    if not metrics:
        return f"{method} is in {workdir}; it has no metrics, as {NO_METRICS}."
    images = counted(metrics["n_train_normal"], "normal")
    if metrics["n_seen"] and DETECTORS[config.detector.detector].trained:
        images += f" and {counted(metrics['n_seen'], 'labelled anomal', 'y', 'ies')}"
    epochs, one = metrics["epochs"], config.stage_one
    if config.learning.method == "fit":
        # Its one epoch changes nothing.
        epochs = one.stage_one_epochs if one.stage_one_heads else 0
    made = (
        f"trained on {images} for {counted(epochs, 'epoch')}" if epochs else f"fitted to {images}"
    )
    said = (
        f"{method}, {made}, reaches an AUC-ROC of {metrics['auc_roc']:.4f} and an AUC-PR of "
        f"{metrics['auc_pr']:.4f} on {metrics['n_test']} test images; everything is in {workdir}."
    )
    if at := metrics.get("at_threshold"):
        promised = _promise(at["promised_fpr"], at["folds"])
        said += (
            f" At its threshold {at['threshold']:.4g}, set for {promised} of false alarms, it "
            f"finds {at['tpr']:.1%} of the anomalies, and {at['fpr']:.1%} of the normals are "
            f"false alarms; for other thresholds see `ahl threshold {workdir}`."
        )
    return said


def choices_in_words(
    choices: Sequence[Choice], calibration: Calibration, normal: Bool[np.ndarray, " m"] | None
) -> Iterator[str]:
    """A table of thresholds, line by line.

    Args:
        choices: the thresholds.
        calibration: what they are set by.
        normal: which test images are normal, if there is a test.
    """
    normals = _normals(len(calibration.scores), calibration.folds)
    yield f"Thresholds by {normals}, in steps of {calibration.lowest_fpr:.1%}"
    head = ["--fpr", "threshold", "promised"]
    rows = []
    for each in choices:
        promised = _promise(calibration.promised(each.fpr), calibration.folds)
        rows.append([f"{each.fpr:g}", f"{each.cut.threshold:.4g}", promised])
    if normal is not None:
        head += ["false alarms", "anomalies found"]
        totals = int(normal.sum()), int((~normal).sum())
        for row, each in zip(rows, choices, strict=True):
            counts = zip((each.alarms, each.found), totals, strict=True)
            row += [f"{count} of {total}" for count, total in counts]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, *rows]:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
    if calibration.highest:
        names = ", ".join(printable(name) for name in calibration.highest)
        yield f"Of these normals the highest scores are those of {names}; see that they are good."


def metrics_in_words(
    metrics: Mapping[str, Any], fpr: float | None, config: Config
) -> Iterator[str]:
    """The result of a test, line by line.

    Args:
        metrics: what ``ahl_jax.evaluate`` returns.
        fpr: the rate of false positives that was asked for, if one was.
        config: the run's settings.
    """
    if "auc_roc" in metrics:
        yield f"AUC-ROC {metrics['auc_roc']:.4f}  AUC-PR {metrics['auc_pr']:.4f}"
    else:
        yield f"There are no AUC-ROC and AUC-PR, as {NO_METRICS}."
    yield f"{counted(metrics['n_test'], 'test image')}, {metrics['setting']} setting"
    for name, values in metrics.get("per_class", {}).items():
        yield (
            f"  {printable(name)}: AUC-ROC {values['auc_roc']:.4f}  AUC-PR {values['auc_pr']:.4f}  "
            f"({counted(values['n'], 'anomal', 'y', 'ies')})"
        )
    for name, values in metrics.get("per_category", {}).items():
        yield (
            f"  all of {name}: AUC-ROC {values['auc_roc']:.4f}  AUC-PR {values['auc_pr']:.4f}  "
            f"({counted(values['n_test'], 'test image')})"
        )
    if pixel := metrics.get("pixel"):
        yield (
            f"Pixels of the {pixel['images']} test images that have masks or are normal: AUROC "
            f"{pixel['auroc']:.4f}, AUPRO {pixel['aupro']:.4f}."
        )
    at = metrics.get("at_threshold")
    if at is None:
        reason = with_options(why_no_threshold(config), {"held_out"})
        yield f"There is no threshold: {reason}."
        return
    setter = "as you named it"
    if at["promised_fpr"] is not None:
        normals = _normals(at["held_out"], at["folds"])
        promised = _promise(at["promised_fpr"], at["folds"])
        setter = f"set by {normals} for {promised} false positives"
        if at["promised_fpr"] > (fpr := fpr or FPR):
            setter += f" (they are too few for {fpr:.1%})"
    rates = {"test normals": at["fpr"], "anomalies": at["tpr"]}
    said = [f"{rate:.1%} of the {kind}" for kind, rate in rates.items() if rate is not None]
    said[:1] = [f": {first} are above it" for first in said[:1]]
    yield (f"At the threshold {at['threshold']:.4g}, {setter}{', and '.join(said)}.")


def _normals(count: int, folds: int) -> str:
    """What a threshold is set by."""
    if folds:
        return f"{counted(count, 'normal')} held out in {folds} parts"
    return counted(count, "held-out normal")


def _promise(rate: float, folds: int) -> str:
    """The rate of false positives that a threshold is set for."""
    return f"{'about' if folds else 'at most'} {rate:.1%}"
