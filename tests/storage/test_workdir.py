"""Which runs a folder takes, and how damage to its files is noticed."""

import errno
import json
import os
from pathlib import Path

import pytest

from ahl_jax import Config, UserError, preset
from ahl_jax.common.files import replace_file
from ahl_jax.config.presets import with_settings
from ahl_jax.data.remembered import Row
from ahl_jax.inference.threshold import read_calibration
from ahl_jax.storage.workdir import Workdir, located

ONE, OTHER = (preset("debug", "elpv", shots=shots) for shots in (3, 4))


def test_a_run_without_any_epoch_gives_way_to_another(tmp_path: Path) -> None:
    folder = Workdir(tmp_path / "run")
    folder.claim(ONE, overwrite=False)
    folder.bind_data("digest")
    folder.claim(ONE, overwrite=False)
    assert folder.data_digest() == "digest"  # The same run goes on.
    folder.claim(OTHER, overwrite=False)
    assert folder.config() == OTHER
    assert folder.data_digest() is None


@pytest.mark.parametrize("left", ["history.csv", "metrics.json", "checkpoint/epoch_1"])
def test_a_run_with_an_epoch_does_not(tmp_path: Path, left: str) -> None:
    folder = Workdir(tmp_path / "run")
    folder.claim(ONE, overwrite=False)
    (tmp_path / "run" / left).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / left).touch()
    with pytest.raises(UserError, match="already holds a different run"):
        folder.claim(OTHER, overwrite=False)
    assert folder.config() == ONE
    folder.claim(OTHER, overwrite=True)
    assert folder.config() == OTHER
    assert not (tmp_path / "run" / left).exists()


@pytest.mark.parametrize("earlier", [False, True], ids=["absolute", "as typed"])
def test_a_run_is_known_by_where_its_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    def given(data: str, weights: str) -> Config:
        return with_settings(preset("debug", data), {"trunk_weights": Path(weights)})

    (tmp_path / "deeper/photos").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "w.pth").touch()
    monkeypatch.chdir(tmp_path)
    typed, whole = given("photos", "w.pth"), given(str(tmp_path / "photos"), "./w.pth")
    folder = Workdir(tmp_path / "run")
    folder.claim(typed, overwrite=False)
    (tmp_path / "run/history.csv").touch()
    stored = json.loads((tmp_path / "run/run.json").read_text())
    assert stored["config"]["data"]["data"] == str(tmp_path / "photos")
    assert stored["config"]["features"]["trunk_weights"] == str(tmp_path / "w.pth")
    if earlier:  # Paths were once stored as they were typed.
        (tmp_path / "run/run.json").write_text(json.dumps({"config": typed.to_dict()}))
    for same in (typed, whole):
        folder.check(same)
        assert folder.config() == located(same)
    if not earlier:
        monkeypatch.chdir(tmp_path / "deeper")
        folder.check(given("../photos", "../w.pth"))
        with pytest.raises(UserError, match=r"`data` is .*/photos there and .*/deeper/photos here"):
            folder.check(given("photos", "../w.pth"))


@pytest.mark.parametrize("data", ["elpv", "nowhere", "the images given to fit", "x" * 300])
def test_names_of_data_sets_and_what_is_not_there_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    (tmp_path / "elpv").mkdir()
    monkeypatch.chdir(tmp_path)
    assert located(preset("debug", data)) == preset("debug", data)


@pytest.fixture
def written(tmp_path: Path) -> Workdir:
    folder = Workdir(tmp_path)
    folder.claim(ONE, overwrite=False)
    (tmp_path / "checkpoint").mkdir()
    folder.write_images([Row("a\n1, é.png", "cut 2", "train", "03f"), Row("b", "", "unused", "")])
    folder.write_history([{"epoch": "1", "seconds": "2.5"}])
    folder.write_metrics({"auc_roc": 0.9, "epochs": 1})
    folder.write_calibration('{"scores": [13.4, 90.6], "locations": [0.5, 1.5]}\n')
    return folder


