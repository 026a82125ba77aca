import csv
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from ahl_jax import Config, UserError, preset
from ahl_jax.cli.main import main
from ahl_jax.config.presets import with_settings
from ahl_jax.storage.workdir import Workdir
from ahl_jax.sweeps.ablate import ablate
from tests.cli.test_cli import Capture, refused
from tests.runs import FinishedRun, stopped_in_epoch
from tests.sweeps.stand_in import StandIn


def table(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "ablation.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def states(workdir: Path) -> dict[str, int]:
    """When each file of the runs was written."""
    return {
        str(path.relative_to(workdir)): path.stat().st_mtime_ns
        for path in workdir.rglob("seed-*/**/*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("over", "seeds", "words"),
    [
        ("C=2,21", (0,), "clusters = 21: `clusters` is 21, but there are only 18"),
        ("M=4,15", (0,), "14 anomalies, fewer than the 15"),
        ("T=1", (0, -1), "`seed` is -1"),
        ("detector=dra,density", (0,), "detector = density: the detector density needs"),
    ],
)
def test_a_sweep_that_cannot_run_is_refused_before_any_work(
    config: Config, tmp_path: Path, over: str, seeds: tuple[int, ...], words: str
) -> None:
    with pytest.raises(UserError) as refusal:
        ablate(config, tmp_path / "sweep", [over], seeds)
    assert words in str(refusal.value)
    assert not (tmp_path / "sweep").exists()


def test_the_command_line_names_options(weave: Path, capsys: Capture, tmp_path: Path) -> None:
    sentence = refused(
        capsys, "ablate", weave, "--workdir", tmp_path, "--preset", "debug", "--over", "C=2,21"
    )
    assert "clusters = 21: --clusters is 21, but there are only 18" in sentence


def test_the_folder_of_another_sweep_is_refused_and_kept(
    stand_in: StandIn, config: Config, tmp_path: Path
) -> None:
    ablate(config, tmp_path, ["C=2"], progress=False)
    before = states(tmp_path)
    other = with_settings(config, {"epochs": 5})
    with pytest.raises(UserError) as refusal:
        ablate(other, tmp_path, ["C=3,2"])
    assert str(refusal.value).startswith("clusters = 2: ")
    assert "`epochs` is 4 there and 5 here" in str(refusal.value)
    assert states(tmp_path) == before
    ablate(other, tmp_path, ["C=3,2"], overwrite=True, progress=False)
    assert states(tmp_path).keys() > before.keys()
    assert Workdir(tmp_path / "clusters-2/seed-0").config() == other


def test_a_stopped_sweep_has_its_table_and_goes_on(
    stand_in: StandIn, config: Config, tmp_path: Path
) -> None:
    over = ["C=2,3", "T=2"]
    stand_in.stop_in = "clusters-3"
    with pytest.raises(KeyboardInterrupt):
        ablate(config, tmp_path, over, (1, 0), base=True, progress=False)
    assert [row["value"] for row in table(tmp_path)] == ["base", "base", "2", "2"]
    stand_in.stop_in = None
    rows = ablate(config, tmp_path, over, (1, 0), base=True, command="again", progress=False)
    # The value 2 of both settings is the same run.
    assert stand_in.trained == [
        f"{name}/seed-{seed}" for name in ("method-base", "clusters-2", "clusters-3")
        for seed in (1, 0)
    ]  # fmt: skip
    assert [(r["over"], r["value"], r["seed"], r["run"]) for r in rows] == [
        ("method", "base", 1, "method-base/seed-1"),
        ("method", "base", 0, "method-base/seed-0"),
        ("clusters", "2", 1, "clusters-2/seed-1"),
        ("clusters", "2", 0, "clusters-2/seed-0"),
        ("clusters", "3", 1, "clusters-3/seed-1"),
        ("clusters", "3", 0, "clusters-3/seed-0"),
        ("subsets", "2", 1, "clusters-2/seed-1"),
        ("subsets", "2", 0, "clusters-2/seed-0"),
    ]
    assert list(rows[0]) == [
        "over", "value", "seed", "auc_roc", "auc_pr", "seconds", "epoch_seconds", "run"
    ]  # fmt: skip
    assert {(row["seconds"], row["epoch_seconds"]) for row in rows} == {(6.0, 1.5)}
    assert [{k: str(v) for k, v in row.items()} for row in rows] == table(tmp_path)
    text = (tmp_path / "ablation.md").read_text()
    values = [row["auc_roc"] for row in rows[2:4]]
    assert f"| 2 | {statistics.mean(values):.4f} ± {statistics.stdev(values):.4f} |" in text
    assert "Command: `again`" in text
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_finished_runs_of_other_images_are_not_read(
    stand_in: StandIn, weave: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(weave, tmp_path / "weave")
    config = preset("debug", str(data), shots=4)
    ablate(config, tmp_path / "sweep", ["C=2"], progress=False)
    shutil.copy(data / "train/good/00.png", data / "train/good/01.png")
    with pytest.raises(UserError, match="the images changed since the run in"):
        ablate(config, tmp_path / "sweep", ["C=2"], progress=False)


@pytest.fixture
def compiled(finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The programs of the session up to here, and those of the test alone from now on."""
    shared = jax.config.jax_compilation_cache_dir
    own = tmp_path_factory.mktemp("compiled") / "programs"
    try:
        jax.config.update("jax_compilation_cache_dir", str(shutil.copytree(shared, own)))
        compilation_cache.reset_cache()
        yield own
    finally:
        jax.config.update("jax_compilation_cache_dir", shared)
        compilation_cache.reset_cache()


@pytest.mark.slow
def test_other_values_need_no_compilation(
    finished: FinishedRun, compiled: Path, tmp_path: Path, capsys: Capture
) -> None:
    # The value 2 is what a training with the same settings left.
    shutil.copytree(finished.workdir, tmp_path / "clusters-2/seed-0")
    before = states(tmp_path)
    command = ["ablate", finished.config.data.data, "--workdir", str(tmp_path), "--preset", "debug"]
    command += ["--shots", "4", "--over", "C=2,3"]
    programs = {p.name for p in compiled.glob("jit_epochs*-cache")}
    with stopped_in_epoch(3), pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 130
    main(command)
    # Other clusters give arrays of the same shapes, hence the program of the finished run.
    assert {p.name for p in compiled.glob("jit_epochs*-cache")} == programs != set()
    assert before.items() <= states(tmp_path).items()
    first, second = table(tmp_path)
    assert float(first["auc_roc"]) == finished.metrics["auc_roc"]
    assert float(second["seconds"]) >= 3 * float(second["epoch_seconds"]) > 0
    assert len((tmp_path / "clusters-3/seed-0/history.csv").read_text().splitlines()) == 5
    assert "--over C=2,3" in (tmp_path / "ablation.md").read_text()
    out = capsys.readouterr().out
    assert f"clusters 2: AUC-ROC {finished.metrics['auc_roc']:.4f}" in out
