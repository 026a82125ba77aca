"""Which runs a folder takes."""

import json
from pathlib import Path

import pytest

from ahl_jax import Config, UserError, preset
from ahl_jax.config.presets import with_settings
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