READERS = {
    "run.json": lambda folder: folder.config(),
    "images.csv": lambda folder: folder.images(),
    "history.csv": lambda folder: folder.read_history(1),
    "metrics.json": lambda folder: folder.metrics(),
    "checkpoint/calibration.json": lambda folder: read_calibration(folder.path / "checkpoint"),
}


def test_a_list_of_images_is_read_back(written: Workdir) -> None:
    rows = [Row("a\n1, é.png", "cut 2", "train", "03f"), Row("b", "", "unused", "")]
    assert written.images() == rows


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_list_that_a_run_trains_on_is_not_its_own(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "images.csv").write_text("path,label\n")
    config = preset("debug", str(tmp_path / "images.csv"))
    with pytest.raises(UserError, match="where the run would list its images; give another"):
        Workdir(tmp_path).claim(config, overwrite=overwrite)
    assert (tmp_path / "images.csv").is_file()


@pytest.mark.parametrize("name", READERS)
def test_a_changed_digit_is_noticed(written: Workdir, name: str) -> None:
    path, read = written.path / name, READERS[name]
    whole = path.read_bytes()
    assert read(written)
    # Those of the checksum's own name change nothing.
    values = whole.replace(b'"sha256"', b'"xxxxxx"')
    digits = [i for i, byte in enumerate(values) if chr(byte).isdigit()]
    for i in digits:
        path.write_bytes(whole[:i] + bytes([(whole[i] - 47) % 10 + 48]) + whole[i + 1 :])
        with pytest.raises(UserError, match=f"{name} is damaged \\(its checksum is wrong\\)"):
            read(written)
    path.write_bytes(whole)
    assert read(written)


def test_what_earlier_versions_wrote_has_no_checksum(written: Workdir) -> None:
    run = json.loads((written.path / "run.json").read_text())
    (written.path / "run.json").write_text(json.dumps({"config": run["config"]}))
    for read in READERS.values():
        assert read(written)
    written.write_metrics({"auc_roc": 0.8, "epochs": 1})
    assert written.metrics() == {"auc_roc": 0.8, "epochs": 1}


def test_a_kill_between_a_file_and_its_checksum_damages_nothing(
    written: Workdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, text: str) -> None:
        if path.name == "history.csv":
            raise KeyboardInterrupt
        replace_file(path, text)

    rows = [{"epoch": str(n), "seconds": "2.5"} for n in (1, 2)]
    monkeypatch.setattr("ahl_jax.storage.workdir.replace_file", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            written.write_history(rows)
        assert written.read_history(1) == rows[:1]
    monkeypatch.undo()
    written.write_history(rows)
    assert written.read_history(2) == rows


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_metrics_that_cannot_be_read_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(UserError, match=r"metrics.json is damaged .*; delete it, and give the"):
        Workdir(tmp_path).metrics()


def test_a_full_disk_is_one_sentence(written: Workdir, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    before = sorted(os.listdir(written.path))
    with pytest.raises(UserError, match="the disk is full"):
        written.write_metrics({"epochs": 1})
    assert sorted(os.listdir(written.path)) == before


def test_names_that_are_not_utf_8_are_kept(tmp_path: Path) -> None:
    photos = tmp_path / os.fsdecode(b"caf\xe9")
    photos.mkdir()
    folder = Workdir(tmp_path / "run")
    config = preset("debug", str(photos))
    folder.claim(config, overwrite=False)
    assert folder.config() == located(config)
    metrics = {"per_class": {os.fsdecode(b"\xf6l"): {"n": 1}}, "epochs": 0}
    folder.write_metrics(metrics)
    assert folder.metrics() == metrics


def test_a_folder_that_is_not_utf_8_is_refused_at_once(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(UserError, match=r"the path of .*caf\\udce9 is not UTF-8"):
        Workdir(folder).held().__enter__()
    assert not folder.exists()
