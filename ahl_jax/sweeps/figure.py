"""The figure of a sweep: a panel per setting, from plain numbers."""

import io
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ahl_jax.common.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
"""Words under a panel, where the option's own name is not enough."""

COLUMNS = 3
LETTERS = 11
"""Letters of the title that an inch has room for."""

LOGARITHMIC = 50
"""Ratio of the largest to the smallest value from which on the axis is logarithmic."""


GIVEN = "settings as given"
BASE = "base detector alone, settings as given"


@dataclass(frozen=True)
class Mark:
    """One value of a setting."""

    label: str
    """The value in words."""

    number: float | None
    """The value if it is a number."""

    scores: Sequence[float]
    """AUC-ROC of every seed."""

    given: bool = False
    """Whether the other panels have the setting at this value."""


def draw(
    panels: Mapping[str, Sequence[Mark]],
    base: Sequence[float] | None = None,
    *,
    title: str = "",
) -> "Figure":
    """Draw mean and standard deviation over the seeds, one panel per setting.

    Args:
        panels: the values of each setting, by its option's name.
        base: AUC-ROC of the base detector alone per seed, drawn as a horizontal line.
        title: the heading.
    """
    # Imported here, because nothing else needs it and it takes a second.
    from matplotlib.figure import Figure

    columns = min(len(panels), COLUMNS)
    rows = math.ceil(len(panels) / columns)
    width = max(3.6 * columns, 4.8)
    figure = Figure(figsize=(width, 3.0 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    axes = grid.ravel()
    label = _seeds({len(mark.scores) for marks in panels.values() for mark in marks})
    for panel, (name, marks) in zip(axes, panels.items(), strict=False):
        _panel(panel, marks, label)
        panel.set_xlabel(LABELS.get(name, name.replace("-", " ")))
        if base:
            _line(panel, base)
    for panel in axes[len(panels) :]:
        panel.remove()
    for row in grid:
        row[0].set_ylabel("AUC-ROC on the test images")
    # A $ in a data set's name begins no formula.
    figure.suptitle(textwrap.fill(printable(title), int(width * LETTERS)), parse_math=False)
    shown = {
        words: handle
        for panel in figure.axes
        for handle, words in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    names = [words for words in (label, GIVEN, BASE) if words in shown]
    handles = [shown[words] for words in names]
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file."""
    image = io.BytesIO()
    figure.savefig(image, dpi=200, format="png")
    return image.getvalue()


def _seeds(counts: set[int]) -> str:
    """The legend's words for the marks, by how many seeds they have."""
    if counts == {1}:
        return "one seed"
    numbers = " to ".join(map(str, sorted({min(counts), max(counts)})))
    return f"mean ± standard deviation of {numbers} seeds"


def _panel(panel: "Axes", marks: Sequence[Mark], label: str) -> None:
    numbers = sorted(mark.number for mark in marks if mark.number is not None)
    if len(numbers) == len(marks):
        marks = sorted(marks, key=lambda mark: mark.number or 0)
    else:
        numbers = []  # A number beside words is a word too.
    places = numbers or list(range(len(marks)))
    means = [statistics.mean(mark.scores) for mark in marks]
    deviations = [_deviation(mark.scores) for mark in marks]
    panel.errorbar(
        places,
        means,
        yerr=deviations if any(len(mark.scores) > 1 for mark in marks) else None,
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
    given = [(x, y) for x, y, mark in zip(places, means, marks, strict=True) if mark.given]
    if given:
        ring = zip(*given, strict=True)
        panel.plot(*ring, "o", color="black", fillstyle="none", markersize=10, label=GIVEN)
    if numbers and numbers[0] > 0 and numbers[-1] >= LOGARITHMIC * numbers[0]:
        panel.set_xscale("log")
    labels = [printable(mark.label) for mark in marks]
    panel.set_xticks(places, labels, parse_math=False)
    panel.set_xticks([], minor=True)
    panel.margins(x=0.12 if numbers else 0.3)
    panel.grid(axis="y", color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _line(panel: "Axes", base: Sequence[float]) -> None:
    """The base detector alone, which is the same for every value."""
    mean, deviation = statistics.mean(base), _deviation(base)
    panel.axhline(mean, color="0.35", linestyle="--", linewidth=1.2, label=BASE)
    panel.axhspan(mean - deviation, mean + deviation, color="0.9", zorder=0, linewidth=0)


def _deviation(scores: Sequence[float]) -> float:
    return statistics.stdev(scores) if len(scores) > 1 else 0.0
