"""Curves, histograms and tables of metrics, in reports on one run and on several."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ahl_jax.reports import charts
from ahl_jax.reports.bootstrap import Interval, resample_one
from ahl_jax.reports.charts import Chart, Points
from ahl_jax.reports.scored import Scored


@dataclass(frozen=True)
class Metrics:
    """A row of a table of metrics."""

    label: str
    images: int
    """Anomalies."""

    roc: Interval
    pr: Interval


@dataclass(frozen=True)
class Confusion:
    """A kind of test images and how many of them are above the threshold."""

    label: str
    images: int
    above: int


def metrics_by_class(run: Scored) -> list[Metrics]:
    """AUC-ROC and AUC-PR of all anomalies and, if there are several classes, of each.

    Each class is against all normals. There are none where the test lacks a kind.
    """
    if run.resampled is None:
        return []
    rows = [Metrics("all anomalies", int((~run.normal).sum()), *run.resampled.intervals())]
    normals = run.scores[run.normal]
    return rows + [_row(name, normals, run.scores[k]) for name, k in _several(run).items()]


def metrics_by_category(run: Scored) -> list[Metrics]:
    """AUC-ROC and AUC-PR of each category that has them, against its own normals."""
    names, rows = np.array(run.categories), []
    for name in run.metrics.get("per_category", {}):
        own = names == name
        rows.append(_row(name, run.scores[own & run.normal], run.scores[own & ~run.normal]))
    return rows


def _row(
    label: str, normals: Float[np.ndarray, " n"], anomalies: Float[np.ndarray, " m"]
) -> Metrics:
    """The row of some anomalies, by their scores and those of the normals to compare with."""
    return Metrics(label, len(anomalies), *resample_one(normals, anomalies).intervals())


def curves(runs: dict[str, Scored]) -> list[Chart]:
    """ROC and precision-recall curves of runs by their labels."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    roc: dict[str, Points] = {}
    precision: dict[str, Points] = {}
    marks: dict[str, tuple[float, float, int]] = {}
    for number, (label, run) in enumerate(runs.items()):
        kinds, scores = ~run.normal, run.scores
        x, y, _ = roc_curve(kinds, scores)
        roc[f"{label}: {run.metrics['auc_roc']:.4f}"] = x, y
        y, x, _ = precision_recall_curve(kinds, scores, drop_intermediate=True)
        precision[f"{label}: {run.metrics['auc_pr']:.4f}"] = x[::-1], y[::-1]
        if len(runs) == 1 and (at := run.metrics.get("at_threshold")):
            marks["threshold"] = at["fpr"], at["tpr"], number
    return [
        charts.lines(
            "ROC curve", f"True-positive rate over false-positive rate; areas: {', '.join(roc)}",
            roc, "false-positive rate", "true-positive rate", unit=True, diagonal=True,
            marks=marks,
        ),
        charts.lines(
            "Precision-recall curve", f"Precision over recall; areas: {', '.join(precision)}",
            precision, "recall", "precision", unit=True,
        ),
    ]  # fmt: skip


def histogram(run: Scored, title: str, *, classes: bool) -> Chart | None:
    """The scores of normals and of anomalies, class by class if asked for; None without a test."""
    scores = run.scores
    rows = {"normal": scores[run.normal]}
    if classes:
        # A class may be called normal.
        rows |= {
            f"{name} (anomaly)" if name == "normal" else name: scores[chosen]
            for name, chosen in run.by_class().items()
        }
    else:
        rows["anomalies"] = scores[~run.normal]
    rows = {name: values for name, values in rows.items() if len(values)}
    if not rows:
        return None
    text = "; ".join(
        f"{name}: median {np.median(v):.4g}, from {v.min():.4g} to {v.max():.4g}"
        for name, v in rows.items()
    )
    return charts.histogram(
        title, f"Histograms of the scores. {text}", rows, "anomaly score", run.threshold
    )


def confusion(run: Scored) -> list[Confusion]:
    """The threshold's rates on normals and on each class; nothing without a threshold."""
    if run.threshold is None:
        return []
    above = run.scores > run.threshold
    rows = [("normal", run.normal), ("all anomalies", ~run.normal), *_several(run).items()]
    return [Confusion(name, int(k.sum()), int(above[k].sum())) for name, k in rows if k.any()]


def _several(run: Scored) -> dict[str, Bool[np.ndarray, " n"]]:
    """The classes, where there are several; one alone is all anomalies."""
    classes = run.by_class()
    return classes if len(classes) > 1 else {}
