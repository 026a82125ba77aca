import csv
import dataclasses
import shutil
import statistics
from pathlib import Path
from typing import Any

import jax
import pytest

from ahl_jax import Config, UserError, preset
from ahl_jax.cli.main import main
from ahl_jax.storage.workdir import Workdir
from ahl_jax.sweeps.ablate import ablate
from ahl_jax.sweeps.figure import draw, png
from ahl_jax.sweeps.points import plan
from tests.cli.test_cli import Capture, refused
from tests.runs import FinishedRun

PAPER = preset("paper", "elpv")


def table(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "ablation.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def states(workdir: Path) -> dict[str, int]:
    """When each file of the checkpoints was written."""
    return {
        str(path.relative_to(workdir)): path.stat().st_mtime_ns
        for path in workdir.rglob("checkpoint/**/*")
        if path.is_file()
    }


def test_choices_that_are_numbers_are_varied_as_numbers() -> None:
    points = plan(PAPER, ["views=1,8"])
    assert [p.config.features.views for p in points] == [1, 8]
    assert [p.number for p in points] == [1, 8]
    with pytest.raises(UserError, match="views has the value '3'; choose from 1, 2, 4, 8"):
        plan(PAPER, ["views=3"])


def test_each_setting_is_varied_alone_and_the_others_stay() -> None:
    points = plan(PAPER, ["T=1,12", "psi-lr=0.001", "gradient=exact", "share_anomalies=true"])
    assert [(p.name, p.value, p.folder) for p in points] == [
        ("subsets", "1", "subsets-1"),
        ("subsets", "12", "subsets-12"),
        ("psi-lr", "0.001", "psi-lr-0.001"),
        ("gradient", "exact", "gradient-exact"),
        ("share-anomalies", "true", "share-anomalies-true"),
    ]

    def flat(config: Config) -> dict[tuple[str, str], Any]:
        rooms = {k: v for k, v in dataclasses.asdict(config).items() if isinstance(v, dict)}
        return {(room, k): v for room, values in rooms.items() for k, v in values.items()}

    given = flat(PAPER)
    changes = [
        {key: value for key, value in flat(p.config).items() if value != given[key]} for p in points
    ]
    assert changes == [
        {("subsets", "subsets"): 1},
        {("subsets", "subsets"): 12},
        {("importance", "psi_lr"): 0.001},
        {("learning", "gradient"): "exact"},
        {("subsets", "share_anomalies"): True},
    ]
    assert [p.number for p in points] == [1, 12, 0.001, None, None]


def test_the_papers_symbols_name_their_settings() -> None:
    points = plan(PAPER, ["M=1", "C=2", "K=3"])
    configs = [p.config for p in points]
    assert [p.name for p in points] == ["shots", "clusters", "history"]
    assert configs[0].data.shots == 1
    assert configs[1].subsets.clusters == 2
    assert configs[2].importance.history == 3


def test_sweeps_that_meet_in_the_given_settings_share_a_run() -> None:
    points = plan(PAPER, ["T=2,6", "K=3,5"])
    assert [p.folder for p in points] == ["subsets-2", "subsets-6", "history-3", "subsets-6"]


def test_the_base_detector_comes_first_as_a_run_of_its_own() -> None:
    first, second = plan(PAPER, ["T=2"], base=True)
    assert (first.folder, first.config.learning.method) == ("method-base", "base")
    assert second.config.learning.method == "ahl"
    with pytest.raises(UserError, match="leave it out with --method base"):
        plan(first.config, ["T=2"], base=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give --over NAME=V1,V2"),
        (["--over", "T"], "it must be NAME=V1,V2"),
        (["--over", "subset=1"], "cannot vary 'subset'; choose from T, C, K, M, augment, batch"),
        (["--over", "=1"], "cannot vary ''"),
        (["--over", "seed=1,2"], "give --seeds"),
        (["--over", "trunk=resnet18"], "cannot vary 'trunk'"),
        (["--over", "category=a"], "cannot vary 'category'"),
        (["--over", "T=1,2,2"], "--over subsets has the value 2 twice"),
        (["--over", "lr=0.1,1e-1"], "--over lr has the value 0.1 twice"),
        (["--over", "T=1", "--over", "subsets=2"], "--over subsets is given twice"),
        (["--over", "T=1,two"], "has the value 'two'; it must be a whole number"),
        (["--over", "T=1,2.5"], "has the value '2.5'; it must be a whole number"),
        (["--over", "T=1,"], "has the value ''; it must be a whole number"),
        (["--over", "lr=nan"], "has the value 'nan'; it must be a number"),
        (["--over", "gradient=exact,first"], "'first'; choose from first_order, exact"),
        (["--over", "detector=dr"], "'dr'; choose from density, devnet, dra"),
        (["--over", "holistic=yes"], "'yes'; choose from false, true"),
        (["--over", "T=1,0"], "--over subsets=0: --subsets is 0; it must be 1 or more"),
        (["--over", "C=2,1"], "--over clusters=1: --clusters is 1; it must be 2 or more"),
        (["--over", "updates-per-epoch=1,3"], "=3: --updates-per-epoch is 3; it must divide"),
        (["--over", "C=2,21"], "--over clusters=21: --clusters is 21, but there are only 18"),
        (["--over", "M=4,15"], "14 anomalies, fewer than the 15"),
        (["--over", "T=1", "--seeds", "-1"], "--seed is -1"),
        (["--over", "T=1", "--checkpoint-every", "0"], "--checkpoint-every is 0"),
        (["--over", "T=1", "--detector", "dr"], "--detector has no 'dr'"),
    ],
)
def test_a_sweep_that_cannot_run_is_refused_before_any_work(
    weave: Path, capsys: Capture, tmp_path: Path, options: list[str], words: str
) -> None:
    command = ["ablate", weave, "--workdir", tmp_path / "sweep", "--preset", "debug"]
    sentence = refused(capsys, *command, "--shots", "4", *options)
    assert words in sentence
    assert not (tmp_path / "sweep").exists()


