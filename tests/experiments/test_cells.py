"""The cells of the tables, and the folders of their runs."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from ahl_jax import UserError, preset
from ahl_jax.config.presets import with_settings
from ahl_jax.detectors import DETECTORS
from ahl_jax.storage.workdir import Workdir
from experiments.tables.cells import Options, Table, plan
from experiments.tables.methods import COMPONENTS, METHODS, SUPERVISION, varied
from experiments.tables.sweep import output


def test_settings_reach_every_room_of_the_config() -> None:
    paper = preset("paper", "elpv")
    for method in (METHODS | SUPERVISION | COMPONENTS).values():
        config = with_settings(paper, method.settings).to_dict()
        flat = {k: v for room in config.values() if isinstance(room, dict) for k, v in room.items()}
        # As JSON has them, where tuples are lists.
        assert {name: flat[name] for name in method.settings} == json.loads(
            json.dumps(dict(method.settings))
        )
    assert with_settings(paper, {"setting": "hard", "seen_class": "mono"}).data.setting == "hard"
    with pytest.raises(UserError, match="colour"):
        with_settings(paper, {"colour": 1})


def test_updates_that_the_debug_preset_has_no_steps_for_get_them(
    weave: Path, tmp_path: Path
) -> None:
    options = Options(data=(str(weave),), workdir=tmp_path, shots=(4,), quick=True)
    rows = varied(METHODS["AHL(DevNet)"], "updates_per_epoch", (1, 2, 20))
    cells = plan(Table("x", "1", "X", methods=rows), options)
    found = [(c.config.learning.updates_per_epoch, c.config.learning.steps) for c in cells]
    assert found == [(1, 4), (2, 4), (20, 20)]
    assert len({cell.folder for cell in cells}) == 3


def test_psi_has_epochs_left_to_see(weave: Path, tmp_path: Path) -> None:
    options = Options(data=(str(weave),), workdir=tmp_path, shots=(4,))
    table = Table("x", "1", "X", methods=varied(METHODS["AHL(DRA)"], "history", (2, 30)))
    with pytest.raises(UserError, match="`history` is 30, so psi would wait"):
        plan(table, options)
    # The debug preset has four epochs, of which more are made.
    cells = plan(table, dataclasses.replace(options, quick=True))
    assert [cell.config.learning.epochs for cell in cells] == [4, 31]


def test_the_same_settings_have_the_same_folder(weave: Path, tmp_path: Path) -> None:
    options = Options(data=(str(weave),), workdir=tmp_path, shots=(4,))
    rows = METHODS | COMPONENTS | varied(METHODS["AHL(DRA)"], "clusters", (3, 4))
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


def test_data_with_one_class_have_no_hard_setting(weave: Path, tmp_path: Path) -> None:
    data = shutil.copytree(weave, tmp_path / "weave")
    first, *others = sorted(p for p in (data / "test").iterdir() if p.name != "good")
    for folder in others:
        shutil.rmtree(folder)
    said = f"the one anomaly class {first.name}, so the hard setting .*; give data with several"
    with pytest.raises(UserError, match=said):
        plan(Table("x", "2", "X", settings=("hard",)), Options(data=(str(data),), shots=(1,)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("Devnet",)}, "`methods` has no 'Devnet'; choose from 'Gaussian', "),
        ({"data": ("elpv", "other"), "category": ("a",)}, "`category` belongs to one folder"),
        ({"seeds": ()}, "each need at least one value"),
        ({"data": ("a/x", "b/x")}, "two of `data` have the same name"),
        ({"shots": (4, 50)}, "fewer than the 50 that training is to see"),
        ({"seeds": (0, -1)}, "`seed` is -1"),
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


def test_stage_one_may_be_shorter(weave: Path, tmp_path: Path) -> None:
    short = Options(data=(str(weave),), workdir=tmp_path, out=tmp_path, shots=(4,), image_size=192)
    short = dataclasses.replace(short, stage_one_epochs=2, stage_one_batch=6)
    table = Table("x", "1", "X")
    with pytest.raises(UserError, match="need --stage-one"):
        plan(table, short)
    short = dataclasses.replace(short, stage_one=True)
    assert short.variant == "_192_2-epochs_6-images_stage-one"
    for cell in plan(table, short):
        lasts = cell.config.stage_one.stage_one_epochs, cell.config.stage_one.stage_one_batch
        assert lasts == ((2, 6) if cell.config.stage_one.stage_one else (30, 48))
