"""The script of table 3, on two tiny textures."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from ahl_jax import UserError
from ahl_jax.storage.workdir import Workdir
from experiments.table3_cross_domain import TABLE, CrossDomain, markdown, pairs
from tests.experiments.test_tables import COLUMNS, Script, in_words, scores


@pytest.mark.slow
def test_every_pair_is_fine_tuned_and_a_stopped_sweep_goes_on(
    textures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(tmp_path, monkeypatch, textures)
    arguments = ("table3_cross_domain", "--methods", "DevNet", "--epochs", "2")
    write = Workdir.write_history

    def stop_in_the_second_seed(self: Workdir, rows: list) -> None:
        if "from-" in str(self.path) and self.path.name == "seed-1":
            raise KeyboardInterrupt
        write(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Workdir, "write_history", stop_in_the_second_seed)
        with pytest.raises(KeyboardInterrupt):
            script(*arguments)
    rows, text = script(*arguments)
    assert list(rows[0]) == COLUMNS
    assert [(row["dataset"], row["seed"]) for row in rows] == [
        (f"{source}->{target}", seed)
        for target in ("carpet", "grid")
        for source in ("carpet", "grid")
        for seed in ("0", "1")
    ]
    assert {(r["table"], r["setting"], r["shots"]) for r in rows} == {("3", "cross-domain", "4")}
    for target in ("carpet", "grid"):
        section = text.split(f"## Target {target}, 4 labelled anomalies of the source\n")[1]
        for source in ("carpet", "grid"):
            mine = [row for row in rows if row["dataset"] == f"{source}->{target}"]
            figure = in_words(list(scores(mine, "DevNet").values()))
            assert f"| {source} | DevNet | {figure} |" in section
    runs = tmp_path / "runs/quick"
    own = {row["seed"]: float(row["auc_roc"]) for row in rows if row["dataset"] == "grid->grid"}
    for seed, score in own.items():
        # The runs of table 1.
        metrics = Workdir(
            runs / f"textures%2Fgrid/general-4-shots/detector-devnet-method-base/seed-{seed}"
        ).metrics()
        assert metrics is not None
        assert metrics["auc_roc"] == score
    tuned = Workdir(next(runs.glob("textures%2Fgrid/from-*carpet*/*/seed-1"))).metrics()
    assert tuned is not None
    assert (tuned["epochs"], tuned["n_seen"]) == (2, 0)
    assert sum(values["n"] for values in tuned["per_class"].values()) == 14
    monkeypatch.setattr("ahl_jax.run.epochs.mesh_for", None)
    assert script(*arguments) == (rows, text)


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
        ({"methods": ("PatchCore",)}, "--methods has no 'PatchCore'"),
        ({"epochs": 0}, "--epochs is 0"),
    ],
)
def test_bad_options_are_refused(textures: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pairs(dataclasses.replace(CrossDomain(data=(str(textures),), shots=(4,)), **change))
