"""``ahl predict`` on a finished run."""

import codecs
import csv
import dataclasses
import errno
import functools
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ahl_jax import Predictor, UserError, evaluate, load, train
from ahl_jax.cli.main import main
from ahl_jax.common.files import alone
from ahl_jax.common.text import printable
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.images import image_digest, read_display
from ahl_jax.inference.folder import found_images
from ahl_jax.inference.results import Results
from ahl_jax.storage.workdir import Workdir
from tests.cli.test_cli import Capture
from tests.runs import FinishedRun


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def heat_map(out: Path, image: Path | str) -> Path:
    return out / "heat_maps" / f"{os.path.splitext(str(image))[0].lstrip('/')}.png"


def _hot(pixels: np.ndarray) -> np.ndarray:
    """The part of a picture where the heat is."""
    return pixels[:96, 98:194]


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
            pixels = np.asarray(picture, int)
        # The original is on the left, the heat is over the right, and a legend below both.
        assert len(pixels) > 96 + 12
        with Image.open(row["path"]) as original:
            assert (pixels[:96, :96] == np.asarray(original)).all()
        assert np.abs(_hot(pixels) - pixels[:96, :96]).mean() > 0


def test_images_that_trained_the_detector_are_told(
    finished: FinishedRun, some: Path, weave: Path, tmp_path: Path, capsys: Capture
) -> None:
    _predict(finished, some / "good", "--out", tmp_path / "new", "--no-heat-maps")
    assert "trained this detector" not in capsys.readouterr().err
    shutil.copytree(weave / "train/good", some / "good/old")
    _predict(finished, some / "good", "--out", tmp_path / "out", "--no-heat-maps")
    rows = Workdir(finished.workdir).images() or []
    known = sum(row.part == "train" and not row.anomaly_class for row in rows)
    assert f"{known} of these {2 + 20} images trained this detector" in capsys.readouterr().err


def test_anomalies_are_hotter(finished: FinishedRun, some: Path, tmp_path: Path) -> None:
    _predict(finished, some, "--out", tmp_path / "out")

    def colour(name: str) -> float:
        with Image.open(heat_map(tmp_path / "out", some / name)) as picture:
            pixels = np.asarray(picture, float)
        return np.ptp(_hot(pixels), axis=2).mean()

    assert colour("spot/00.png") > 2 * colour("good/01.png")


