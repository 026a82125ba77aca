"""The comparison with other packages; what needs them is left out where they are missing."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from ahl_jax import UserError
from ahl_jax.backbones import load_trunk
from ahl_jax.features.split import load_split
from experiments.benchmarks import peers
from experiments.benchmarks.peer_methods import METHODS, Case, Method
from experiments.benchmarks.peers import Peers

TINY = Peers(methods=("fake",), seeds=(0, 1), limit=6, quick=True, threads=1, timed_images=5)


class Brightness:
    """Bright images are normal; it counts how often it is fitted, and what it is timed with."""

    fit_seconds = 0.5
    fits: list[int]
    timed: list[int]

    def features(self, images: np.ndarray) -> np.ndarray:
        self.timed.append(len(images))
        return images.mean((1, 2, 3))

    def score(self, features: np.ndarray) -> np.ndarray:
        return -features

    def score_images(self, images: np.ndarray) -> np.ndarray:
        return self.score(images.mean((1, 2, 3)))

    def score_paths(self, paths) -> np.ndarray:
        return np.array([-peers.read_image(path, 8).mean() for path in paths])

    def heat_images(self, images: np.ndarray) -> np.ndarray:
        return -images.astype(np.float32).mean(-1)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Brightness]:
    Brightness.fits, Brightness.timed = [], []

    def fit(case: Case) -> Brightness:
        Brightness.fits.append(case.seed)
        return Brightness()

    monkeypatch.setitem(METHODS, "fake", Method("nowhere", fit))  # type: ignore[arg-type]
    return Brightness


def test_one_without_labels_is_fitted_once(fake: type[Brightness]) -> None:
    row = peers.measure(METHODS["fake"], TINY)
    assert fake.fits == [0]
    assert row["labels"] == 0
    assert 0 <= row["auc_roc"] <= 1
    assert row["peak_mib"] >= row["start_mib"] > 0
    assert row["fit_seconds"] == 0.5
    assert all(row[name] > 0 for name in ("feature_ms", "score_ms", "image_ms"))


def test_one_with_labels_is_fitted_with_every_seed(fake: type[Brightness]) -> None:
    method = METHODS["fake"]._replace(labels=True)
    row = peers.measure(method, dataclasses.replace(TINY, measure="auc"))
    assert fake.fits == [0, 1]
    assert row["labels"] == 3
    assert not fake.timed
    assert "image_ms" not in row


def test_heat_maps_count_where_there_are_masks(
    fake: type[Brightness], marked: Path, weave: Path
) -> None:
    found = peers.measure(METHODS["fake"], dataclasses.replace(TINY, data=str(marked)))
    # The spots are black, and this takes what is dark for hot.
    assert found["pixel_auroc"] > 0.9
    assert 0.5 < found["aupro"] <= 1
    assert "aupro" not in peers.measure(METHODS["fake"], dataclasses.replace(TINY, data=str(weave)))


def test_the_first_round_and_what_is_over_a_batch(fake: type[Brightness]) -> None:
    row = peers.timed(Brightness(), np.zeros((5, 8, 8, 3), np.uint8), 4)
    assert fake.timed == [4, 1] * 5
    assert set(row) == {"feature_ms", "score_ms", "image_ms"}


def test_ratios_are_to_the_first_row() -> None:
    first = peers.with_shared("KNN", {"image_ms": 4.0}, [], TINY)
    second = peers.with_shared("LOF", {"image_ms": 6.0}, [first], TINY)
    assert (first["image_ratio"], second["image_ratio"]) == (1.0, 1.5)
    assert second["package"] == "PyOD"
    assert second["seeds"] == 2


def test_missing_packages_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        peers.check(Peers())
    assert str(error.value) == (
        "peers compares with anomalib and pyod and xgboost, which this Python has not; "
        "run: pip install '.[peers]'"
    )
    assert peers.check(Peers(methods=("PatchCore, one view",))) == ["PatchCore, one view"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"methods": ("SVDD",)},
            "`methods` has no 'SVDD'; choose from 'Density, two and eight views'",
        ),
        ({"seeds": ()}, "`seeds` must be 1 or more"),
        ({"timed_images": 0}, "`timed_images` must be 1 or more"),
        ({"coreset": 0.0}, "`coreset` is 0.0; it must be above 0 and at most 1"),
    ],
)
def test_bad_options(options, message) -> None:
    with pytest.raises(UserError) as error:
        peers.check(Peers(**({"methods": ("Gaussian, one view",)} | options)))
    assert str(error.value).startswith(message)


def test_all_see_the_same_split() -> None:
    case = Case(limit=6, quick=True)
    splits = [
        load_split(case.config(row)) for row in ("Density", "AHL(Density)", "Gaussian", "PatchCore")
    ]
    assert all(split == splits[0] for split in splits)
    assert not splits[0].held_out


@pytest.mark.slow
def test_gaussian_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """A whole row, in a process of its own, of what needs no other package."""
    monkeypatch.setenv("AHL_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "rows.json"
    options = "--quick --limit 6 --seeds 0 --timed-images 3 --batch 2 --threads 1"
    monkeypatch.setattr(
        sys,
        "argv",
        ["peers", *options.split(), "--methods", "Gaussian, one view", "--json", str(out)],
    )
    peers.main()
    (row,) = json.loads(out.read_text())
    assert row["method"] == "Gaussian, one view"
    assert row["image_ratio"] == 1
    assert row["image_ms"] > row["score_ms"]
    assert len(capfd.readouterr().out.splitlines()) == 3


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 128, 128, 3), np.uint8)


def test_the_weights_of_the_trunk_fit_timm() -> None:
    pytest.importorskip("anomalib")
    timm = pytest.importorskip("timm")
    from experiments.benchmarks import peer_anomalib

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True)
    peer_anomalib.load_weights(network)
    *_, last = network.eval()(peer_anomalib.as_tensor(images(2)))
    ours = np.asarray(load_trunk("efficientnet_lite0")(images(2).astype(np.float32)))
    np.testing.assert_allclose(last.detach().numpy().transpose(0, 2, 3, 1), ours, atol=1e-3)


@pytest.mark.parametrize("name", ["PatchCore", "PatchCore, random subset", "PaDiM"])
def test_anomalib_scores_features_as_it_scores_images(name: str) -> None:
    pytest.importorskip("anomalib")
    case = Case(limit=3, quick=True, coreset=0.02, coreset_normals=2)
    detector = METHODS[name].fit(case)
    paths = [sample.path for sample in load_split(case.config("Density")).test][:3]
    pixels = np.stack([peers.read_image(path, 192) for path in paths])
    scores = detector.score_images(pixels)
    assert scores.shape == (3,)
    assert len(set(scores.tolist())) == 3
    np.testing.assert_allclose(detector.score(detector.features(pixels)), scores, rtol=1e-4)
    np.testing.assert_allclose(detector.score_paths(paths), scores, rtol=1e-4)


def test_a_row_has_the_views_of_its_name_and_the_levels_of_its_detector() -> None:
    config = Case(quick=True).config("Density", 1)
    assert (config.features.views, config.features.levels) == (1, 4)
    assert Case(quick=True).config("PatchCore").features.views == 8
    assert config.features.fine_heat
    ours = [name for name, method in METHODS.items() if method.package == "ahl_jax"]
    views = "two and eight views", "eight views", "two views", "one view"
    assert ours[:4] == [f"Density, {one}" for one in views]
    assert not {"AHL(Density), eight views", "Density"} & set(ours)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Density, two and eight views", "AHL(Density), one view"])
def test_ours_scores_features_as_it_scores_images(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AHL_CACHE", str(tmp_path))
    case = Case(limit=6, quick=True)
    detector = METHODS[name].fit(case)
    paths = [sample.path for sample in load_split(case.config("Density")).test][:3]
    pixels = np.stack([peers.read_image(path, 192) for path in paths])
    scores = detector.score_images(pixels)
    assert len(set(scores.tolist())) == 3
    np.testing.assert_allclose(detector.score(detector.features(pixels)), scores, rtol=1e-3)
    np.testing.assert_allclose(detector.score_paths(paths), scores, rtol=1e-3)


@pytest.mark.parametrize("name", ["KNN", "KNN, whitened", "XGBOD"])
def test_pyod_on_our_features(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in METHODS[name].needs:
        pytest.importorskip(package)
    monkeypatch.setenv("AHL_CACHE", str(tmp_path))
    case = Case(limit=6, quick=True)
    detector = METHODS[name].fit(case)
    paths = [sample.path for sample in load_split(case.config("Density")).test][:3]
    pixels = np.stack([peers.read_image(path, 192) for path in paths])
    scores = detector.score_images(pixels)
    assert len(set(scores.tolist())) == 3
    np.testing.assert_allclose(detector.score_paths(paths), scores, rtol=1e-3)
