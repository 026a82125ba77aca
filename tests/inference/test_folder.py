"""``ahl predict`` on a finished run."""

import csv
import dataclasses
import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ahl_jax import UserError, evaluate, load, train
from ahl_jax.cli.main import main
from ahl_jax.common.files import alone
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.images import image_digest
from ahl_jax.inference.folder import found_images
from tests.runs import FinishedRun


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def heat_map(out: Path, image: Path | str) -> Path:
    return out / "heat_maps" / f"{str(image).lstrip('/')}.png"


def _predict(finished: FinishedRun, *words: object) -> None:
    main(["predict", str(finished.workdir), *map(str, words)])


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """A command finds the detector of the one before it, with its programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ahl_jax.inference.folder.load", functools.cache(load))
        yield


@pytest.fixture
def some(weave: Path, tmp_path: Path) -> Path:
    """Two normal and two anomalous images, in folders."""
    for name in ("good/00.png", "good/01.png", "spot/00.png", "scratch/00.png"):
        (tmp_path / "some" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(weave / "test" / name, tmp_path / "some" / name)
    (tmp_path / "some/empty").mkdir()
    return tmp_path / "some"


def test_a_folder_gives_a_table_and_heat_maps(
    finished: FinishedRun, some: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _predict(finished, some, "--out", out, "--fpr", "0.4")
    rows = _rows(out)
    names = ["good/00.png", "good/01.png", "scratch/00.png", "spot/00.png"]
    paths = [some / name for name in names]
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    assert [row["sha256"] for row in rows] == [image_digest(path)[:16] for path in paths]
    predictor = load(finished.workdir)
    assert [float(row["score"]) for row in rows] == pytest.approx(predictor.score(paths), abs=1e-5)
    assert [float(row["probability"]) for row in rows] == pytest.approx(
        predictor.probability(paths), abs=1e-5
    )
    above = predictor.predict(paths, fpr=0.4)
    assert [row["decision"] for row in rows] == [("normal", "anomaly")[int(a)] for a in above]
    assert above[2:].all()
    heads = [[float(row[head]) for head in predictor.heads] for row in rows]
    assert np.allclose(heads, predictor.outcome(paths).heads, atol=1e-5)
    for row in rows:
        with Image.open(heat_map(out, row["path"])) as picture:
            assert picture.height == 96
            assert picture.width > 2 * 96
            pixels = np.asarray(picture, int)
        # The original is on the left, and the heat is over the right.
        with Image.open(row["path"]) as original:
            assert (pixels[:, :96] == np.asarray(original)).all()
        changed = np.abs(pixels[:, -96:] - pixels[:, :96]).mean()
        assert changed > 0


def test_anomalies_are_hotter(finished: FinishedRun, some: Path, tmp_path: Path) -> None:
    _predict(finished, some, "--out", tmp_path / "out")

    def colour(name: str) -> float:
        with Image.open(heat_map(tmp_path / "out", some / name)) as picture:
            pixels = np.asarray(picture, float)
        return np.ptp(pixels[:, -96:], axis=2).mean()

    assert colour("spot/00.png") > 2 * colour("good/01.png")


def test_unreadable_images_are_listed_and_the_others_done(
    finished: FinishedRun, some: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (some / "broken.png").write_text("no image")
    with pytest.raises(SystemExit) as stop:
        _predict(finished, some, "--out", tmp_path / "out", "--no-heat-maps")
    assert stop.value.code == 3
    assert len(_rows(tmp_path / "out")) == 4
    assert not (tmp_path / "out/heat_maps").exists()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2].startswith(f"left out: {some / 'broken.png'} cannot be read as an image")
    assert lines[-1] == "ahl: 1 image could not be read, as listed above"


def test_one_that_was_killed_goes_on(
    finished: FinishedRun, some: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    _predict(finished, some, "--out", out)
    whole = (out / "scores.csv").read_bytes()
    (out / "scores.csv").write_bytes(whole[: whole.index(b"good/01.png") + 5])
    capsys.readouterr()
    _predict(finished, some, "--out", out, "--json")
    assert (out / "scores.csv").read_bytes() == whole
    printed = [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()]
    names = ["good/01.png", "scratch/00.png", "spot/00.png"]
    assert printed == [str(some / name) for name in names]


def test_an_image_is_known_by_path_and_content(
    finished: FinishedRun, some: Path, tmp_path: Path
) -> None:
    out, (one, two) = tmp_path / "out", (some / "good", some / "spot")
    _predict(finished, one, "--out", out, "--no-heat-maps")
    # The same name in another folder, and another image under the same name.
    _predict(finished, two, "--out", out, "--no-heat-maps")
    shutil.copy(some / "scratch/00.png", one / "00.png")
    _predict(finished, one, two, "--out", out, "--no-heat-maps")
    rows = [(row["path"], row["score"]) for row in _rows(out)]
    assert [path for path, _ in rows] == [
        str(path) for path in (one / "00.png", one / "01.png", two / "00.png", one / "00.png")
    ]
    assert len({score for _, score in rows}) == 4


def test_two_at_once_are_refused(
    finished: FinishedRun, some: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with alone(tmp_path / "out", lambda: None), pytest.raises(SystemExit) as stop:
        _predict(finished, some, "--out", tmp_path / "out")
    assert stop.value.code == 2
    assert "another ahl predict is writing" in capsys.readouterr().err


def test_scores_of_another_threshold_are_not_mixed_in(
    finished: FinishedRun, some: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    _predict(finished, some / "good", "--out", out, "--fpr", "0.9")
    before = (out / "scores.csv").read_bytes()
    with pytest.raises(SystemExit) as stop:
        _predict(finished, some / "spot", "--out", out, "--fpr", "0.5")
    assert stop.value.code == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "scores.csv").read_bytes() == before
    _predict(finished, some / "spot", "--out", out, "--fpr", "0.5", "--overwrite")
    assert [row["path"] for row in _rows(out)] == [str(some / "spot/00.png")]


def test_watching_takes_what_comes_in_when_it_is_whole(
    finished: FinishedRun, some: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, new = tmp_path / "out", some / "new.png"
    content = (some / "spot/00.png").read_bytes()
    seen: list[int] = []

    def pause(_seconds: float) -> None:
        seen.append(len(_rows(out)))
        if len(seen) == 2:
            new.write_bytes(content[:100])
        elif len(seen) == 4:  # It has been left out in between.
            new.write_bytes(content)
        elif len(seen) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr("ahl_jax.inference.folder.time.sleep", pause)
    with pytest.raises(SystemExit) as stop:
        _predict(finished, some, "--out", out, "--watch")
    assert stop.value.code == 130
    assert seen == [0, 4, 4, 4, 4, 5, 5]
    scores = {row["path"]: float(row["score"]) for row in _rows(out)}
    # One image alone has another program than four have.
    assert scores[str(new)] == pytest.approx(scores[str(some / "spot/00.png")], abs=1e-4)


def test_without_a_threshold_there_are_scores_alone(
    finished: FinishedRun, some: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished.workdir, tmp_path / "run")
    (run / "checkpoint/calibration.json").unlink()
    main(["predict", str(run), str(some), "--out", str(tmp_path / "out")])
    assert {row["decision"] + row["probability"] for row in _rows(tmp_path / "out")} == {""}
    assert "scores alone, no decisions" in capsys.readouterr().err


def test_images_are_found_at_any_depth_and_once(tmp_path: Path) -> None:
    for name in ("a/x.png", "b/x.png", "b/c/y.jpg", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = found_images([tmp_path / "a", tmp_path / "b", tmp_path / "a/x.png"])
    assert found == [tmp_path / name for name in ("a/x.png", "b/c/y.jpg", "b/x.png")]


def test_one_photograph_by_two_paths_has_one_row(
    finished: FinishedRun, some: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, given = tmp_path / "out", some / "spot/00.png"
    monkeypatch.chdir(tmp_path)
    (some / "spot/link.png").symlink_to(given)
    _predict(finished, "some/spot/00.png", given, "some/spot", "some/good/../spot", "--out", out)
    assert [row["path"] for row in _rows(out)] == ["some/spot/00.png"]
    _predict(finished, given, "--out", out)
    monkeypatch.chdir(some)
    _predict(finished, "spot", "good/00.png", "--out", out)
    rows = _rows(out)
    # The first is known by its relative path, which leads elsewhere from here.
    assert [row["path"] for row in rows] == ["some/spot/00.png", "spot/00.png", "good/00.png"]


def test_every_row_has_a_heat_map_of_its_own(
    finished: FinishedRun, some: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder that holds a copy of its own path from the root on.
    inner = tmp_path / tmp_path.relative_to("/") / "some/spot/00.png"
    inner.parent.mkdir(parents=True)
    shutil.copy(some / "scratch/00.png", inner)
    below = tmp_path / "__"
    below.mkdir()
    shutil.copy(some / "good/00.png", tmp_path / "00.png")
    shutil.copy(some / "good/01.png", below / "00.png")
    out, outer = tmp_path / "out", some / "spot/00.png"
    monkeypatch.chdir(tmp_path)
    _predict(finished, outer, inner.relative_to(tmp_path), "__/00.png", "--out", out)
    monkeypatch.chdir(below)
    _predict(finished, "../00.png", "--out", out)
    monkeypatch.chdir(tmp_path)
    shutil.copy(some / "good/01.png", outer)
    _predict(finished, outer, "--out", out)
    rows = _rows(out)
    assert len(rows) == 5
    maps = {path: np.asarray(Image.open(path)) for path in out.rglob("*.png")}
    assert len(maps) == 5
    for image, digest in ((inner, rows[1]["sha256"]), (outer, rows[4]["sha256"])):
        drawn = heat_map(out, outer).with_name(f"00.png.{digest}.png")
        assert (maps[drawn][:, :96] == np.asarray(Image.open(image))).all()
    before = (out / "scores.csv").read_bytes()
    _predict(finished, outer, inner.relative_to(tmp_path), "__/00.png", "--out", out)
    assert (out / "scores.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.png"], "there is no file or folder nowhere.png"),
        ([], "IMAGES is missing"),
        (["{some}/empty"], "there is no image in"),
        (["{some}", "--fpr", "1.5"], "--fpr is 1.5"),
        (["{some}/good/00.png", "--watch"], "is a file; --watch takes folders"),
    ],
)
def test_bad_input_is_one_sentence(
    finished: FinishedRun,
    some: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as stop:
        _predict(finished, *(w.format(some=some) for w in words), "--out", tmp_path / "out")
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_evaluate_reports_what_the_threshold_comes_to(
    finished: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    at = finished.metrics["at_threshold"]
    assert at["held_out"] == 2
    assert at["promised_fpr"] == pytest.approx(1 / 3)
    main(["evaluate", str(finished.workdir), "--fpr", "0.5"])
    text = capsys.readouterr().out
    assert "set by 2 held-out normals for at most 50.0% false positives" in text


def test_evaluate_measures_heat_maps_where_there_are_masks(
    finished: FinishedRun, marked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = evaluate(finished.workdir, data=str(marked), progress=False)
    normals = 9
    assert metrics["pixel"]["images"] == normals + metrics["per_class"]["spot"]["n"]
    assert metrics["pixel"]["auroc"] > 0.7
    assert 0 < metrics["pixel"]["aupro"] <= 1
    assert metrics["auc_roc"] == pytest.approx(finished.metrics["auc_roc"])
    assert "pixel" not in finished.metrics
    main(["evaluate", str(finished.workdir), "--data", str(marked)])
    assert f"Pixels of the {metrics['pixel']['images']} test images" in capsys.readouterr().out


def test_masks_that_do_not_fit_are_told_before_training_and_in_evaluate(
    finished: FinishedRun,
    weave: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = shutil.copytree(weave, tmp_path / "weave")
    for image in sorted((data / "test/spot").iterdir()):
        for name in ("spot", "spots"):
            target = data / "ground_truth" / name / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (96, 96)).save(target)
    metrics = evaluate(finished.workdir, data=str(data), progress=False)
    assert "pixel" not in metrics
    said = [record.getMessage() for record in caplog.records]
    assert any(f"no file in {data}/ground_truth/spots is the mask" in line for line in said)
    assert any("masks of anomalies, such as" in line and "nothing" in line for line in said)
    Image.new("L", (48, 96)).save(data / "ground_truth/spot/06.png")
    Image.new("L", (48, 96)).save(data / "ground_truth/spot/05.png")
    monkeypatch.setattr("ahl_jax.run.train.run_epochs", lambda *_: pytest.fail("it trains"))
    config = dataclasses.replace(finished.config, data=DataConfig(str(data), shots=1))
    for call in (
        lambda: evaluate(finished.workdir, data=str(data), progress=False),
        lambda: train(config, tmp_path / "run", progress=False),
    ):
        with pytest.raises(UserError, match=r"has 48 x 96 pixels, and its image .* 96 x 96; draw"):
            call()


def test_evaluate_asks_where_data_is_that_moved(
    finished: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise UserError("'weave' is no folder")

    # The package has the function under the module's name.
    monkeypatch.setattr("ahl_jax.run.evaluate.load_split", gone)
    with pytest.raises(UserError, match="say where with `data`"):
        evaluate(finished.workdir)
    with pytest.raises(UserError, match=r"^'weave' is no folder$"):
        evaluate(finished.workdir, data="weave")
