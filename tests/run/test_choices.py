"""Settings that are ``auto``: the training data of each seed choose, once."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ahl_jax import RunOptions, UserError, evaluate, load, load_split, preset, train, train_seeds
from ahl_jax.detectors import make_detector, make_inputs
from ahl_jax.detectors.whitening import fit_whitening
from ahl_jax.features.pooling import global_averages
from ahl_jax.learning.hadg import similar_normals
from ahl_jax.run import choices
from ahl_jax.run.choices import left_out_auc
from ahl_jax.run.claim import Run
from ahl_jax.storage.workdir import Workdir
from tests.problems import CHANNELS, setting_maps
from tests.runs import FinishedRun
from tests.stage_one.tiny import install

QUICK = {
    "trunk": "tiny", "image_size": 192, "levels": 2, "held_out": 0.0, "fine_heat": False,
    "pseudo_per_generator": 8,
}  # fmt: skip


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def upright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that are bright above; the anomalies are bright below."""
    root, random = tmp_path_factory.mktemp("data") / "upright", np.random.default_rng(0)
    for folder, count, turned in (
        ("train/good", 14, False), ("test/good", 6, False), ("test/fallen", 8, True)
    ):  # fmt: skip
        (root / folder).mkdir(parents=True)
        for i in range(count):
            rows = np.linspace(220, 30, 96)[:, None, None]
            picture = rows + random.normal(0, 12, (96, 96, 1)) + random.normal(0, 8, (1, 1, 3))
            picture = np.clip(picture[::-1] if turned else picture, 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(root / folder / f"{i:02}.png")
    return root


@pytest.mark.slow
def test_what_is_taken_is_told_and_kept(
    upright: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = preset("density", str(upright), shots=4, **QUICK)
    assert (config.features.views, config.detector.poolings) == ("2+8", "auto")
    caplog.set_level("INFO")
    metrics = train(config, tmp_path / "run")
    assert metrics["auc_roc"] == 1
    assert load(tmp_path / "run").config.detector.poolings == 3
    told = "taken: 3 poolings (AUC-ROC of labelled anomalies left out: 1.000 with 3 poolings, "
    assert told in caplog.text
    # The same settings are those of the finished run, and so are those with what was chosen.
    assert train(config, tmp_path / "run", progress=False) == metrics
    chosen = preset("density", str(upright), shots=4, poolings=3, **QUICK)
    assert train(chosen, tmp_path / "run", progress=False) == metrics
    assert evaluate(tmp_path / "run", progress=False) == metrics
    with pytest.raises(UserError, match="`poolings` is 3 there and 1 here"):
        train(preset("density", str(upright), shots=4, poolings=1, **QUICK), tmp_path / "run")
    with pytest.raises(UserError, match="`levels` is 2 there and 1 here"):
        train(preset("density", str(upright), shots=4, **{**QUICK, "levels": 1}), tmp_path / "run")


def test_a_run_of_other_settings_has_chosen_nothing(finished: FinishedRun) -> None:
    config = preset("density", finished.config.data.data, shots=4)
    run = Run(config, load_split(config), "", Workdir(finished.workdir))
    assert choices._begun(run, RunOptions()) is None
    assert choices._begun(dataclasses.replace(run, config=finished.config), RunOptions()) == {}


@pytest.mark.parametrize(
    ("figures", "chosen"),
    [
        ((0.8, 0.84), 3),
        ((0.84, 0.8), 3),
        ((0.8, 0.85), 1),
        # Near 1 a small difference is a large share of the error, and next to 1 it is doubtful.
        ((0.98, 0.99), 1),
        ((0.999, 1), 3),
    ],
)
def test_each_seed_takes_what_is_clearly_better_on_its_own_images(
    upright: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: tuple, chosen: int
) -> None:
    asked = iter((0.84, 0.84, *figures))
    monkeypatch.setattr(choices, "left_out_auc", lambda *arguments: next(asked))
    config = preset("density", str(upright), shots=4, views=1, **QUICK)
    metrics = train_seeds(config, tmp_path, [0, 1], progress=False)
    for seed, taken in ((0, 3), (1, chosen)):
        run = json.loads((tmp_path / f"seed-{seed}" / "run.json").read_text())
        assert run["config"]["seed"] == seed
        assert run["config"]["detector"]["poolings"] == taken
        assert metrics[seed] == evaluate(tmp_path / f"seed-{seed}", progress=False)
    # Runs that are there keep theirs, without asking the data again.
    assert train_seeds(config, tmp_path, [1, 0], progress=False) == metrics[::-1]


@pytest.mark.parametrize(
    ("settings", "poolings"),
    [
        ({"shots": 0}, 3),
        ({"shots": 4, "poolings": 2}, 2),
        # It reads averages alone.
        ({"shots": 4, "detector": "dra", "method": "base", "epochs": 1}, 1),
    ],
)
def test_nothing_is_compared_without_labelled_anomalies_or_choice(
    upright: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict, poolings: int
) -> None:
    monkeypatch.setattr(choices, "extract", None)
    config = preset("density", str(upright), views=1, **QUICK, **settings)
    train(config, tmp_path / "run", progress=False)
    assert load(tmp_path / "run").config.detector.poolings == poolings


def test_the_measure_is_that_of_the_detector_on_the_features() -> None:
    normals, anomalies, *_ = setting_maps(40)
    averages = [global_averages(maps) for maps in (normals, anomalies)]
    config = preset("density", "none", groups=2, poolings=1, views=1)
    whitening = fit_whitening(averages[0], 2, (3, 1))
    found = left_out_auc(config, whitening, *averages)
    inputs = [make_inputs(maps, whitening=whitening) for maps in (normals, anomalies)]
    functional, model = make_detector(config.detector, CHANNELS, jax.random.key(1))
    measured = jax.jit(functional.measured)
    rows = [measured(model, each) for each in inputs]
    groups = jnp.asarray(similar_normals(averages[0], 2, 0))
    model = jax.jit(functional.prepared)(model, *rows, rows[1][:0], groups)
    assert found == pytest.approx(float(model.stats["left_out_auc"]), abs=0.02)
    assert 0.5 < found <= 1
    # The base detector does not matter: the measure is of the features.
    other = dataclasses.replace(
        config, detector=dataclasses.replace(config.detector, detector="dra")
    )
    assert left_out_auc(other, whitening, *averages) == found


def test_the_mean_over_two_views_tells_a_turned_part_that_the_one_over_eight_cannot(
    upright: Path, tmp_path: Path
) -> None:
    found = {}
    for views in (8, "2+8"):
        # Single locations, each compared with the same place, would tell it by either.
        config = preset("density", str(upright), shots=0, views=views, local_head=False, **QUICK)
        found[views] = train(config, tmp_path / str(views), progress=False)["auc_roc"]
    assert found["2+8"] == 1
    assert found[8] < 0.9
