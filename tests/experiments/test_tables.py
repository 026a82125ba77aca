"""The scripts of the paper's tables, on a tiny data set."""

import csv
import json
import statistics
from pathlib import Path

import pytest

from ahl_jax import UserError
from experiments.tables.methods import COMPONENTS
from tests.experiments.script import COLUMNS, Script, in_words, scores
from tests.sweeps.stand_in import StandIn


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weave: Path) -> Script:
    return Script(tmp_path, monkeypatch, weave)


def test_the_general_table_holds_every_run_and_a_second_call_only_reads(
    script: Script, stand_in: StandIn
) -> None:
    pair = ("--methods", "DevNet", "AHL(DevNet)")
    rows, text = script("table1_general", *pair)
    assert list(rows[0]) == COLUMNS
    assert [(row["method"], row["seed"]) for row in rows] == [
        ("DevNet", "0"), ("DevNet", "1"), ("AHL(DevNet)", "0"), ("AHL(DevNet)", "1")
    ]  # fmt: skip
    assert {(r["table"], r["setting"], r["shots"], r["dataset"]) for r in rows} == {
        ("1", "general", "4", "weave")
    }
    base, ahl = scores(rows, "DevNet"), scores(rows, "AHL(DevNet)")
    assert f"| DevNet | {in_words(list(base.values()))} |" in text
    difference = statistics.mean(ahl[seed] - base[seed] for seed in base)
    assert f"| AHL(DevNet) minus DevNet | {difference:+.4f} |" in text
    assert "python -m experiments.table1_general --data" in text
    assert len(stand_in.trained) == 4
    assert script("table1_general", *pair) == (rows, text)
    assert len(stand_in.trained) == 4
    # Another row is trained; the rows and runs that are there stay.
    more, _ = script("table1_general", "--methods", "AHL(DevNet), 20 updates per epoch")
    assert more[:4] == rows
    assert len(more) == len(stand_in.trained) == 6


def test_a_stopped_sweep_has_its_table_and_goes_on(script: Script, stand_in: StandIn) -> None:
    stand_in.stop_in = "spot"
    with pytest.raises(KeyboardInterrupt):
        script("table2_hard", "--methods", "DevNet")
    out = script.tmp_path / "results"
    assert "DevNet,0" in (out / "table2_hard_quick.csv").read_text()
    assert "| DevNet |" not in (out / "table2_hard_quick.md").read_text()
    stand_in.stop_in = None
    rows, text = script("table2_hard", "--methods", "DevNet")
    scratch, spot = (scores(rows, "DevNet", seen) for seen in ("scratch", "spot"))
    means = [(scratch[seed] + spot[seed]) / 2 for seed in (0, 1)]
    parts = [in_words(list(scratch.values())), in_words(list(spot.values())), in_words(means)]
    assert "| method | seen scratch | seen spot | mean AUC-ROC |" in text
    assert f"| DevNet | {' | '.join(parts)} |" in text


