"""The tables and the figure of an ablation."""

import io
import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ahl_jax.common.commit import commit
from ahl_jax.common.text import mean_std
from ahl_jax.config.settings import Config, data_name
from ahl_jax.sweeps.points import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
"""A row of ablation.csv: over, value, seed, auc_roc, auc_pr, seconds, epoch_seconds, run."""

LABELS = {
    "subsets": "T, number of subsets",
    "clusters": "C, number of clusters",
    "history": "K, past epochs that psi sees",
    "shots": "M, labelled anomalies",
    "image-size": "image size in pixels",
    "lr": "learning rate of the unified model",
    "lr-base": "learning rate of the base models",
    "psi-lr": "learning rate of psi",
    "batch": "images per batch",
    "passes": "passes of the base models",
    "updates-per-epoch": "updates of the unified model per epoch",
    "gradient": "gradient of the query loss",
    "importance": "importance scores w",
    "generators": "pseudo-anomalies",
    "whiten": "whitened features",
}
"""What is written under a panel, where the option's own name does not say it."""

COLUMNS = 3
LOGARITHMIC = 50
"""Ratio of the largest to the smallest value from which on the axis is logarithmic."""


def table_markdown(config: Config, rows: Sequence[Row], command: str | None) -> str:
    """A table per setting: mean and standard deviation over the seeds."""
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    what = "Mean ± standard deviation over seeds " if len(seeds) > 1 else "Seed "
    lines = [
        f"# Ablation on {data_name(config)}",
        "",
        "Each setting is varied alone.",
        f"{what}{', '.join(map(str, seeds))}; the last epoch counts.",
        "Seconds of training leave compilation out; those of an epoch are the median.",
    ]
    lines += ["", f"Command: `{command}`"] if command else []
    lines += ["", f"Commit: {version}"] if (version := commit()) else []
    columns = {"auc_roc": 4, "auc_pr": 4, "seconds": 1, "epoch_seconds": 2}
    for name in dict.fromkeys(row["over"] for row in rows):
        lines += ["", f"| {name} | AUC-ROC | AUC-PR | seconds of training | seconds per epoch |"]
        lines.append("|---" * (1 + len(columns)) + "|")
        mine = [row for row in rows if row["over"] == name]
        for value in dict.fromkeys(row["value"] for row in mine):
            here = [row for row in mine if row["value"] == value]
            cells = [mean_std([row[c] for row in here], digits) for c, digits in columns.items()]
            lines.append(f"| {value} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(
    points: Sequence[tuple[Point, Sequence[float]]],
    base: Sequence[float] | None = None,
    *,
    title: str = "",
) -> "Figure":
    """Draw mean and standard deviation over the seeds, one panel per setting.

    Args:
        points: with each, the AUC-ROC of every seed.
        base: AUC-ROC of the base detector alone per seed, drawn as a horizontal line.
        title: what the figure is about.
    """
    # Imported here, because nothing else needs it and it takes a second.
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(point.name for point, _ in points))
    columns = min(len(names), COLUMNS)
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(max(3.6 * columns, 4.8), 3.0 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    axes = grid.ravel()
    seeds = len(points[0][1])
    methods = {point.config.learning.method for point, _ in points}
    names_of = {"ahl": "AHL, ", "base": "base detector, "}
    who = names_of.get(methods.pop(), "") if len(methods) == 1 else ""
    label = who + (f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed")
    for panel, name in zip(axes, names, strict=False):
        mine = [(point, scores) for point, scores in points if point.name == name]
        _panel(panel, mine, label)
        if base is not None:
            mean = statistics.mean(base)
            alone = "base detector alone, settings as given"
            panel.axhline(mean, color="0.35", linestyle="--", linewidth=1.2, label=alone)
            if seeds > 1:
                spread = statistics.stdev(base)
                panel.axhspan(mean - spread, mean + spread, color="0.9", zorder=0, linewidth=0)
    for panel in axes[len(names) :]:
        panel.remove()
    for row in grid:
        row[0].set_ylabel("AUC-ROC on the test images")
    figure.suptitle(title)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside lower center", ncols=columns, frameon=False
    )
    return figure


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file."""
    image = io.BytesIO()
    figure.savefig(image, dpi=200, format="png")
    return image.getvalue()


def _panel(panel: "Axes", points: Sequence[tuple[Point, Sequence[float]]], label: str) -> None:
    name = points[0][0].name
    numbers = [point.number for point, _ in points if point.number is not None]
    if numbers:
        points = sorted(points, key=lambda pair: pair[0].number or 0)
        numbers.sort()
    places = numbers or list(range(len(points)))
    panel.errorbar(
        places,
        [statistics.mean(scores) for _, scores in points],
        yerr=[statistics.stdev(s) for _, s in points] if len(points[0][1]) > 1 else None,
        color="black",
        marker="o",
        markersize=4,
        linewidth=1.4,
        elinewidth=1,
        capsize=3,
        # Between names there is nothing that a line could stand for.
        linestyle="-" if numbers else "none",
        label=label,
    )
    if numbers and numbers[0] > 0 and numbers[-1] >= LOGARITHMIC * numbers[0]:
        panel.set_xscale("log")
    panel.set_xticks(places, [point.value for point, _ in points])
    panel.set_xticks([], minor=True)
    panel.margins(x=0.12 if numbers else 0.3)
    panel.set_xlabel(LABELS.get(name, name.replace("-", " ")))
    panel.grid(axis="y", color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
