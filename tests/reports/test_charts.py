import re

import numpy as np
import pytest

from ahl_jax.reports import charts


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.-]+) ([\d.-]+)", path)]


def test_lines_are_where_the_axes_say() -> None:
    corners = np.array([0.0, 1.0])
    chart = charts.lines("ROC", "", {"run": (corners, corners)}, "x", "y", unit=True,
                         diagonal=True, marks={"here": (0.5, 1.0, 0)})  # fmt: skip
    (line,) = chart.lines
    assert points(line.path) == [(chart.left, chart.bottom), (chart.right, chart.top)]
    assert chart.diagonal == line.path
    (mark,) = chart.marks
    assert (mark.x, mark.y) == ((chart.left + chart.right) / 2, chart.top)
    assert {t.text: t.place for t in chart.x_ticks}["1"] == chart.right
    assert {t.text: t.place for t in chart.y_ticks}["0"] == chart.bottom


def test_a_line_breaks_where_there_is_no_value() -> None:
    y = np.array([np.nan, 1.0, np.nan, 2.0, 3.0])
    (line,) = charts.lines("w", "", {"w_1": (np.arange(5.0), y)}, "epoch", "w").lines
    assert line.path.count("M") == 2
    assert len(points(line.path)) == 3
    assert "nan" not in line.path


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [-1e-9, 1e9]])
def test_any_range_can_be_drawn(values: list[float]) -> None:
    x = np.arange(len(values), dtype=float)
    chart = charts.lines("loss", "", {"loss": (x, np.array(values))}, "epoch", "loss")
    for a, b in points(chart.lines[0].path):
        assert chart.left <= a <= chart.right
        assert chart.top - 0.1 <= b <= chart.bottom + 0.1
    charts.histogram("scores", "", {"normal": np.array(values)}, "score", None)


def test_a_long_line_keeps_its_ends() -> None:
    x = np.linspace(0, 1, 50_000)
    (line,) = charts.lines("ROC", "", {"run": (x, x)}, "x", "y", unit=True).lines
    found = points(line.path)
    assert len(found) <= 400
    assert found[0][0] == 54
    assert found[-1][0] == 348


def test_more_lines_than_colours_differ_in_dashes() -> None:
    x = np.arange(3.0)
    chart = charts.lines("w", "", {f"w_{i}": (x, x + i) for i in range(24)}, "epoch", "w")
    assert len({line.style for line in chart.lines}) == 24


def test_a_histogram_counts() -> None:
    rows = {"normal": np.array([0.0, 0.1, 0.2, 14.0]), "crack": np.array([14.0])}
    chart = charts.histogram("scores", "", rows, "score", 20.0, bins=2)

    def heights(row: charts.Row) -> list[float]:
        found = np.array([row.base - y for _, y in points(row.bars.path)])
        return np.round(found / found.max(), 2).tolist()

    normal, crack = chart.rows
    assert (normal.label, crack.label) == ("normal (4)", "crack (1)")
    # From the base up to three images, to one image, and down.
    assert heights(normal) == [0, 1, 1, 0.33, 0.33, 0]
    assert heights(crack) == [0, 0, 0, 1, 1, 0]
    # The threshold belongs to the range.
    assert chart.threshold is not None
    assert chart.threshold.place == chart.right
