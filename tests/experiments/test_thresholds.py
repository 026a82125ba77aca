"""The table of false alarms, from figures that are made up."""

from pathlib import Path

import pytest

from experiments import thresholds
from experiments.thresholds import Options


def test_a_row_for_each_category_and_way(
    textures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_up(options: Options, name: str, part: str | None, way: str) -> list[dict[str, float]]:
        normals = {"once": 6, "in turn": 60}[way]
        rates = {"promised_fpr": 1 / (normals + 1), "fpr": 0.02, "tpr": 0.9}
        return [rates | {"held_out": normals, "test": 9} for _ in options.fpr]

    monkeypatch.setattr(thresholds, "measured", made_up)
    words = ["thresholds", "--data", str(textures), "--fpr", "0.01", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    thresholds.main()
    lines = (tmp_path / "thresholds.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("| ")] == [
        "| data set | held out | normals that set it | test normals | asked for 1 % |",
        "| textures/carpet | once | 6 | 9 | 14.3 / 2.0 / 90.0 |",
        "| textures/carpet | in turn | 60 | 9 | 1.6 / 2.0 / 90.0 |",
        "| textures/grid | once | 6 | 9 | 14.3 / 2.0 / 90.0 |",
        "| textures/grid | in turn | 60 | 9 | 1.6 / 2.0 / 90.0 |",
    ]
