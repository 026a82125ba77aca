import dataclasses
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from ahl_jax import UserError, compare, report, train
from ahl_jax.backbones import load_trunk
from ahl_jax.cli.main import main
from ahl_jax.config.presets import with_settings
from ahl_jax.config.settings import FeatureConfig, PseudoConfig
from ahl_jax.data.types import Sample
from ahl_jax.features import Store
from ahl_jax.features.maps import trunk_maps
from ahl_jax.features.pseudo import extract_pseudo, pseudo_images
from ahl_jax.reports import build, pictures
from ahl_jax.reports.scored import score
from ahl_jax.storage.workdir import Workdir
from tests.reports.page import Page
from tests.runs import FinishedRun

SECTIONS = (
    "result", "labelled", "settings", "curves", "threshold", "images", "training", "subsets",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def given() -> Iterator[dict[str, dict[str, Any]]]:
    """Template -> what the newest page of it was made of."""
    found: dict[str, dict[str, Any]] = {}
    write = build._write

    def noted(out: Path, template: str, **values: Any) -> Path:
        found[template] = values
        return write(out, template, **values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_write", noted)
        yield found


MARKUP = """</style></title><script>alert("1")</script>' onload='x" <img src=x>&amp;"""


class Hostile:
    """An object all of whose texts are a stranger's."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return hostile(getattr(self._inner, name))

    def __str__(self) -> str:
        return f"{self._inner}{MARKUP}"


class Names(dict[Any, Any]):
    """A dict whose keys are a stranger's, too, which templates look up as they were."""

    def __missing__(self, name: str) -> Any:
        if name.endswith(MARKUP):
            raise KeyError(name)
        return self[name + MARKUP]


def hostile(value: Any) -> Any:
    if isinstance(value, str):
        # Pictures are made here.
        ours = not value or value.startswith("data:image/")
        return value if ours else value + MARKUP
    if isinstance(value, dict):
        return Names({hostile(name): hostile(each) for name, each in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(map(hostile, value)) if type(value) in (list, tuple) else Hostile(value)
    if dataclasses.is_dataclass(value) or isinstance(value, Path):
        return Hostile(value)
    return value


def check_inert(template: str, values: dict[str, Any], tmp_path: Path) -> None:
    """The page shows markup in the place of any text as text."""
    texts = {name: hostile(value) for name, value in values.items()}
    build._write(tmp_path / "hostile.html", template, **texts)
    page = Page(tmp_path / "hostile.html")
    assert page.text.count("<script>alert") > 100
    assert "script" not in [tag for tag, _ in page.tags]
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert attributes.get("src", "data:image/jpeg;base64,")[:16] == "data:image/jpeg;"


@pytest.fixture(scope="module")
def written(finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Page:
    out = tmp_path_factory.mktemp("reports") / "new" / "a.html"
    assert report(finished.workdir, out, progress=False) == out
    return Page(out)


@pytest.fixture(scope="module")
def plain(finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that is not trained, without held-out normals, on the same test images."""
    other = {"held_out": 0.0, "detector": "patchcore", "method": "fit"}
    config = with_settings(finished.config, other)
    workdir = tmp_path_factory.mktemp("runs") / "plain"
    train(config, workdir, progress=False)
    return workdir


def test_it_has_all_sections_and_needs_nothing(written: Page) -> None:
    written.check()
    assert [a["id"] for a in written.of("section")] == list(SECTIONS)
    # ROC, PR and scores; w, r (K is 2), support, query and psi.
    assert len([a for a in written.of("svg") if a.get("role") == "img"]) == 8
    assert "data:image/jpeg" in written.source


def test_texts_of_strangers_are_no_markup(
    written: Page, given: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    assert "<script>" not in written.source
    check_inert("report.html.j2", given["report.html.j2"], tmp_path)


def test_its_figures_are_the_metrics(written: Page, finished: FinishedRun) -> None:
    metrics = finished.metrics
    for values in (metrics, *metrics["per_class"].values()):
        for name in ("auc_roc", "auc_pr"):
            assert f"{values[name]:.4f}" in written.text
    at = metrics["at_threshold"]
    assert f"threshold {at['threshold']:.4g}" in written.text
    assert f"{100 * at['fpr']:.1f} % promised: at most {100 * at['promised_fpr']:.3g} %" in (
        written.text
    )
    assert f"{100 * at['tpr']:.1f} % at the threshold" in written.text
    assert "Thresholds for other rates" in written.text
    normals = metrics["n_test"] - sum(v["n"] for v in metrics["per_class"].values())
    alarms = round(at["fpr"] * normals)
    assert f"normal {normals - alarms} {alarms} " in written.text


def test_it_names_the_images_that_training_has_seen(written: Page, finished: FinishedRun) -> None:
    rows = Workdir(finished.workdir).images() or []
    seen = [row for row in rows if row.part == "train" and row.anomaly_class]
    assert len(seen) == 4
    for row in seen:
        assert f"{row.anomaly_class}, {Path(row.path).name}" in written.text
    assert "Held out 2 normals" in written.text


def test_a_large_test_has_a_small_report(
    finished: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = score(finished.workdir, fpr=None, threshold=None, progress=False)
    paths = [sample.path for sample in run.samples]
    kinds = [None] * 19_000 + [f"class {i % 500}" for i in range(1_000)]
    samples = tuple(Sample(paths[i % len(paths)], kind) for i, kind in enumerate(kinds))
    scores = np.random.default_rng(0).normal(size=len(samples)).astype(np.float32)
    split = dataclasses.replace(run.split, seen=samples[19_000:])
    large = dataclasses.replace(run, samples=samples, scores=scores, split=split)
    monkeypatch.setattr(build, "score", lambda *_, **__: large)
    monkeypatch.setattr(build, "subset_views", lambda *_, **__: [])
    page = Page(report(finished.workdir, tmp_path / "large.html", progress=False))
    assert len(page.source.encode()) < 20 * 2**20
    assert "100 of 1000 are shown" in page.text
    assert page.text.count("class 499 2 ") == 2


def test_its_images_are_ranked(written: Page) -> None:
    shown = re.findall(r"(\w+) · score (-?[\d.e+-]+)", written.text)
    # Of nine normals and ten anomalies, each once.
    ends = itertools.accumulate((5, 5, 5, 4), initial=0)
    normals, missed, found, quiet = (shown[i:j] for i, j in itertools.pairwise(ends))
    pictures = [a["src"] for a in written.of("img") if str(a["alt"]).startswith("Heat map of")]
    assert len({*pictures}) == len(pictures) == len(shown) == 19
    assert {kind for kind, _ in normals + quiet} == {"normal"}
    assert {kind for kind, _ in missed + found} == {"scratch", "spot"}
    for strip, sign in ((normals, -1), (missed, 1), (found, -1), (quiet, 1)):
        scores = [sign * float(score) for _, score in strip]
        assert scores == sorted(scores)
    assert float(found[-1][1]) >= float(missed[-1][1])
    assert float(quiet[-1][1]) <= float(normals[-1][1])


def test_its_heat_maps_have_the_outlines_of_a_prediction(
    written: Page, finished: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: list[float] = []

    def drawn(image: np.ndarray, heat: object, scale: object, seen: object, level: float) -> Any:
        levels.append(level)
        return image

    monkeypatch.setattr(pictures, "overlay", drawn)
    run = score(finished.workdir, fpr=None, threshold=None, progress=False)
    pictures.sheet(run, 1)
    assert {*levels} == {run.predictor.calibrated().contour}
    assert [each for each in written.of("img") if str(each["alt"]).startswith("Colours of the")]


def test_images_of_a_joint_run_have_their_category(finished: FinishedRun) -> None:
    run = score(finished.workdir, fpr=None, threshold=None, progress=False)
    (image, *_), config = run.split.train_normals, run.config
    data = dataclasses.replace(config.data, joint=True, data=str(Path(config.data.data).parent))
    joint = dataclasses.replace(run, config=dataclasses.replace(config, data=data))
    names = pictures.file_name(run, image), pictures.file_name(joint, image)
    assert names == (image.name, f"{Path(config.data.data).name}/{image.name}")


def test_settings_of_its_own_come_before_all_settings(written: Page) -> None:
    assert "Settings that differ from the preset debug" in written.text
    assert "shots 4 3" in written.text
    assert "psi-lr" in written.text.split("All settings")[1]
    assert "psi-lr" not in written.text.split("All settings")[0]


def test_subsets_are_those_of_the_training(
    finished: FinishedRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, written: Page
) -> None:
    made = []

    class StoppedError(Exception):
        pass

    def stop(runs: object, problems: list, *args: object, **options: object) -> None:
        made.extend(problems[0].subsets)
        raise StoppedError

    monkeypatch.setattr("ahl_jax.run.train.run_epochs", stop)
    with pytest.raises(StoppedError):
        train(finished.config, tmp_path, progress=False)
    assert len(made) == finished.config.subsets.subsets
    generators = finished.config.pseudo.generators
    for subset in made:
        for k, name in ((0, "Support"), (1, "Query")):
            counts = [len(side[k]) for side in (subset.normals, subset.anomalies, subset.pseudo)]
            words = (
                f"{name}: cluster {subset.clusters[k] + 1}, {generators[subset.generators[k]]} "
                f"{counts[0]} normals, {counts[1]} labelled anomalies, {counts[2]} pseudo-anomalies"
            )
            assert words in written.text
    last = (finished.workdir / "history.csv").read_text().splitlines()
    row = dict(zip(last[0].split(","), last[-1].split(","), strict=True))
    assert f"w_1 = {float(row['w_1']):.3f}" in written.text


@pytest.mark.slow
def test_pictured_pseudo_anomalies_are_those_of_the_training(weave: Path, tmp_path: Path) -> None:
    normals = sorted((weave / "train/good").glob("*.png"))
    features, pseudo = FeatureConfig(image_size=192), PseudoConfig(pseudo_per_generator=3)
    trunk = load_trunk("efficientnet_lite0", None)
    kept = extract_pseudo(normals, trunk, features, pseudo, 5, Store(tmp_path), progress=False)
    wanted = [8, 1, 3]
    images = pseudo_images(normals, 192, pseudo, 5, wanted)
    maps = trunk_maps(trunk, images, features, np.dtype(np.float32))
    for scale, there in zip(maps, kept.maps, strict=True):
        np.testing.assert_array_equal(jax.device_get(scale)[:3], there[wanted])


def test_what_a_run_has_not_is_left_out(plain: Path, tmp_path: Path) -> None:
    out = report(plain, tmp_path / "a.html", progress=False)
    page = Page(out)
    page.check()
    assert [a["id"] for a in page.of("section")] == [*SECTIONS[:-2]]
    assert [a["href"] for a in page.of("a")] == [f"#{name}" for name in SECTIONS[:-2]]
    assert "no threshold: no normals were held out of its training" in page.text
    assert "Called anomalous" not in page.text


def test_copies_that_are_left_out_of_the_test_are_counted(
    plain: Path, finished: FinishedRun, weave: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(weave, tmp_path / "data")
    for i in range(2):
        shutil.copy(data / f"train/good/{i:02}.png", data / f"test/good/copy-{i}.png")
    other = {"held_out": 0.0, "detector": "patchcore", "method": "fit", "data": str(data)}
    with pytest.warns(UserWarning, match="left 2 image"):
        metrics = train(with_settings(finished.config, other), tmp_path / "run", progress=False)
    page = Page(report(tmp_path / "run", progress=False))
    assert metrics == json.loads((tmp_path / "run/metrics.json").read_text())
    # The copies change nothing else.
    same = json.loads((plain / "metrics.json").read_text())
    assert (metrics["n_left_out_copies"], same["n_left_out_copies"]) == (2, 0)
    for name in same.keys() - {"n_left_out_copies", "seconds"}:
        assert metrics[name] == same[name]
    page.check()
    sentence = "2 images are left out of the test because training has the same file."
    assert page.text.count(sentence) == 1


def test_a_run_of_an_earlier_version_has_a_report(finished: FinishedRun, tmp_path: Path) -> None:
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    old = {k: v for k, v in finished.metrics.items() if k != "n_left_out_copies"}
    (workdir / "metrics.json").write_text(json.dumps(old))
    run = json.loads((workdir / "run.json").read_text())
    (workdir / "run.json").write_text(json.dumps({"config": run["config"]}))
    page = Page(report(workdir, progress=False))
    assert "left out of the test" not in page.text


def test_an_unfinished_run_says_so(
    finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoint/epoch_4")
    (workdir / "checkpoint/calibration.json").unlink()
    main(["report", str(workdir)])
    assert capsys.readouterr().out == f"The report is {workdir}/report.html.\n"
    page = Page(workdir / "report.html")
    page.check()
    assert "not finished: the figures are those after 3 of 4 epochs" in page.text
    assert "no threshold: its training is not finished" in page.text
    (workdir / "history.csv").unlink()
    page = Page(report(workdir, progress=False))
    assert "history.csv is gone" in page.text
    shutil.rmtree(workdir / "checkpoint")
    with pytest.raises(UserError, match="checkpoint"):
        report(workdir, progress=False)


def test_names_are_only_names(finished: FinishedRun, weave: Path, tmp_path: Path) -> None:
    names = ['<script>alert("1")', '"><img src=x onerror=alert(1)>', "{{ 7 * 191 }}"]
    data = tmp_path / "<b>&amp;"
    shutil.copytree(weave / "train", data / "train")
    shutil.copytree(weave / "test/good", data / "test/good")
    for name, source in zip(names, ["scratch", "spot", "scratch"], strict=True):
        shutil.copytree(weave / "test" / source, data / "test" / name)
    for i, path in enumerate(sorted(data.glob("test/*/*.png"))):
        with Image.open(path) as image:
            pixels = np.array(image)
        pixels[0, 0] = i  # No two are the same file.
        path.unlink()
        Image.fromarray(pixels).save(path.with_name(f"<i>{i}'\".png"))
        if path.parent.name == names[0]:
            mask = data / "ground_truth" / names[0] / f"<i>{i}'\"_mask.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.arange(96 * 96).reshape(96, 96) < 900).save(mask)
    workdir = shutil.copytree(finished.workdir, tmp_path / "</title><script>")
    page = Page(report(workdir, data=str(data), progress=False))
    page.check()
    for name in (*names, "<b>&amp;", str(workdir)):
        assert name in page.text
    assert "The images are not the ones" in page.text
    assert "its subsets cannot be made again" in page.text
    # Of seven images with masks, those that training has not seen, and nine normals.
    assert re.search(r"Pixel AUROC 0\.\d{4} AUPRO 0\.\d{4}, by 1[2-6] images", page.text)


def test_two_runs_side_by_side(
    finished: FinishedRun,
    plain: Path,
    given: dict[str, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    again = shutil.copytree(finished.workdir, tmp_path / "<i>again")
    out = tmp_path / "side.html"
    main(["compare", *map(str, (finished.workdir, plain, again)), "--out", str(out)])
    assert capsys.readouterr().out == f"The comparison is {out}.\n"
    page = Page(out)
    page.check()
    base = json.loads((plain / "metrics.json").read_text())
    for metrics in (finished.metrics, base):
        for values in (metrics, *metrics["per_class"].values()):
            assert f"{values['auc_roc']:.4f}" in page.text
    assert f"{base['auc_roc'] - finished.metrics['auc_roc']:+.4f}" in page.text
    assert "+0.0000" in page.text
    assert "to +0.0000" not in page.text
    assert "other test images" not in page.text
    assert "method ahl fit ahl" in page.text
    # ROC and PR with a line per run, a histogram per run; and of those that are trained, w, r,
    # support, query and psi.
    drawings = [a for a in page.of("svg") if a.get("role") == "img"]
    assert len(drawings) == 5 + 2 * 5
    at = finished.metrics["at_threshold"]
    normals = finished.metrics["n_test"] - sum(
        v["n"] for v in finished.metrics["per_class"].values()
    )
    assert f"{100 * at['fpr']:.1f} % {round(at['fpr'] * normals)} of {normals}" in page.text
    assert f"{plain} has no threshold: no normals were held out of its training" in page.text
    sections = page.source.partition('<section id="training"')[2]
    assert [sections.count(f"<h3>{label}</h3>") for label in (finished.workdir, plain)] == [2, 0]
    subsets = finished.config.subsets.subsets
    assert len(re.findall(r"Subset \d", page.text)) == 2 * subsets
    # Four images of each of four kinds for every run, beside their heat maps.
    assert len(re.findall(r"· score", page.text)) == 3 * 4 * 4
    assert len([a for a in page.of("img") if str(a["alt"]).startswith("Heat map")]) == 3 * 4 * 4
    assert str(again) in page.text
    check_inert("compare.html.j2", given["compare.html.j2"], tmp_path)


def test_runs_with_other_test_images_have_no_paired_difference(
    finished: FinishedRun, tmp_path: Path
) -> None:
    other = {"shots": 3, "detector": "patchcore", "method": "fit", "in_turn": False}
    train(with_settings(finished.config, other), tmp_path / "other", progress=False)
    page = Page(compare([finished.workdir, tmp_path / "other"], tmp_path / "a.html"))
    page.check()
    assert f"{tmp_path / 'other'} has other test images than the first run" in page.text
    assert "Difference" not in page.text
    assert "shots 4 3" in page.text


def test_data_that_moved_is_named_for_all_runs(
    finished: FinishedRun,
    plain: Path,
    weave: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = shutil.copytree(weave, tmp_path / "moved")
    (data / "test/good/00.png").unlink()  # So that there is something to say of each run.
    runs = [str(finished.workdir), str(plain)]
    main(["compare", *runs, "--data", str(data), "--out", str(tmp_path / "a.html")])
    said = capsys.readouterr().err
    for run in runs:
        assert f"the images are not the ones that {run} was trained and tested with" in said


def test_what_cannot_be_done_is_said(finished: FinishedRun, tmp_path: Path) -> None:
    for runs in ([], [finished.workdir], [finished.workdir, finished.workdir]):
        with pytest.raises(UserError, match="two or more different runs"):
            compare(runs, tmp_path / "a.html")
    with pytest.raises(UserError, match="holds no run"):
        report(tmp_path)
    with pytest.raises(UserError, match="between 0 and 1"):
        report(finished.workdir, fpr=1.5)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*; name another file with `out`"):
        report(finished.workdir, tmp_path / "file" / "a.html", progress=False)
