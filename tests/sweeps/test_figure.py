"""The picture of a sweep."""

import statistics
from typing import Any

import pytest

from ahl_jax.sweeps.figure import Mark, draw, png


def numbers(given: int | None = None, **scores: list[float]) -> list[Mark]:
    return [
        Mark(name[1:], float(name[1:]), values, int(name[1:]) == given)
        for name, values in scores.items()
    ]


def words(drawn: Any) -> list[str]:
    (legend,) = drawn.legends
    return [text.get_text() for text in legend.get_texts()]


def test_the_figure_has_a_panel_per_setting_with_means_and_deviations() -> None:
    panels = {
        "subsets": numbers(n12=[0.6, 0.8], n1=[0.7, 0.8], n2=[0.9, 0.9]),
        "history": numbers(n2=[0.9, 0.9], n1=[0.7, 0.8], given=2),
    }
    drawn = draw(panels, [0.75, 0.85], title="AHL(DRA) on weave")
    first, second = drawn.axes
    assert first.get_xlabel() == "T, number of subsets"
    assert second.get_xlabel() == "K, past epochs that psi sees"
    assert "AUC-ROC" in first.get_ylabel()
    curve, _, (bars,) = first.containers[0].lines
    assert curve.get_xdata().tolist() == [1, 2, 12]
    assert curve.get_ydata() == pytest.approx([0.75, 0.9, 0.7])
    lengths = [high - low for (_, low), (_, high) in bars.get_segments()]
    assert lengths == pytest.approx([2 * statistics.stdev([0.7, 0.8]), 0, 2 * 0.02**0.5])
    assert first.get_xticks().tolist() == [1, 2, 12]
    assert [t.get_text() for t in first.get_xticklabels()] == ["1", "2", "12"]
    assert second.get_xticks().tolist() == [1, 2]
    for panel in (first, second):
        (line,) = [x for x in panel.lines if x.get_label().startswith("base detector alone")]
        assert set(line.get_ydata()) == {0.8}
        assert line.get_linestyle() == "--"
    assert not [x for x in first.lines if x.get_label() == "settings as given"]
    (ring,) = [x for x in second.lines if x.get_label() == "settings as given"]
    assert (ring.get_xdata().tolist(), ring.get_ydata().tolist()) == ([2], [0.9])
    assert words(drawn) == [
        "mean ± standard deviation of 2 seeds",
        "settings as given",
        "base detector alone, settings as given",
    ]
    assert drawn.get_suptitle() == "AHL(DRA) on weave"


def test_one_seed_has_no_bars_and_choices_have_no_line_between_them() -> None:
    panels = {
        "detector": [Mark("dra", None, [0.8]), Mark("devnet", None, [0.7])],
        "lr": [Mark(x, float(x), [y]) for x, y in (("0.0001", 0.6), ("0.1", 0.7), ("0.01", 0.75))],
    }
    drawn = draw(panels)
    choices, rates = drawn.axes
    curve, caps, bars = choices.containers[0].lines
    assert (caps, bars) == ((), ())
    assert curve.get_linestyle() == "None"
    assert curve.get_ydata().tolist() == [0.8, 0.7]
    assert [t.get_text() for t in choices.get_xticklabels()] == ["dra", "devnet"]
    assert rates.get_xscale() == "log"
    assert [t.get_text() for t in rates.get_xticklabels()] == ["0.0001", "0.01", "0.1"]
    assert choices.get_ylim() == rates.get_ylim()
    assert words(drawn) == ["one seed"]


def test_numbers_beside_words_are_choices() -> None:
    marks = [Mark("2", 2.0, [0.8]), Mark("8", 8.0, [0.9]), Mark("2+8", None, [0.95])]
    (panel,) = draw({"views": marks}).axes
    assert [t.get_text() for t in panel.get_xticklabels()] == ["2", "8", "2+8"]
    assert panel.containers[0].lines[0].get_ydata().tolist() == [0.8, 0.9, 0.95]


def test_values_may_have_different_numbers_of_seeds() -> None:
    drawn = draw({"subsets": numbers(n1=[0.7, 0.8, 0.9], n2=[0.9])})
    assert words(drawn) == ["mean ± standard deviation of 1 to 3 seeds"]


def test_a_long_title_is_wrapped_to_the_width() -> None:
    title = "AHL(DevNet), 20 updates per epoch on elpv: general setting, 10 labelled anomalies"
    drawn = draw({"subsets": numbers(n1=[0.7], n2=[0.9])}, title=title)
    drawn.draw_without_rendering()
    (heading,) = [text for text in drawn.texts if text.get_text().replace("\n", " ") == title]
    box = heading.get_window_extent()
    assert drawn.bbox.x0 <= box.x0 < box.x1 <= drawn.bbox.x1


def test_many_panels_fill_rows_and_leave_no_empty_axes() -> None:
    names = ["subsets", "clusters", "history", "shots", "steps"]
    drawn = draw({name: numbers(n2=[0.5]) for name in names})
    assert len(drawn.axes) == len(names)
    drawn.draw_without_rendering()
    tops = [round(panel.get_position().y1, 3) for panel in drawn.axes]
    assert len(set(tops)) == 2
    assert len(png(drawn)) > 10_000


def test_names_of_data_sets_and_classes_are_no_formulas() -> None:
    marks = [Mark(name, None, [0.5], False) for name in ("$a_{", "caf\udce9", "two\nlines")]
    assert png(draw({"seen-class": marks}, None, title="AHL(DRA) on _$b_{ $c"))