def test_the_folder_of_another_sweep_is_refused_and_kept(
    finished: FinishedRun, capsys: Capture, tmp_path: Path
) -> None:
    shutil.copytree(finished.workdir, tmp_path / "clusters-2/seed-0")
    before = states(tmp_path)
    sentence = refused(
        capsys, "ablate", finished.config.data.data, "--workdir", tmp_path, "--preset", "debug",
        "--shots", "4", "--epochs", "5", "--over", "C=3,2",
    )  # fmt: skip
    assert "--over clusters=2" in sentence
    assert "--epochs is 4 there and 5 here" in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["clusters-2"]
    assert states(tmp_path) == before


def test_a_stopped_sweep_goes_on_without_repeating_or_recompiling(
    finished: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    # The value 2 is what a training with the same settings left.
    shutil.copytree(finished.workdir, tmp_path / "clusters-2/seed-0")
    before = states(tmp_path)
    command = ["ablate", finished.config.data.data, "--workdir", str(tmp_path), "--preset", "debug"]
    command += ["--shots", "4", "--over", "C=2,3", "--over", "T=2"]
    write = Workdir.write_history

    def stop_in_epoch_3(self: Workdir, rows: list) -> None:
        write(self, rows)
        if len(rows) == 3:
            raise KeyboardInterrupt

    compiled = Path(jax.config.jax_compilation_cache_dir)
    programs = {p.name for p in compiled.glob("jit_epochs*-cache")}
    with monkeypatch.context() as patch:
        patch.setattr(Workdir, "write_history", stop_in_epoch_3)
        with pytest.raises(SystemExit) as stop:
            main(command)
    assert stop.value.code == 130
    (row,) = table(tmp_path)
    assert (row["over"], row["value"], row["seed"]) == ("clusters", "2", "0")
    main(command)
    # Other clusters give arrays of the same shapes, hence the program of the finished run.
    assert {p.name for p in compiled.glob("jit_epochs*-cache")} == programs != set()
    assert before.items() <= states(tmp_path).items()
    rows = table(tmp_path)
    assert [(r["over"], r["value"], r["run"]) for r in rows] == [
        ("clusters", "2", "clusters-2/seed-0"),
        ("clusters", "3", "clusters-3/seed-0"),
        ("subsets", "2", "clusters-2/seed-0"),
    ]
    assert float(rows[0]["auc_roc"]) == finished.metrics["auc_roc"]
    assert float(rows[0]["seconds"]) >= 3 * float(rows[0]["epoch_seconds"]) > 0
    assert {r["auc_pr"] for r in rows[::2]} == {str(finished.metrics["auc_pr"])}
    assert len((tmp_path / "clusters-3/seed-0/history.csv").read_text().splitlines()) == 5
    text = (tmp_path / "ablation.md").read_text()
    assert f"| 2 | {finished.metrics['auc_roc']:.4f} | " in text
    assert "--over C=2,3 --over T=2" in text
    out = capsys.readouterr().out
    assert f"clusters 2: AUC-ROC {finished.metrics['auc_roc']:.4f}" in out
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_seeds_and_the_base_detector(config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(
        config,
        detector=dataclasses.replace(config.detector, detector="devnet"),
        learning=dataclasses.replace(config.learning, epochs=1, steps=1, passes=1),
    )
    rows = ablate(config, tmp_path, ["T=1"], (1, 0), base=True, progress=False)
    assert [(r["over"], r["value"], r["seed"]) for r in rows] == [
        ("method", "base", 1), ("method", "base", 0), ("subsets", "1", 1), ("subsets", "1", 0)
    ]  # fmt: skip
    assert [{k: str(v) for k, v in row.items()} for row in rows] == table(tmp_path)
    values = [row["auc_roc"] for row in rows[2:]]
    cell = f"| 1 | {statistics.mean(values):.4f} ± {statistics.stdev(values):.4f} |"
    assert cell in (tmp_path / "ablation.md").read_text()
    assert Workdir(tmp_path / "method-base/seed-0").config().learning.method == "base"


def figure(over: list[str], scores: dict[str, list[float]], base: list[float] | None = None) -> Any:
    return draw([(p, scores[p.value]) for p in plan(PAPER, over)], base, title="weave")


def test_the_figure_has_a_panel_per_setting_with_means_and_deviations() -> None:
    scores = {"1": [0.7, 0.8], "2": [0.9, 0.9], "12": [0.6, 0.8]}
    drawn = figure(["T=12,1,2", "K=2,1"], scores, base=[0.75, 0.85])
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
    (legend,) = drawn.legends
    assert [t.get_text() for t in legend.get_texts()] == [
        "AHL, mean ± standard deviation of 2 seeds",
        "base detector alone, settings as given",
    ]
    assert drawn.get_suptitle() == "weave"


def test_one_seed_has_no_bars_and_choices_have_no_line_between_them() -> None:
    scores = {"dra": [0.8], "devnet": [0.7], "0.0001": [0.6], "0.1": [0.7], "0.01": [0.75]}
    choices, rates = figure(["detector=dra,devnet", "lr=0.0001,0.01,0.1"], scores).axes
    curve, caps, bars = choices.containers[0].lines
    assert (caps, bars) == ((), ())
    assert curve.get_linestyle() == "None"
    assert curve.get_ydata().tolist() == [0.8, 0.7]
    assert [t.get_text() for t in choices.get_xticklabels()] == ["dra", "devnet"]
    assert rates.get_xscale() == "log"
    assert [t.get_text() for t in rates.get_xticklabels()] == ["0.0001", "0.01", "0.1"]
    assert choices.get_ylim() == rates.get_ylim()


def test_many_panels_fill_rows_and_leave_no_empty_axes() -> None:
    names = ["T", "C", "K", "M", "steps"]
    drawn = figure([f"{name}=2" for name in names], {"2": [0.5]})
    assert len(drawn.axes) == len(names)
    drawn.draw_without_rendering()
    tops = [round(panel.get_position().y1, 3) for panel in drawn.axes]
    assert len(set(tops)) == 2
    assert len(png(drawn)) > 10_000
