"""The tables in Markdown, and the rows that they keep."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from ahl_jax import UserError
from ahl_jax.common.files import csv_text
from experiments.tables.cells import Options, Table, plan
from experiments.tables.parts import COLUMNS as METHODS_OF_PARTS
from experiments.tables.parts import by_part
from experiments.tables.published import published
from experiments.tables.report import markdown, merged, read_rows
from tests.experiments.script import COLUMNS, in_words


def test_the_published_figures_are_found_by_any_spelling() -> None:
    assert published("1", "general", 10, "elpv", "AHL(DRA)") == "0.850 ± 0.004"
    assert published("2", "hard", 10, "metal_nut", "DRA") == "0.968 ± 0.006"
    assert published("5", "hard", 10, "ELPV", "+HADG+CDL-") == "0.779 ± 0.001"
    assert published("3", "cross-domain", 10, "Grid->Carpet", "DRA") == "0.833"
    mvtec = published("1", "general", 1, "MVTec AD", "DRA")
    assert mvtec is not None
    assert published("1", "general", 1, "mvtec_anomaly_detection", "DRA") == mvtec
    assert published("1", "general", 10, "weave", "DRA") is None
    assert published("1", "general", 5, "elpv", "DRA") is None


def test_categories_have_a_mean_of_their_own(weave: Path, tmp_path: Path) -> None:
    for category in ("a", "b"):
        (tmp_path / "mvtec").mkdir(exist_ok=True)
        shutil.copytree(weave, tmp_path / "mvtec" / category)
    options = Options(
        data=(str(tmp_path / "mvtec"),), category=("a", "b"), shots=(4,), methods=("DRA",)
    )
    table = Table("x", "1", "X")
    cells = plan(table, options)
    # By default all that there are.
    assert plan(table, dataclasses.replace(options, category=())) == cells
    figures = {("mvtec/a", 0): 0.5, ("mvtec/a", 1): 0.6, ("mvtec/b", 0): 0.7, ("mvtec/b", 1): 0.9}
    rows = [
        dict(
            zip(
                COLUMNS, ("1", "general", 4, name, "", "DRA", seed, auc, auc, 1.0, "c"), strict=True
            )
        )
        for (name, seed), auc in figures.items()
    ]
    text = markdown(table, cells, rows, "command")
    assert "## mvtec/a: general setting, 4 labelled anomalies" in text
    mean = text.partition("## mvtec, mean of 2 categories")[2]
    assert f"| DRA | {in_words([0.6, 0.75])} |" in mean
    partial = markdown(table, cells, rows[:2], "command")
    assert "## mvtec, mean" not in partial


def test_differences_over_all_data_sets_count_each_once() -> None:
    table = Table("x", "1", "X")
    figures = {
        ("a", "DRA"): [0.5, 0.6],
        ("a", "AHL(DRA)"): [0.6, 0.8],
        ("b", "DRA"): [0.7],
        ("b", "AHL(DRA)"): [0.65],
    }
    rows = [
        dict(zip(COLUMNS, ("1", "general", 4, data, "", name, i, auc, auc, 1.0, "c"), strict=True))
        for (data, name), aucs in figures.items()
        for i, auc in enumerate(aucs)
    ]
    last = markdown(table, [], rows, "command").partition("## Over all data sets")[2]
    # The means 0.15 and -0.05, with Student's t of one degree of freedom.
    half = 12.7062 * 0.1
    assert f"| AHL(DRA) minus DRA | +0.0500 | {0.05 - half:+.4f} to {0.05 + half:+.4f} |" in last
    assert "| 1 of 2 |" in last
    assert "Over all" not in markdown(table, [], rows[:4], "command")


def test_a_method_can_be_added_to_a_table_that_is_there(tmp_path: Path) -> None:
    table = Table("x", "1", "X")
    values = ("1", "general", 4, "weave", "", "DRA", 0, 0.5, 0.5, 1.0, "old")
    old = [dict(zip(COLUMNS, values, strict=True)) | {"seed": seed} for seed in (0, 1)]
    path = tmp_path / "x.csv"
    # One whose name a spreadsheet would take for a formula.
    for rows in ([old[0] | {"method": "+Ensemble"}], old):
        path.write_text(csv_text(rows), encoding="utf-8")
        assert read_rows(path) == rows
    # The same figures again, other ones, and a method that stands before it.
    again, other = old[0] | {"commit": "new"}, old[1] | {"auc_roc": 0.75, "commit": "new"}
    more = [one | {"method": "DevNet"} for one in (again, other)]
    found = merged(rows, [again, other, *more], table)
    assert found == [*more, old[0], other]
    text = markdown(table, [], found, "command")
    assert "Commits, row by row in the CSV: new, old" in text
    assert ". Rows of earlier runs: DevNet; DRA" in text
    # A row that the table no longer has, such as a value that is not asked for again, stays too.
    gone = old[0] | {"method": "C = 9", "auc_roc": 0.25}
    rows_with_it = merged([gone], more, table)
    assert rows_with_it == [*more, gone]
    assert "| C = 9 | 0.250 |" in markdown(table, [], rows_with_it, "command")
    for broken in (
        b"\xff\xfe no table",
        b"garbage,1\n",
        b"",
        path.read_bytes().replace(b"0.5", b"x"),
    ):
        path.write_bytes(broken)
        with pytest.raises(UserError, match="is no table of earlier runs"):
            read_rows(path)


def test_the_published_means_stand_below_the_parts() -> None:
    values = ("8", "hard", 10, "elpv", "mono", "DRA", 0, 0.5, 0.5, 1.0, "c")
    one = dict(zip(COLUMNS, values, strict=True))
    rows = [one, one | {"seen_class": "poly", "auc_roc": 0.7}]
    rows += [rows[0] | {"method": "Density", "auc_roc": 0.9}]
    text = by_part(Table("x", "8", "X", methods=METHODS_OF_PARTS), [], rows, "command")
    # Density has not seen the other class yet, so it has no mean.
    assert text.splitlines()[-6:] == [
        "| seen class | DRA | Density |",
        "|---|---|---|",
        "| mono | 0.500 | 0.900 |",
        "| poly | 0.700 |  |",
        "| mean of 2 classes | 0.600 |  |",
        f"| mean, published | {published('2', 'hard', 10, 'elpv', 'DRA')} |  |",
    ]
