import csv
import shutil
import struct
import sys
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from ahl_jax import Config, UserError, train
from ahl_jax.cli.main import main
from ahl_jax.config.presets import with_settings
from ahl_jax.storage.workdir import Workdir
from tests.runs import FinishedRun, stopped_in_epoch


def events(folder: Path) -> list[tuple[str, int, float]]:
    """Tag, step and value of every scalar in a folder's event files."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, start = path.read_bytes(), 0
        while start < len(content):
            # Length, its checksum, the event, its checksum.
            (length,) = struct.unpack_from("<Q", content, start)
            event = Event.FromString(content[start + 12 : start + 12 + length])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            start += length + 16
        assert start == len(content)
    return found


def expected(workdir: Path) -> dict[tuple[str, int], float]:
    """The values of history.csv, by what they are called."""
    renamed = {"support_": "support_loss/", "query_": "query_loss/", "r_": "r/", "w_": "w/",
               "psi_": "psi/", "seconds": "seconds"}  # fmt: skip
    found = {}
    with (workdir / "history.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                for old, new in renamed.items():
                    if name.startswith(old) and value:
                        found[name.replace(old, new, 1), int(row["epoch"])] = float(value)
    return found


def check(workdir: Path, metrics: dict) -> None:
    found = events(workdir / "tensorboard")
    there = {(tag, step): value for tag, step, value in found}
    assert len(there) == len(found), "something is there twice"
    tests = {key: there.pop(key) for key in list(there) if key[0].startswith("test")}
    assert there == pytest.approx(expected(workdir))
    assert {step for _, step in tests} == {metrics["epochs"]}
    assert tests["test/auc_roc", metrics["epochs"]] == pytest.approx(metrics["auc_roc"])
    assert tests["test_auc_pr/spot", metrics["epochs"]] == pytest.approx(
        metrics["per_class"]["spot"]["auc_pr"]
    )


@pytest.mark.slow
def test_a_run_that_was_stopped_has_every_epoch_once(config: Config, tmp_path: Path) -> None:
    config = with_settings(config, {"method": "base"})
    with stopped_in_epoch(2), pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, tensorboard=True, progress=False)
    # The second epoch is in history.csv and in the event files, but has no checkpoint.
    assert {step for _, step, _ in events(tmp_path / "tensorboard")} == {1, 2}
    metrics = train(config, tmp_path, tensorboard=True, progress=False)
    check(tmp_path, metrics)
    # The command on the finished run changes nothing.
    train(config, tmp_path, tensorboard=True, progress=False)
    check(tmp_path, metrics)


def test_a_finished_run_gets_them_afterwards(finished: FinishedRun, tmp_path: Path) -> None:
    assert not (finished.workdir / "tensorboard").exists()
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    main(["train", finished.config.data.data, "--workdir", str(workdir), "--preset", "debug",
          "--shots", "4", "--tensorboard"])  # fmt: skip
    check(workdir, finished.metrics)
    assert ("w/1", 4) in expected(workdir)
    # A different run in the same folder takes theirs away.
    Workdir(workdir).claim(finished.config, overwrite=True)
    assert not (workdir / "tensorboard").exists()


def test_a_missing_library_stops_the_run_before_it_begins(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match="pip install tensorboardX"):
        train(config, tmp_path / "run", tensorboard=True, progress=False)
    assert not (tmp_path / "run").exists()
