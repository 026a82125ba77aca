"""The scripts of the paper's tables, on a tiny data set."""

import csv
import dataclasses
import importlib
import json
import math
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ahl_jax import UserError, preset
from ahl_jax.common.files import csv_text
from ahl_jax.config.presets import with_settings
from ahl_jax.detectors import DETECTORS
from ahl_jax.storage.workdir import Workdir
from experiments.tables.cells import Options, Table, plan
from experiments.tables.methods import COMPONENTS, METHODS, SUPERVISION, varied
from experiments.tables.pairs import paired
from experiments.tables.published import published
from experiments.tables.report import markdown, merged, read_rows
from experiments.tables.sweep import output

COLUMNS = [
    "table", "setting", "shots", "dataset", "seen_class", "method", "seed", "auc_roc", "auc_pr",
    "seconds", "commit",
]  # fmt: skip


class Script:
    """A script with the folders of a test."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path):
        self.tmp_path, self.monkeypatch, self.data = tmp_path, monkeypatch, data

    def __call__(
        self, name: str, *arguments: str, variant: str = ""
    ) -> tuple[list[dict[str, str]], str]:
        """The rows of the CSV and the text of the Markdown file."""
        out = self.tmp_path / "results"
        words = [name, "--data", str(self.data), "--quick", "--seeds", "0", "1", "--shots", "4"]
        words += ["--workdir", str(self.tmp_path / "runs"), "--out", str(out), *arguments]
        self.monkeypatch.setattr("sys.argv", words)
        importlib.import_module(f"experiments.{name}").main()
        with (out / f"{name}{variant}_quick.csv").open(newline="") as file:
            return list(csv.DictReader(file)), (out / f"{name}{variant}_quick.md").read_text()


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weave: Path) -> Script:
    return Script(tmp_path, monkeypatch, weave)


def scores(rows: list[dict[str, str]], method: str, seen: str = "") -> dict[int, float]:
    mine = [r for r in rows if (r["method"], r["seen_class"]) == (method, seen)]
    return {int(row["seed"]): float(row["auc_roc"]) for row in mine}


def in_words(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def test_the_general_table_holds_every_run_and_a_second_call_only_reads(
    script: Script, monkeypatch: pytest.MonkeyPatch
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
    monkeypatch.setattr("ahl_jax.run.epochs.mesh_for", None)
    assert script("table1_general", *pair) == (rows, text)
    # Another row is trained; the runs that are there are not.
    with pytest.raises(TypeError):
        script("table1_general", *pair, "AHL(DevNet), 20 updates per epoch")


def test_a_stopped_sweep_has_its_table_and_goes_on(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Workdir.write_history

    def stop_in_the_second_class(self: Workdir, rows: list) -> None:
        if "spot" in str(self.path):
            raise KeyboardInterrupt
        write(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Workdir, "write_history", stop_in_the_second_class)
        with pytest.raises(KeyboardInterrupt):
            script("table2_hard", "--methods", "DevNet")
    out = script.tmp_path / "results"
    assert "DevNet,0" in (out / "table2_hard_quick.csv").read_text()
    assert "| DevNet |" not in (out / "table2_hard_quick.md").read_text()
    rows, text = script("table2_hard", "--methods", "DevNet")
    scratch, spot = (scores(rows, "DevNet", seen) for seen in ("scratch", "spot"))
    means = [(scratch[seed] + spot[seed]) / 2 for seed in (0, 1)]
    parts = [in_words(list(scratch.values())), in_words(list(spot.values())), in_words(means)]
    assert "| method | seen scratch | seen spot | mean AUC-ROC |" in text
    assert f"| DevNet | {' | '.join(parts)} |" in text


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
    monkeypatch.setattr("experiments.tables.sweep.train_seeds", None)
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


@pytest.mark.slow
def test_a_sweep_is_drawn_beside_its_base_detector(script: Script) -> None:
    arguments = ("--of", "AHL(DevNet)", "--clusters", "2", "3", "2", "--history", "2")
    rows, text = script("fig3_sensitivity", *arguments, variant="_ahl-devnet")
    assert [row["method"] for row in rows[::2]] == ["DevNet", "C = 2", "C = 3", "K = 2"]
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


@pytest.mark.slow
def test_settings_that_are_no_numbers_are_varied_too(script: Script) -> None:
    arguments = ("--of", "AHL(DevNet)", "--over", "gradient", "generators", "whiten")
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
    with pytest.raises(UserError, match="--over has no 'colour'; choose from updates_per_epoch"):
        script("ablate_settings", "--over", "colour")
    with pytest.raises(UserError, match="'whiten'"):
        script("ablate_settings", "--over", "whiten")
    with pytest.raises(UserError, match="--of has no 'Density, groups'"):
        script("ablate_settings", "--of", "Density, groups", "--over", "gradient")


numbers = st.dictionaries(st.integers(0, 99), st.floats(0, 1), min_size=2, max_size=9)


@given(ours=numbers, theirs=numbers)
def test_the_paired_interval_is_that_of_the_paired_t_test(ours, theirs) -> None:
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return
    result = paired(ours, theirs)
    a, b = (np.array([one[seed] for seed in seeds]) for one in (ours, theirs))
    assert result.mean == pytest.approx((a - b).mean(), abs=1e-12)
    assert (result.ahead, result.seeds) == ((a > b).sum(), len(seeds))
    if len(seeds) == 1:
        assert math.isnan(result.low)
        assert math.isnan(result.high)
    elif np.ptp(a - b) > 1e-6:
        low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert (result.low, result.high) == (pytest.approx(low), pytest.approx(high))


def test_the_paired_interval_of_known_figures() -> None:
    result = paired({0: 0.9, 1: 0.8, 2: 0.7}, {0: 0.8, 1: 0.75, 2: 0.75})
    # 4.303 is the 97.5 % point of Student's t with two degrees of freedom.
    half = 4.302653 * statistics.stdev([0.1, 0.05, -0.05]) / math.sqrt(3)
    assert result == (
        pytest.approx(0.1 / 3), pytest.approx(0.1 / 3 - half), pytest.approx(0.1 / 3 + half), 2, 3
    )  # fmt: skip


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


def test_settings_reach_every_room_of_the_config() -> None:
    paper = preset("paper", "elpv")
    for method in (METHODS | SUPERVISION | COMPONENTS).values():
        config = with_settings(paper, method.settings).to_dict()
        flat = {k: v for room in config.values() if isinstance(room, dict) for k, v in room.items()}
        assert {name: flat[name] for name in method.settings} == dict(method.settings)
    assert with_settings(paper, {"setting": "hard", "seen_class": "mono"}).data.setting == "hard"
    with pytest.raises(UserError, match="colour"):
        with_settings(paper, {"colour": 1})


def test_updates_that_the_debug_preset_has_no_steps_for_get_them(
    weave: Path, tmp_path: Path
) -> None:
    options = Options(data=(str(weave),), workdir=tmp_path, shots=(4,), quick=True)
    rows = varied(METHODS["AHL(DevNet)"], "updates", "updates_per_epoch", (1, 2, 20))
    cells = plan(Table("x", "1", "X", methods=rows), options)
    found = [(c.config.learning.updates_per_epoch, c.config.learning.steps) for c in cells]
    assert found == [(1, 4), (2, 4), (20, 20)]
    assert len({cell.folder for cell in cells}) == 3


def test_the_same_settings_have_the_same_folder(weave: Path, tmp_path: Path) -> None:
    options = Options(data=(str(weave),), workdir=tmp_path, shots=(4,))
    rows = METHODS | COMPONENTS | varied(METHODS["AHL(DRA)"], "C", "clusters", (3, 4))
    folders = {c.method: c.folder for c in plan(Table("x", "1", "X", methods=rows), options)}
    assert folders["AHL(DRA)"] == folders["+HADG+CDL+"] == folders["C = 3"]
    assert len(set(folders.values())) == len(folders) - 2


def test_a_class_with_too_few_images_is_not_the_seen_one(
    weave: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "weave"
    shutil.copytree(weave, data)
    for path in sorted((data / "test/spot").iterdir())[5:]:
        path.unlink()
    options = Options(data=(str(data),), workdir=tmp_path / "runs", shots=(6,))
    table = Table("x", "2", "X", settings=("hard",))
    with caplog.at_level("WARNING", "ahl_jax"):
        assert {cell.seen_class for cell in plan(table, options)} == {"scratch"}
    assert "so not spot" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("Devnet",)}, "--methods has no 'Devnet'; choose from 'Gaussian', "),
        ({"data": ("elpv", "other"), "category": ("a",)}, "--category belongs to one folder"),
        ({"seeds": ()}, "each need at least one value"),
        ({"data": ("a/x", "b/x")}, "two of --data have the same name"),
        ({"shots": (4, 50)}, "fewer than the 50 that training is to see"),
        ({"seeds": (0, -1)}, "--seed is -1"),
    ],
)
def test_bad_options_are_refused_before_anything_is_trained(
    weave: Path, tmp_path: Path, options: dict, message: str
) -> None:
    chosen = Options(**{"data": (str(weave),), "workdir": tmp_path / "runs"} | options)
    with pytest.raises(UserError) as refusal:
        plan(Table("x", "1", "X"), chosen)
    assert message in str(refusal.value)
    assert not (tmp_path / "runs").exists()


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


def test_a_method_can_be_added_to_a_table_that_is_there(tmp_path: Path) -> None:
    table = Table("x", "1", "X")
    values = ("1", "general", 4, "weave", "", "DRA", 0, 0.5, 0.5, 1.0, "old")
    old = [dict(zip(COLUMNS, values, strict=True)) | {"seed": seed} for seed in (0, 1)]
    path = tmp_path / "x.csv"
    path.write_text(csv_text(old), encoding="utf-8")
    rows = read_rows(path)
    assert rows == old
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


def test_a_table_has_no_rows_of_other_weights(weave: Path, tmp_path: Path) -> None:
    options = Options(data=(str(weave),), workdir=tmp_path, shots=(4,), methods=("DRA",))
    (cell,) = plan(Table("x", "1", "X"), options)
    workdir = Workdir(cell.folder / "seed-1")
    workdir.claim(dataclasses.replace(cell.config, seed=1), overwrite=False)
    plan(Table("x", "1", "X"), options)
    workdir.bind_trunk("of other weights")
    with pytest.raises(UserError, match="the weights of the trunk changed since the run in"):
        plan(Table("x", "1", "X"), options)


def test_other_features_have_folders_and_files_of_their_own(weave: Path, tmp_path: Path) -> None:
    plain = Options(data=(str(weave),), workdir=tmp_path, out=tmp_path, shots=(4,))
    other = dataclasses.replace(
        plain, trunk="resnet18", trunk_weights=Path("a/file.pth"), image_size=448, stage_one=True
    )
    table = Table("x", "1", "X")
    cells = {options.variant: plan(table, options) for options in (plain, other)}
    before, after = cells.values()
    assert list(cells) == ["", "_resnet18_file.pth_448_stage-one"]
    for one, two in zip(before, after, strict=True):
        assert one.folder != two.folder
        features = two.config.features
        assert (features.trunk, features.image_size) == ("resnet18", 448)
        # What sees no anomaly has none in its trunk's training either.
        assert two.config.stage_one.stage_one == DETECTORS[two.config.detector.detector].trained
        own = two.config.detector.detector
        assert two.config.stage_one.stage_one_detector == (
            own if DETECTORS[own].trained and not DETECTORS[own].whitened else "dra"
        )
        # A detector alone is the one that has been trained from images.
        alone = one.config.learning.method == "base" and own != "density"
        assert two.config.stage_one.stage_one_heads == alone
        assert two.config.learning.method == ("fit" if alone else one.config.learning.method)
    assert len({two.folder for two in after}) == len({one.folder for one in before})
    name = output(other, table, "md").name
    assert name == "x_resnet18_file.pth_448_stage-one.md"
    assert output(plain, table, "md").name == "x.md"
    # The published size goes with the published training, where nobody asks for another.
    by_default = dataclasses.replace(other, image_size=None)
    assert by_default.variant == other.variant
    assert dataclasses.replace(by_default, quick=True).variant == "_resnet18_file.pth_stage-one"