def test_a_sweep_is_drawn_beside_its_base_detector(script: Script, stand_in: StandIn) -> None:
    arguments = ("--of", "AHL(DevNet)", "--clusters", "2", "3", "2", "--history", "2", "5")
    rows, text = script("fig3_sensitivity", *arguments, variant="_ahl-devnet")
    assert [row["method"] for row in rows[::2]] == ["DevNet", "C = 2", "C = 3", "K = 2", "K = 5"]
    # The debug preset has C = 2 and K = 2.
    first, other, same = (scores(rows, name) for name in ("C = 2", "C = 3", "K = 2"))
    assert first == same != other
    assert [line.split(" |")[0] for line in text.splitlines() if line.startswith("| C")] == [
        "| C = 2", "| C = 3", "| C = 2 minus DevNet", "| C = 3 minus DevNet"
    ]  # fmt: skip
    (picture,) = (script.tmp_path / "results").glob(
        "fig3_sensitivity_ahl-devnet_quick_weave_4shot.png"
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_settings_that_are_no_numbers_are_varied_too(script: Script, stand_in: StandIn) -> None:
    arguments = ("--of", "AHL(DevNet)", "--over", "gradient", "generators", "whiten", "gradient")
    variant = "_gradient_generators_whiten_ahl-devnet"
    rows, text = script("ablate_settings", *arguments, variant=variant)
    assert [row["method"] for row in rows[::2]] == [
        "DevNet",
        "gradient = first order", "gradient = exact",
        "generators = cutmix, cutpaste", "generators = cutmix, draem",
        "generators = cutpaste, draem", "generators = cutmix, cutpaste, draem",
        "whiten = off", "whiten = on",
    ]  # fmt: skip
    as_given = scores(rows, "gradient = first order")
    assert scores(rows, "whiten = off") == as_given
    assert scores(rows, "generators = cutmix, cutpaste, draem") == as_given
    assert scores(rows, "whiten = on") != as_given
    assert "| gradient = exact minus DevNet |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--over", "colour"), "`over` has no 'colour'; choose from updates_per_epoch"),
        (("--over", "whiten"), "'whiten'"),
        (("--of", "Density, groups", "--over", "lr"), "`of` has no 'Density, groups'"),
    ],
)
def test_what_cannot_be_varied_is_refused(
    script: Script, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        script("ablate_settings", *arguments)


@pytest.mark.slow
def test_every_component_of_table_5_trains_in_its_own_way(script: Script) -> None:
    arguments = ("--settings", "general", "--seeds", "0")
    rows, text = script("table5_ablation", *arguments)
    assert [row["method"] for row in rows] == list(COMPONENTS)
    runs = script.tmp_path / "runs/quick/weave/general-4-shots"
    histories = set()
    for folder in runs.iterdir():
        with (folder / "seed-0/history.csv").open(newline="") as file:
            epochs = [epoch | {"seconds": ""} for epoch in csv.DictReader(file)]
        assert len(epochs) == 4
        histories.add(str(epochs))
    assert len(histories) == len(COMPONENTS)
    assert "| +HADG+CDL- minus DRA |" in text
    # One seed has no deviation and no interval.
    assert "±" not in text
    assert "nan" not in text


@pytest.mark.slow
def test_what_trains_nothing_is_a_row_like_any_other(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--methods", "PatchCore")
    rows, text = script("table4_supervision", *arguments)
    assert [row["method"] for row in rows] == ["PatchCore"] * 2
    assert all(float(row["auc_roc"]) > 0.6 for row in rows)
    assert "## weave: general setting" in text
    monkeypatch.setattr("ahl_jax.sweeps.cells.train_seeds", None)
    assert script("table4_supervision", *arguments) == (rows, text)


@pytest.mark.slow
def test_the_fully_supervised_rows_see_every_class(script: Script) -> None:
    rows, _ = script("table4_supervision", "--methods", "FS-DRA", "--seeds", "0")
    (run,) = (script.tmp_path / "runs").rglob("metrics.json")
    metrics = json.loads(run.read_text())
    assert metrics["n_seen"] == 8
    assert {name: one["n"] for name, one in metrics["per_class"].items()} == {
        "scratch": 3,
        "spot": 3,
    }
    assert [row["setting"] for row in rows] == ["general"]


def test_table_7_has_a_row_per_category_and_their_mean(
    script: Script, stand_in: StandIn, textures: Path
) -> None:
    script.data = textures
    rows, text = script("table7_mvtec", "--methods", "DevNet", "Density")
    assert {(row["table"], row["setting"]) for row in rows} == {("7", "general")}
    assert "## textures: general setting, 4 labelled anomalies" in text
    found = [
        [scores([row for row in rows if row["dataset"] == f"textures/{name}"], method)
         for method in ("DevNet", "Density")]
        for name in ("carpet", "grid")
    ]  # fmt: skip
    found.append([{s: (a[s] + b[s]) / 2 for s in a} for a, b in zip(*found, strict=True)])
    names = ("carpet", "grid", "mean of 2 categories")
    assert text.splitlines()[-5:] == ["| category | DevNet | Density |", "|---|---|---|"] + [
        f"| {name} | {' | '.join(in_words(list(one.values())) for one in figures)} |"
        for name, figures in zip(names, found, strict=True)
    ]
    # Table 1 has the same runs.
    before = len(stand_in.trained)
    script("table1_general", "--methods", "DevNet", "Density")
    assert len(stand_in.trained) == before == 8


def test_table_8_has_a_row_per_seen_class(script: Script, stand_in: StandIn) -> None:
    rows, text = script("table8_hard", "--methods", "DevNet")
    assert {(row["table"], row["setting"]) for row in rows} == {("8", "hard")}
    scratch, spot = (scores(rows, "DevNet", seen) for seen in ("scratch", "spot"))
    means = [(scratch[seed] + spot[seed]) / 2 for seed in (0, 1)]
    assert text.splitlines()[-5:] == [
        "| seen class | DevNet |",
        "|---|---|",
        f"| scratch | {in_words(list(scratch.values()))} |",
        f"| spot | {in_words(list(spot.values()))} |",
        f"| mean of 2 classes | {in_words(means)} |",
    ]
