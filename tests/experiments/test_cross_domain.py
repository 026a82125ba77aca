"""The script of table 3, on two tiny textures."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from ahl_jax import UserError
from ahl_jax.config.settings import DataConfig
from ahl_jax.storage.workdir import Workdir
from experiments.table3_cross_domain import TABLE, CrossDomain, markdown, pairs
from tests.experiments.script import COLUMNS, Script, in_words, scores
from tests.sweeps.stand_in import StandIn

ARGUMENTS = ("table3_cross_domain", "--methods", "DevNet", "--epochs", "2")


def test_every_pair_is_a_row_and_a_stopped_sweep_goes_on(
    textures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: StandIn
) -> None:
    def finetune(run: Path, data: DataConfig, workdir: Path, epochs: int, **_: Any) -> dict:
        assert Workdir(run).metrics() is not None
        assert (data.shots, epochs) == (0, 2)
        return stand_in.train(Workdir(run).config(), workdir, data)

    monkeypatch.setattr("experiments.table3_cross_domain.finetune", finetune)
    script = Script(tmp_path, monkeypatch, textures)
    stand_in.stop_in = "carpet-general"
    with pytest.raises(KeyboardInterrupt):
        script(*ARGUMENTS)
    stand_in.stop_in = None
    rows, text = script(*ARGUMENTS)
    assert list(rows[0]) == COLUMNS
    assert [(row["dataset"], row["seed"]) for row in rows] == [
        (f"{source}->{target}", seed)
        for target in ("carpet", "grid")
        for source in ("carpet", "grid")
        for seed in ("0", "1")
    ]
    # Those of the sources are trained once.
    assert len(stand_in.trained) == 8
    assert {(r["table"], r["setting"], r["shots"]) for r in rows} == {("3", "cross-domain", "4")}
    for target in ("carpet", "grid"):
        section = text.split(f"## Target {target}, 4 labelled anomalies of the source\n")[1]
        for source in ("carpet", "grid"):
            mine = [row for row in rows if row["dataset"] == f"{source}->{target}"]
            figure = in_words(list(scores(mine, "DevNet").values()))
            assert f"| {source} | DevNet | {figure} |" in section
    own = {row["seed"]: float(row["auc_roc"]) for row in rows if row["dataset"] == "grid->grid"}
    for seed, score in own.items():
        # The runs of table 1.
        folder = "textures%2Fgrid/general-4-shots/detector-devnet-method-base"
        metrics = Workdir(tmp_path / f"runs/quick/{folder}/seed-{seed}").metrics()
        assert metrics is not None
        assert metrics["auc_roc"] == score
    assert script(*ARGUMENTS) == (rows, text)
    assert len(stand_in.trained) == 8


@pytest.mark.slow
def test_the_runs_are_fine_tuned_on_normals_alone(
    textures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(tmp_path, monkeypatch, textures)
    written = script(*ARGUMENTS)
    runs = tmp_path / "runs/quick"
    tuned = Workdir(next(runs.glob("textures%2Fgrid/from-*carpet*/*/seed-1"))).metrics()
    assert tuned is not None
    assert (tuned["epochs"], tuned["n_seen"]) == (2, 0)
    assert sum(values["n"] for values in tuned["per_class"].values()) == 14
    for name in ("ahl_jax.sweeps.cells.train_seeds", "experiments.table3_cross_domain.finetune"):
        monkeypatch.setattr(name, None)
    assert script(*ARGUMENTS) == written


def test_the_published_figures_stand_beside_ours(textures: Path, tmp_path: Path) -> None:
    options = CrossDomain(data=(str(textures),), workdir=tmp_path)
    cells = pairs(options)
    assert [cell.method for cell in cells] == ["DRA", "AHL(DRA)"] * 4
    values = ("3", "cross-domain", 10, "carpet->grid", "", "DRA", 0, 0.5, 0.6, 1.0, "c")
    rows = [dict(zip(COLUMNS, values, strict=True))]
    text = markdown(TABLE, cells, rows, "command")
    assert "| carpet | DRA | 0.500 | 0.600 | 0.983 |" in text
    # What is not there yet is left out.
    assert "Target carpet" not in text
    assert "| grid |" not in text


def test_the_textures_are_chosen_where_the_data_has_them(textures: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(textures, tmp_path / "data"))
    shutil.copytree(data / "grid", data / "screw")
    options = CrossDomain(data=(str(data),), methods=("DRA",), shots=(4,))
    named = {cell.dataset for cell in pairs(options)}
    assert named == {"carpet->carpet", "carpet->grid", "grid->carpet", "grid->grid"}
    chosen = dataclasses.replace(options, category=("grid", "screw"))
    assert "screw->grid" in {cell.dataset for cell in pairs(chosen)}
    folders = dataclasses.replace(
        options, data=tuple(str(data / name) for name in ("grid", "screw"))
    )
    assert "grid->screw" in {cell.dataset for cell in pairs(folders)}
    # Other epochs are other runs.
    longer = pairs(dataclasses.replace(options, epochs=20))
    same = [a.folder == b.folder for a, b in zip(pairs(options), longer, strict=True)]
    assert same == [True, False, False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": ("grid",)}, "one domain makes no pair"),
        ({"methods": ("PatchCore",)}, "`methods` has no 'PatchCore'"),
        ({"epochs": 0}, "`epochs` is 0"),
    ],
)
def test_bad_options_are_refused(textures: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pairs(dataclasses.replace(CrossDomain(data=(str(textures),), shots=(4,)), **change))
