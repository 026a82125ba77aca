"""Charts as SVG: places of lines and bars; colours and fonts are the page's, by CSS classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

WIDTH, HEIGHT = 360, 250

COLOURS = 8
"""How many the page has; further lines have the same ones and are dashed."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 10, 38
_ROW = 58
"""Height of a row of a histogram."""

_POINTS = 400
"""A longer line is thinned to so many points."""


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in the drawing's units, and what is written there."""

    place: float
    text: str


@dataclass(frozen=True)
class Line:
    """A line, or the outline of bars."""

    label: str
    path: str
    number: int
    """From 0; decides colour and dashes."""

    @property
    def style(self) -> str:
        """CSS classes."""
        return f"c{self.number % COLOURS} d{self.number // COLOURS % 3}"


@dataclass(frozen=True)
class Mark:
    """A point with a word on it."""

    x: float
    y: float
    label: str
    number: int


@dataclass(frozen=True)
class Row:
    """A row of a histogram."""

    label: str
    top: float
    base: float
    bars: Line


@dataclass(frozen=True)
class Chart:
    """All that the template draws."""

    title: str
    description: str
    x_label: str
    y_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick] = ()
    lines: Sequence[Line] = ()
    marks: Sequence[Mark] = ()
    rows: Sequence[Row] = ()
    diagonal: str = ""
    threshold: Tick | None = None
    height: int = HEIGHT
    width: int = WIDTH
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP

    @property
    def bottom(self) -> int:
        """Where the x axis is."""
        return self.height - _BOTTOM


Points = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]


def lines(
    title: str,
    description: str,
    series: Mapping[str, Points],
    x_label: str,
    y_label: str,
    *,
    unit: bool = False,
    diagonal: bool = False,
    marks: Mapping[str, tuple[float, float, int]] | None = None,
) -> Chart:
    """Lines by their labels.

    Args:
        title: of the chart.
        description: its alternative text.
        series: x and y of each line; a line breaks where y is not finite.
        x_label: of the axis.
        y_label: of the axis.
        unit: whether both axes go from 0 to 1.
        diagonal: whether to draw what chance would be.
        marks: points by their words, with the number of the line that they are on.
    """
    xs = np.concatenate([x for x, _ in series.values()])
    ys = np.concatenate([y for _, y in series.values()])
    ys = ys[np.isfinite(ys)]
    x_ticks = _ticks(0, 1) if unit else _ticks(float(xs.min()), float(xs.max()), whole=True)
    y_ticks = _ticks(0, 1) if unit else _ticks(float(ys.min()), float(ys.max()))
    across = _Scale(0 if unit else float(xs.min()), 1 if unit else float(xs.max()),
                    _LEFT, WIDTH - _RIGHT)  # fmt: skip
    upward = _Scale(y_ticks[0], y_ticks[-1], HEIGHT - _BOTTOM, _TOP)
    drawn = [
        Line(label, _path(across(x), upward(y)), number)
        for number, (label, (x, y)) in enumerate(series.items())
    ]
    corners = np.array([0.0, 1.0])
    return Chart(
        title, description, x_label, y_label,
        [Tick(float(across(t)), _number(t)) for t in x_ticks if across.holds(t)],
        [Tick(float(upward(t)), _number(t)) for t in y_ticks],
        drawn,
        [Mark(float(across(x)), float(upward(y)), label, number)
         for label, (x, y, number) in (marks or {}).items()],
        diagonal=_path(across(corners), upward(corners)) if diagonal else "",
    )  # fmt: skip


def histogram(
    title: str,
    description: str,
    rows: Mapping[str, Float[np.ndarray, " n"]],
    x_label: str,
    threshold: float | None,
    *,
    bins: int = 48,
) -> Chart:
    """A histogram per row, on one x axis; each as high as its fullest bin.

    Args:
        title: of the chart.
        description: its alternative text.
        rows: values by their label.
        x_label: of the axis.
        threshold: a value to draw a line at.
        bins: how many.
    """
    every = np.concatenate([*rows.values(), [] if threshold is None else [threshold]])
    low, high = float(every.min()), float(every.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    across = _Scale(low, high, _RIGHT, WIDTH - _RIGHT)
    top = _TOP + (16 if threshold is not None else 0)
    height = top + _ROW * len(rows) + _BOTTOM
    edges = np.linspace(low, high, bins + 1)
    drawn = []
    for number, (label, values) in enumerate(rows.items()):
        counts, _ = np.histogram(values, edges)
        base = top + _ROW * (number + 1)
        outline = base - (_ROW - 22) * np.repeat(counts, 2) / max(counts.max(), 1)
        path = _path(np.repeat(across(edges), 2), np.concatenate([[base], outline, [base]]))
        title_of_row = f"{label} ({len(values)})"
        drawn.append(Row(title_of_row, base - _ROW, base, Line(label, path, number)))
    return Chart(
        title, description, x_label, "",
        [Tick(float(across(t)), _number(t)) for t in _ticks(low, high) if across.holds(t)],
        rows=drawn, height=height, top=top, left=_RIGHT,
        threshold=None if threshold is None
        else Tick(float(across(threshold)), f"threshold {threshold:.4g}"),
    )  # fmt: skip


class _Scale:
    """From values to the drawing's units."""

    def __init__(self, low: float, high: float, start: float, end: float):
        self.low, self.high = low, high if high > low else low + 1
        self.start, self.end = start, end

    def __call__(self, values: float | np.ndarray) -> np.ndarray:
        share = (np.asarray(values) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def holds(self, value: float) -> bool:
        slack = 1e-9 * (self.high - self.low)
        return self.low - slack <= value <= self.high + slack


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round values around a range."""
    # Imported late: it takes half a second.
    from matplotlib.ticker import MaxNLocator

    return [float(tick) for tick in MaxNLocator(5, integer=whole).tick_values(low, high)]


def _number(value: float) -> str:
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}"


def _path(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> str:
    """An SVG path through points, thinned; broken where one is not finite."""
    if len(x) > _POINTS:
        kept = np.unique(np.linspace(0, len(x) - 1, _POINTS).round().astype(int))
        x, y = x[kept], y[kept]
    words: list[str] = []
    pen = "M"
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        if not np.isfinite(b):
            pen = "M"
            continue
        # h0 makes a dot of a point that has no neighbours.
        words.append(f"{pen}{a:.1f} {b:.1f}" + ("h0" if pen == "M" else ""))
        pen = "L"
    return "".join(words)
