"""A run per category, and one of all of them."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ahl_jax import Config, UserError, evaluate, preset, report, train_categories
from ahl_jax.cli.main import main
from ahl_jax.storage.workdir import Workdir
from ahl_jax.sweeps import categories
from ahl_jax.sweeps.categories import Categories
from tests.cli.test_cli import Capture
from tests.sweeps.stand_in import StandIn


@pytest.fixture
def quick(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Nothing is trained, and the joint run finds in each category what its name says."""

    def train(config: Config, folder: Path, **options: Any) -> dict[str, Any]:
        metrics = stand_in.train(config, folder, config.data, options["overwrite"])
        if config.data.joint:
            found = {"carpet": {"auc_roc": 0.75, "auc_pr": 0.5}}
            metrics["per_category"] = found | {"grid": {"auc_roc": 0.25, "auc_pr": 0.5}}
            Workdir(folder).write_metrics(metrics)
        return metrics

    monkeypatch.setattr(categories, "train", train)
    return stand_in


def _table(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "categories.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_category_has_a_run_and_the_joint_one_stands_beside(
    quick: StandIn, textures: Path, tmp_path: Path, capsys: Capture
) -> None:
    command = ["train", str(textures), "--category", "all", "--joint", "--workdir", str(tmp_path)]
    main([*command, "--preset", "debug"])
    assert [Path(name).name for name in quick.trained] == ["carpet", "grid", "joint"]
    rows = _table(tmp_path)
    for row in rows:
        own = json.loads((tmp_path / row["category"] / "metrics.json").read_text())
        assert float(row["auc_roc"]) == own["auc_roc"]
    assert [row["joint_auc_roc"] for row in rows] == ["0.75", "0.25"]
    printed = capsys.readouterr().out
    mean = sum(float(row["auc_roc"]) for row in rows) / 2
    assert f"| mean of 2 | {mean:.4f} |" in printed
    assert "| 0.5000 | 0.5000 |" in printed
    assert (tmp_path / "categories.md").read_text() in printed
    main([*command, "--preset", "debug"])
    assert len(quick.trained) == 3  # Finished runs are read alone.
    failed = train_categories(preset("debug", str(textures), joint=True, margin=4.0), tmp_path)
    assert failed.failed.keys() == {"carpet", "grid", "joint"}
    assert "different run (`margin` is 5.0 there" in str(failed.failed["grid"])
    assert not failed.rows


def test_one_that_fails_is_named_and_the_others_go_on(
    quick: StandIn, textures: Path, tmp_path: Path, capsys: Capture
) -> None:
    data = tmp_path / "data"
    shutil.copytree(textures / "grid", data / "whole")
    (data / "few" / "train").mkdir(parents=True)
    shutil.copytree(textures / "grid/train", data / "few/train", dirs_exist_ok=True)
    command = ["train", str(data), "--category", "all", "--workdir", str(tmp_path / "runs")]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--preset", "debug"])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert "| whole |" in out
    last = err.strip().splitlines()[-1]
    assert last.startswith("ahl: 1 training failed. few: ")
    assert "no anomalies to train on" in last
    assert [row["category"] for row in _table(tmp_path / "runs")] == ["whole"]


def test_seeds_have_their_own_runs_and_share_a_line(
    stand_in: StandIn, textures: Path, tmp_path: Path
) -> None:
    found = train_categories(preset("debug", str(textures)), tmp_path, seeds=(0, 1))
    assert stand_in.trained == [f"{name}/seed-{n}" for name in ("carpet", "grid") for n in (0, 1)]
    head, _, *lines, mean = found.table()
    assert [line.split(" | ")[0] for line in (head, *lines, mean)] == [
        "| category", "| carpet", "| grid", "| mean of 2",
    ]  # fmt: skip
    assert all("±" in line for line in (*lines, mean))


def test_a_mean_without_a_figure_is_none() -> None:
    rows = [
        {"category": name, "seed": 0, "auc_roc": auc, "auc_pr": 1.0, "joint_auc_roc": joint}
        for name, auc, joint in (("a", 0.5, 0.25), ("b", 1.0, ""))
    ]
    *_, mean = Categories(rows).table()
    assert mean == "| mean of 2 | 0.7500 | 1.0000 |  |"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("weave", {}, "weave has no categories; leave out `category`"),
        ("joint", {"joint": True}, "'joint' cannot have a folder of its name"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    name: str, options: dict[str, Any], message: str, weave: Path, tmp_path: Path
) -> None:
    data = weave
    if options:
        data = tmp_path / "data"
        shutil.copytree(weave, data / name)
    with pytest.raises(UserError, match=message):
        train_categories(preset("debug", str(data), **options), tmp_path / "runs")


@pytest.mark.slow
def test_a_joint_detector_is_tested_by_category(
    textures: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(textures.parent)
    options = ["--views", "1", "--shots", "3", "--image-size", "192", "--workdir", str(tmp_path)]
    main(["train", "textures", "--category", "all", "--joint", *options])
    rows = {row["category"]: row for row in _table(tmp_path)}
    assert rows.keys() == {"carpet", "grid"}
    found = evaluate(tmp_path / "joint")["per_category"]
    for name, row in rows.items():
        assert float(row["joint_auc_roc"]) == found[name]["auc_roc"] > 0.7
        own = json.loads((tmp_path / name / "metrics.json").read_text())
        assert found[name]["n_test"] == own["n_test"]
    assert "AUC by category" in report(tmp_path / "joint").read_text()