def test_unreadable_images_are_listed_and_the_others_done(
    finished: FinishedRun, some: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (some / "broken.png").write_text("no image")
    (some / "raw.cr2").write_text("a raw image")
    with pytest.raises(SystemExit) as stop:
        _predict(finished, some, "--out", tmp_path / "out", "--no-heat-maps")
    assert stop.value.code == 3
    assert len(_rows(tmp_path / "out")) == 4
    assert not (tmp_path / "out/heat_maps").exists()
    lines = capsys.readouterr().err.splitlines()
    assert "skipped 1 .cr2" in lines
    assert lines[-2].startswith(f"left out: {some / 'broken.png'} cannot be read as an image")
    assert lines[-1] == "ahl: 1 image could not be scored, as listed above"


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


def test_what_is_missing_beside_a_row_is_written(
    finished: FinishedRun, some: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    _predict(finished, some, "--out", out, "--no-heat-maps")
    whole = (out / "scores.csv").read_bytes()
    _predict(finished, some, "--out", out, "--json")
    drawn = {path: path.read_bytes() for path in (heat_map(out, p) for p in some.rglob("*.png"))}
    assert len(drawn) == 4
    # A file that is there is left as it is.
    gone, kept, *_ = drawn
    gone.unlink()
    kept.write_bytes(b"mine")
    _predict(finished, some, "--out", out, "--json")
    assert {path: path.read_bytes() for path in drawn} == drawn | {kept: b"mine"}
    _predict(finished, some, "--out", out, "--json", "--save", "overlay", "raw")
    assert len(list(out.rglob("*.tif"))) == 4
    assert (kept.read_bytes(), (out / "scores.csv").read_bytes()) == (b"mine", whole)
    assert not capsys.readouterr().out


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
    said = capsys.readouterr().err
    assert "another ahl predict is writing" in said
    assert f"(process {os.getpid()} on " in said


def test_another_threshold_decides_anew_and_scores_nothing_again(
    finished: FinishedRun,
    some: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    _predict(finished, some, "--out", out, "--fpr", "0.9", "--no-heat-maps")
    before = (out / "scores.csv").read_bytes()
    rows = _rows(out)
    low, *_, high = sorted(float(row["score"]) for row in rows)
    monkeypatch.setattr(Predictor, "of_arrays", None)
    for threshold, expected in ((low, 3), (high, 0), (high + 1, 0), (low - 1, 4)):
        _predict(finished, some, "--out", out, "--threshold", threshold, "--no-heat-maps")
        again = _rows(out)
        assert [row["decision"] for row in again].count("anomaly") == expected
        decision = {"decision": ""}
        assert [row | decision for row in again] == [row | decision for row in rows]
    assert "4 rows decided anew" in capsys.readouterr().err
    _predict(finished, some, "--out", out, "--fpr", "0.9", "--no-heat-maps")
    assert (out / "scores.csv").read_bytes() == before
    # What a user wrote into the table stays, as nothing else has changed.
    (out / "scores.csv").write_bytes(before.replace(b",anomaly,", b",normal,"))
    _predict(finished, some, "--out", out, "--fpr", "0.9", "--no-heat-maps")
    assert not any(row["decision"] == "anomaly" for row in _rows(out))


def test_scores_of_another_detector_are_not_mixed_in(
    finished: FinishedRun, some: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    _predict(finished, some / "good", "--out", out)
    about = json.loads((out / "predict.json").read_text())
    (out / "predict.json").write_text(json.dumps(about | {"detector": "another"}))
    before = (out / "scores.csv").read_bytes()
    with pytest.raises(SystemExit) as stop:
        _predict(finished, some / "spot", "--out", out)
    assert stop.value.code == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "scores.csv").read_bytes() == before
    _predict(finished, some / "spot", "--out", out, "--overwrite")
    assert [row["path"] for row in _rows(out)] == [str(some / "spot/00.png")]


def test_watching_takes_what_comes_in_when_it_is_whole(
    finished: FinishedRun,
    some: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
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
    assert capsys.readouterr().err.endswith("\nahl: stopped\n")
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
    with pytest.raises(SystemExit):
        main(["predict", str(run), str(some), "--out", str(tmp_path / "masks"), "--save", "mask"])
    assert "this run has no threshold" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()


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
    rows = [row["path"] for row in _rows(out)]
    # Relative paths in one table all begin in one folder.
    assert rows == ["some/spot/00.png", str(some / "good/00.png")]
    assert {path.name for path in (out / "heat_maps").rglob("*.png")} == {"00.png"}
    assert len([*(out / "heat_maps").rglob("*.png")]) == 2


def test_a_table_moves_with_its_photographs(
    finished: FinishedRun, some: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(some)
    _predict(finished, "spot/00.png", "--out", "out")
    moved = some.rename(tmp_path / "moved")
    monkeypatch.chdir(moved)
    before = (moved / "out/scores.csv").read_bytes()
    _predict(finished, "spot", "--out", "out")
    assert (moved / "out/scores.csv").read_bytes() == before
    _predict(finished, "good/00.png", "--out", "out")
    assert [row["path"] for row in _rows(moved / "out")] == ["spot/00.png", "good/00.png"]


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
        drawn = heat_map(out, outer).with_name(f"00.{digest}.png")
        assert (maps[drawn][:96, :96] == np.asarray(Image.open(image))).all()
    before = (out / "scores.csv").read_bytes()
    _predict(finished, outer, inner.relative_to(tmp_path), "__/00.png", "--out", out)
    assert (out / "scores.csv").read_bytes() == before


def test_what_is_saved_of_an_image_fits_together(
    finished: FinishedRun, some: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, predictor = tmp_path / "out", load(finished.workdir)
    wide = some / "spot/00.jpg"
    with Image.open(some / "spot/00.png") as spot:
        spot.resize((300, 200)).save(wide)
    words = ("--save", "mask", "boxes", "raw", "--json")
    _predict(finished, some, "--out", out, *words)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not (out / "heat_maps").exists()
    for row in printed:
        path = Path(row["path"])
        name = path.relative_to("/").with_suffix("")
        if path.name == "00.png" and path.parent.name == "spot":
            name = name.with_name(f"00.{row['sha256']}")
        raw, mask = (
            np.asarray(Image.open(out / folder / f"{name}{suffix}"))
            for folder, suffix in (("heat_values", ".tif"), ("defect_masks", ".png"))
        )
        assert raw.shape == mask.shape == ((200, 300) if path == wide else (96, 96))
        assert raw.dtype == np.float32
        np.testing.assert_allclose(raw, predictor.heat_map(path), rtol=0, atol=1e-4)
        np.testing.assert_array_equal(mask == 255, raw > predictor.calibrated().contour)
        boxes = json.loads((out / "defect_boxes" / f"{name}.json").read_text())
        assert row["defect_area"] == pytest.approx((mask == 255).mean(), abs=1e-5)
        inside = np.zeros(mask.shape, bool)
        for box in boxes:
            left, top = box["left"], box["top"]
            inside[top : top + box["height"], left : left + box["width"]] = True
        assert inside[mask == 255].all()
        if boxes:
            assert boxes[0]["peak"] == pytest.approx(raw.max(), abs=1e-3)
            assert [row[f"defect_{side}"] for side in ("left", "top", "width", "height")] == [
                boxes[0][side] for side in ("left", "top", "width", "height")
            ]
    assert sum(row["defect_area"] > 0 for row in printed if "good" not in row["path"]) == 3
    # None of it is a photograph.
    _predict(finished, some, out, "--out", out, *words)
    assert len(_rows(out)) == 5


def test_a_table_from_before_there_were_defects_is_kept(
    finished: FinishedRun, some: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _predict(finished, some, "--out", out, "--no-heat-maps")
    rows = _rows(out)
    old = [{k: v for k, v in row.items() if not k.startswith("defect")} for row in rows]
    with (out / "scores.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, old[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(old)
    shutil.copy(some / "spot/00.png", some / "new.png")
    _predict(finished, some, "--out", out, "--no-heat-maps")
    again = _rows(out)
    assert [{k: row[k] for k in old[0]} for row in again[:4]] == old
    assert [row["defect_area"] != "" for row in again] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.png"], "there is no file or folder nowhere.png"),
        ([], "IMAGES is missing"),
        (["{some}/empty"], "there is no image in"),
        (["{some}", "--fpr", "1.5"], "--fpr is 1.5"),
        (["{some}", "--fpr", "0.1", "--threshold", "3"], "--fpr and --threshold are both given"),
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


@pytest.mark.parametrize("words", [[], ["--overwrite"]])
def test_a_file_is_no_folder_of_results(
    finished: FinishedRun,
    some: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        _predict(finished, some, *words, "--out", tmp_path / "out")
    assert stop.value.code == 2
    assert "out is a file; give --out a folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_evaluate_reports_what_the_threshold_comes_to(
    finished: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    at = finished.metrics["at_threshold"]
    assert at["held_out"] == 2
    assert at["promised_fpr"] == pytest.approx(1 / 3)
    main(["evaluate", str(finished.workdir), "--fpr", "0.5"])
    text = capsys.readouterr().out
    assert "set by 2 held-out normals for at most 33.3% false positives" in text
    main(["evaluate", str(finished.workdir), "--threshold=-1e9"])
    assert "as you named it: 100.0% of the test normals" in capsys.readouterr().out


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
    monkeypatch.setattr("ahl_jax.run.again.load_dataset", gone)
    with pytest.raises(UserError, match="say where with `data`"):
        evaluate(finished.workdir)
    with pytest.raises(UserError, match=r"^'weave' is no folder$"):
        evaluate(finished.workdir, data="weave")


@pytest.mark.parametrize("out", ["", "out", "deep/out"])
def test_what_is_written_is_no_input(finished: FinishedRun, some: Path, out: str) -> None:
    for _ in range(2):
        _predict(finished, some, "--out", some / out)
        assert len(_rows(some / out)) == 4
    # Nor by the pattern of a shell, nor that of another prediction.
    _predict(finished, some, *sorted((some / out).rglob("*.png")), "--out", some / out)
    assert len(_rows(some / out)) == 4
    _predict(finished, some, "--out", some / "other")
    assert len(_rows(some / "other")) == 4
    (some / out / "scores.csv").unlink()
    (some / out / "predict.json").unlink()
    _predict(finished, some, "--out", some / out, "--no-heat-maps")
    assert len(_rows(some / out)) == 4


def _watch(
    finished: FinishedRun, some: Path, out: Path, steps: dict[int, Callable[[], object]]
) -> None:
    """Watch for as many looks as there are steps."""
    looks = itertools.count()

    def pause(_seconds: float) -> None:
        look = next(looks)
        if look > max(steps):
            raise KeyboardInterrupt
        steps.get(look, lambda: None)()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ahl_jax.inference.folder.time.sleep", pause)
        with pytest.raises(SystemExit) as stop:
            _predict(finished, some, "--out", out, "--watch")
    assert stop.value.code == 130


def test_a_photograph_may_go_while_it_is_scored(
    finished: FinishedRun,
    some: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gone = some / "good/00.png"

    def read(path: Path) -> np.ndarray:
        if path == gone:
            gone.unlink()
        return read_display(path)

    monkeypatch.setattr("ahl_jax.inference.predictor.read_display", read)
    _watch(finished, some, tmp_path / "out", {3: lambda: None})
    assert len(_rows(tmp_path / "out")) == 4
    said = capsys.readouterr().err
    assert said.count(f"no overlay: {gone} cannot be read") == 1
    assert "--skip-bad-images" not in said
    assert not heat_map(tmp_path / "out", gone).exists()
    assert heat_map(tmp_path / "out", some / "good/01.png").exists()


def test_a_share_may_be_gone_for_a_while(
    finished: FinishedRun, some: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share = tmp_path / "share"
    share.mkdir()
    photos = some.rename(share / "some")
    steps = {1: lambda: share.rename(tmp_path / "gone")}
    steps |= {5: lambda: (tmp_path / "gone").rename(share)}
    steps |= {6: lambda: shutil.copy(photos / "spot/00.png", photos / "new.png"), 12: lambda: None}
    _watch(finished, photos, share / "out", steps)
    assert len(_rows(share / "out")) == 5
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.ENOSPC])
def test_a_watch_goes_on_once_it_can_write_again(
    finished: FinishedRun,
    some: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: int,
) -> None:
    write, failures = Results.write, iter(range(2))

    def failing(self: Results, *found: Any) -> None:
        if next(failures, None) is not None:
            raise OSError(error, os.strerror(error))
        write(self, *found)

    monkeypatch.setattr(Results, "write", failing)
    _watch(finished, some, tmp_path / "out", {8: lambda: None})
    assert len(_rows(tmp_path / "out")) == 4
    assert capsys.readouterr().err.count("waiting until files can be read and written again") == 1


NAMES = {
    "not UTF-8": b"caf\xe9.png",
    "long": b"n" * 251 + b".png",
    "long and not ASCII": "é".encode() * 125 + b".png",
    "a line's end": b"two\nlines\r.png",
    "quotes": b'a"b,c;d.png',
    "a formula": b"_$a$ $b.png",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_file_may_have_any_name(
    finished: FinishedRun,
    some: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: bytes,
) -> None:
    photo, out = some / "good" / os.fsdecode(name), tmp_path / "out"
    (some / "good/00.png").rename(photo)
    for _ in range(2):
        _predict(finished, some, "--out", out, "--json")
        rows = _rows(out)
        assert len(rows) == 4
        assert printable(photo) in [row["path"] for row in rows]
    assert len(list(out.glob("heat_maps/**/*.png"))) == 4
    lines = capfd.readouterr().out.splitlines()
    assert [json.loads(line)["path"] for line in lines] == [row["path"] for row in rows]


def test_a_name_that_a_file_system_does_not_take_costs_the_heat_map_alone(
    finished: FinishedRun, some: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Paths have 4,096 bytes at most.
    out = tmp_path.joinpath(*["d" * 250] * 14)
    out /= "d" * (4000 - len(str(out)) - 202) + "/" + "d" * 200
    _predict(finished, some, "--out", out)
    assert len(_rows(out)) == 4
    assert capsys.readouterr().err.count("(file name too long)") == 4


def _german(text: str) -> bytes:
    """As a spreadsheet for Germany writes it."""
    head, *rows = csv.reader(io.StringIO(text))
    lines = [";".join(head)]
    lines += [";".join([row[0], *(value.replace(".", ",") for value in row[1:])]) for row in rows]
    return codecs.BOM_UTF8 + "".join(line + "\r\n" for line in lines).encode()


SAVED = {
    "Excel": lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
    "Excel in Germany": _german,
    "Excel as Unicode text": lambda text: text.replace(",", "\t").encode("utf-16"),
    "without the last line's end": lambda text: text.rstrip("\n").encode(),
    "sorted": lambda text: "\n".join([*text.split("\n")[:1], *sorted(text.split("\n")[1:-1]), ""])
    .encode(),
}  # fmt: skip


@pytest.mark.parametrize("save", SAVED.values(), ids=SAVED)
def test_a_table_that_a_spreadsheet_saved_is_read(
    finished: FinishedRun, some: Path, tmp_path: Path, save: Callable[[str], bytes]
) -> None:
    out = tmp_path / "out"
    _predict(finished, some, "--out", out, "--no-heat-maps")
    whole = (out / "scores.csv").read_text()
    (out / "scores.csv").write_bytes(save(whole))
    _predict(finished, some, "--out", out, "--no-heat-maps")
    assert sorted((out / "scores.csv").read_text().split("\n")) == sorted(whole.split("\n"))


def test_rows_that_a_program_spoilt_are_scored_again(
    finished: FinishedRun, some: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    _predict(finished, some, "--out", out, "--no-heat-maps")
    head, first, *rest = (out / "scores.csv").read_text().splitlines()
    cells = first.split(",")
    for column, value in ((-1, "1.23E+15"), (1, "nan"), (1, "1e999"), (2, "1_0"), (3, "TRUE")):
        spoilt = [*cells]
        spoilt[column] = value
        (out / "scores.csv").write_text("\n".join([head, ",".join(spoilt), *rest]) + "\n")
        _predict(finished, some, "--out", out, "--no-heat-maps")
        assert sorted((out / "scores.csv").read_text().splitlines()) == sorted([head, first, *rest])
        assert "1 row of" in capsys.readouterr().err


def test_a_deleted_table_is_written_anew(finished: FinishedRun, some: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _predict(finished, some, "--out", out, "--no-heat-maps")
    whole = (out / "scores.csv").read_text()
    (out / "scores.csv").unlink()
    _predict(finished, some, "--out", out, "--no-heat-maps")
    assert (out / "scores.csv").read_text() == whole
    # A kill between the two files of a new folder.
    (out / "scores.csv").write_text(whole.splitlines()[0] + "\n")
    (out / "predict.json").unlink()
    _predict(finished, some, "--out", out, "--no-heat-maps")
    assert (out / "scores.csv").read_text() == whole


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("predict.json", "", "predict.json is damaged, so it is not known what gave the scores"),
        ("predict.json", "{", "predict.json is damaged"),
        ("scores.csv", "path,score\na.png,1\n", "scores.csv is damaged (its columns are no longer"),
    ],
)
def test_damage_is_named(
    finished: FinishedRun,
    some: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    text: str,
    said: str,
) -> None:
    out = tmp_path / "out"
    _predict(finished, some, "--out", out, "--no-heat-maps")
    (out / name).write_text(text)
    with pytest.raises(SystemExit) as stop:
        _predict(finished, some, "--out", out, "--no-heat-maps")
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    _predict(finished, some, "--out", out, "--no-heat-maps", "--overwrite")
    assert len(_rows(out)) == 4


def test_a_name_is_no_formula_in_the_table_and_is_found_again(
    finished: FinishedRun, some: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(some / "good/00.png", "=1+1.png")
    _predict(finished, "=1+1.png", "--out", "out", "--no-heat-maps")
    (row,) = _rows(tmp_path / "out")
    assert row["path"] == "'=1+1.png"
    monkeypatch.setattr(Results, "write", None)
    _predict(finished, "=1+1.png", "--out", "out", "--no-heat-maps")
    assert _rows(tmp_path / "out") == [row]


def test_nothing_is_drawn_through_a_link_out_of_the_folder(
    finished: FinishedRun, some: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/heat_maps").symlink_to(tmp_path / "mine")
    for link, said in (("heat_maps", "is a link out of"), ("scores.csv", "scores.csv is a link")):
        if link == "scores.csv":
            (tmp_path / "mine/table").write_text("mine")
            (tmp_path / "out/scores.csv").unlink()
            (tmp_path / "out/scores.csv").symlink_to(tmp_path / "mine/table")
        with pytest.raises(SystemExit, match="2"):
            _predict(finished, some, "--out", tmp_path / "out")
        assert said in capsys.readouterr().err
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["mine"]
