"""The picture of what is ahead of the published figures, from made-up tables."""

from pathlib import Path

import numpy as np
import pytest

from ahl_jax import UserError
from ahl_jax.common.files import csv_text
from experiments import summary
from experiments.summary import BEST, Summary
from tests.experiments.script import COLUMNS


def write(folder: Path, name: str, *cells: tuple) -> None:
    rest = (0.5, 1.0, "c")
    rows = [dict(zip(COLUMNS, (name[5], *cell, *rest), strict=True)) for cell in cells]
    (folder / f"{name}.csv").write_text(csv_text(rows))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write(
        tmp_path,
        "table1_general",
        ("general", 1, "elpv", "", "Density", 0, 0.80),
        ("general", 10, "elpv", "", "Density", 0, 0.90),
        ("general", 10, "elpv", "", "Density", 1, 0.92),
        ("general", 10, "weave", "", "Density", 0, 0.9),
        ("general", 10, "sdd", "", "AHL(Density)", 0, 0.9),
    )
    write(
        tmp_path,
        "table2_hard",
        ("hard", 10, "mvtec/carpet", "cut", "Density", 0, 0.9),
        ("hard", 10, "mvtec/carpet", "hole", "Density", 0, 0.8),
        ("hard", 10, "elpv", "mono", "Density", 0, 0.9),
    )
    return tmp_path


def test_a_table_and_a_picture(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["summary", "--results", str(results)])
    summary.main()
    lines = capsys.readouterr().out.splitlines()
    head, body = lines[0], lines[2:6]
    assert head.startswith("| data set | setting | M | Density | minus AHL(DRA) |")
    # The paper has no weave, and Density no sdd.
    assert body == [
        "| elpv | general | 10 | 0.910 ± 0.014 | +0.060 (0.850) | +0.061 (0.849) "
        "| -0.006 (0.916, PatchCore) |",
        "| elpv | general | 1 | 0.800 | +0.077 (0.723) | -0.028 (0.828) "
        "| -0.116 (0.916, PatchCore) |",
        "| elpv | hard | 10 | 0.900 | +0.112 (0.788) | +0.148 (0.752) | +0.112 (0.788, AHL(DRA)) |",
        "| mvtec/carpet | hard | 10 | 0.850 | -0.099 (0.949) | -0.010 (0.860) "
        "| -0.099 (0.949, AHL(DRA)) |",
    ]
    assert (results / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_bars_are_ahead_or_behind_and_labelled(results: Path) -> None:
    figure = summary.draw(summary.gaps(Summary(results=results)), "Density")
    general, *_ = panels = figure.axes
    assert len(panels) == 6
    assert [bar.get_width() for bar in general.patches] == pytest.approx([0.06, 0.077])
    assert [label.get_text() for label in general.texts] == ["+0.060", "+0.077"]
    assert panels[2].get_title() == f"general setting, minus {BEST}"
    ahead, behind = (bar.get_facecolor() for bar in panels[3].patches)
    assert {bar.get_facecolor() for bar in general.patches} == {ahead}
    # As grey, by Rec. 709.
    dark, light = (colour[:3] @ np.array([0.21, 0.72, 0.07]) for colour in (ahead, behind))
    assert light - dark > 0.4
    for panel in panels:
        low, high = panel.get_xlim()
        assert low < 0 < high


def test_one_table_is_enough_and_another_method_has_a_file_of_its_own(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (results / "table2_hard.csv").unlink()
    words = ["summary", "--results", str(results), "--method", "AHL(Density)"]
    monkeypatch.setattr("sys.argv", words)
    summary.main()
    assert [path.name for path in results.glob("*.png")] == ["summary_ahl-density.png"]


def test_without_a_figure_there_is_no_picture(results: Path) -> None:
    with pytest.raises(UserError, match="no table with 'MLEP'"):
        summary.gaps(Summary("MLEP", results))
