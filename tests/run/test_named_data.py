"""From what was downloaded to a trained detector, by the commands."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from ahl_jax.cli.main import main
from ahl_jax.data.builders import builder_class
from tests.runs import FinishedRun


@pytest.fixture
def downloaded(weave: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The images of the other runs as a category of MVTec AD."""
    monkeypatch.setenv("AHL_DATA", str(tmp_path / "prepared"))
    home = tmp_path / "downloads" / "carpet"
    shutil.copytree(weave, home)
    for kind in ("scratch", "spot"):
        for path in (home / "test" / kind).iterdir():
            mask = home / "ground_truth" / kind / f"{path.stem}_mask.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (96, 96), 255).save(mask)
    counts = {"carpet": {"train": 20, "good": 9, "anomalies": 14}}
    monkeypatch.setattr(builder_class("mvtec_ad"), "COUNTS", counts)
    return home.parent


def test_training_on_prepared_images_gives_what_the_files_give(
    downloaded: Path, finished: FinishedRun, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(["data", "prepare", "mvtec_ad", "--manual-dir", str(downloaded)])
    assert capsys.readouterr().out.endswith(
        "20 images to train on; to test on: 9 good, 7 scratch, 7 spot\n"
    )
    shutil.rmtree(downloaded)
    run = tmp_path / "run"
    main(
        ["train", "mvtec_ad", "--category", "carpet", "--workdir", str(run), "--preset", "debug",
         "--shots", "4"]
    )  # fmt: skip
    metrics = json.loads((run / "metrics.json").read_text())
    same = ("auc_roc", "auc_pr", "per_class", "n_test", "n_seen", "n_train_normal")
    assert {key: metrics[key] for key in same} == {key: finished.metrics[key] for key in same}
    capsys.readouterr()
    main(["evaluate", str(run), "--json"])
    assert json.loads(capsys.readouterr().out)["auc_roc"] == metrics["auc_roc"]


def test_training_on_a_list_of_images_gives_what_their_folder_gives(
    weave: Path, finished: FinishedRun, tmp_path: Path
) -> None:
    home = shutil.copytree(weave, tmp_path / "images")
    lines = ["path,label,class,split"]
    for path in sorted(home.rglob("*.png")):
        split, kind, name = path.relative_to(home).parts
        label = "normal" if kind == "good" else "anomaly"
        lines.append(f"{split}/{kind}/{name},{label},{'' if kind == 'good' else kind},{split}")
    (home / "list.csv").write_text("\n".join(lines) + "\n")
    run = tmp_path / "run"
    words = ["train", str(home / "list.csv"), "--workdir", str(run), "--preset", "debug"]
    main([*words, "--shots", "4"])
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["per_class"] == finished.metrics["per_class"]
    assert metrics["n_train_normal"] == finished.metrics["n_train_normal"]


def test_data_sets_are_listed_and_shown(
    downloaded: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(["data", "list"])
    listed = capsys.readouterr().out
    assert "0 of 15 categories prepared" in listed
    assert listed.count("not prepared") == 7
    main(["data", "prepare", "mvtec_ad", "--manual-dir", str(downloaded), "--category", "carpet"])
    main(["data", "list"])
    assert "1 of 15 categories prepared: carpet" in capsys.readouterr().out
    main(["data", "show", "mvtec_ad"])
    assert "7  test: spot" in capsys.readouterr().out
    sheet = tmp_path / "sheets" / "carpet.png"
    main(["data", "show", "mvtec_ad", "--category", "carpet", "--out", str(sheet)])
    shown = capsys.readouterr().out
    for line in ("20  train: good", "9  test: good", "7  test: scratch", "7  test: spot"):
        assert f" {line}\n" in shown
    with Image.open(sheet) as image:
        image.load()
        assert image.width > 500
        assert image.height > 500
    main(["data", "show", str(downloaded)])  # a folder, too
    assert "7  test: spot" in capsys.readouterr().out


def test_what_is_not_there_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AHL_DATA", str(tmp_path))
    for words, message in (
        (["train", "aitex", "--workdir", str(tmp_path / "run")], "run: ahl data prepare aitex"),
        (["data", "show", "sdd"], "run: ahl data prepare sdd"),
        (["data", "prepare", "sdd"], "KolektorSDD.zip from https://"),
        (["data", "prepare", "screws"], "no builder for 'screws'"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("ahl: ")
        assert message in error
        assert error.count("\n") == 1
