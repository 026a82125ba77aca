"""From what a user downloads, images and weights, to a table of the paper."""

import csv
import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ahl_jax.backbones import load_trunk, trunk_from_params
from ahl_jax.cli.main import main
from ahl_jax.config.presets import PRESETS, with_settings
from ahl_jax.data.builders import builder_class
from ahl_jax.stage_one import run
from ahl_jax.storage.checkpoints import Checkpoints
from tests.goldens.inputs import resnet_state_dict
from tests.goldens.torch_zip import torch_zip

SIZE = 96
CATEGORIES = ("carpet", "grid", "wood")
COUNTS = {"train/good": 12, "test/good": 5, "test/cut": 4, "test/hole": 4}


def _texture(rng: np.random.Generator, category: str) -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE] + rng.uniform(0, 9, (2, 1, 1))
    waves = {
        "carpet": np.sin(rows / 2) * np.sin(columns / 2),
        "grid": np.maximum(np.sin(rows / 4), np.sin(columns / 4)),
        "wood": np.sin(rows / 3 + 2 * np.sin(columns / 20)),
    }
    return 120 + 50 * waves[category] + rng.normal(0, 6, (SIZE, SIZE))


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """Three categories of MVTec AD as they are unpacked, and ResNet-18 as torch saves it."""
    home, rng = tmp_path / "downloads", np.random.default_rng(0)
    for category in CATEGORIES:
        for folder, count in COUNTS.items():
            kind = Path(folder).name
            (home / category / folder).mkdir(parents=True)
            for i in range(count):
                picture, mask = _texture(rng, category), np.zeros((SIZE, SIZE), bool)
                if kind != "good":
                    top, left = rng.integers(5, 50, 2)
                    high, wide = {"cut": (4, 40), "hole": (16, 16)}[kind]
                    mask[top : top + high, left : left + wide] = True
                    picture[mask] = 10
                    masks = home / category / "ground_truth" / kind
                    masks.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask).save(masks / f"{i:03}_mask.png")
                grey = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
                grey.convert("RGB").save(home / category / folder / f"{i:03}.png")
    (home / "resnet18-f37072fd.pth").write_bytes(torch_zip(resnet_state_dict("resnet18")))
    return home


@pytest.mark.slow
def test_downloads_become_a_table_with_a_trained_trunk(
    downloads: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AHL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AHL_DATA", str(tmp_path / "prepared"))
    counts = {"train": 12, "good": 5, "anomalies": 8}
    monkeypatch.setattr(builder_class("mvtec_ad"), "COUNTS", dict.fromkeys(CATEGORIES, counts))
    main(["data", "prepare", "mvtec_ad", "--manual-dir", str(downloads)])
    main(["weights", "import", str(downloads / "resnet18-f37072fd.pth"), "--trunk", "resnet18"])
    # A step of stage one takes seconds on a CPU.
    short = {"stage_one_epochs": 1, "stage_one_steps": 1, "stage_one_batch": 3, "epochs": 2}
    debug = PRESETS["debug"]
    monkeypatch.setitem(PRESETS, "debug", lambda data: with_settings(debug(data), short))
    script = importlib.import_module("experiments.table1_general")
    words = ["--data", "mvtec_ad", "--trunk", "resnet18", "--stage-one", "--quick"]
    words += ["--methods", "DRA", "AHL(DRA)", "--seeds", "0", "--shots", "3"]
    words += ["--workdir", str(tmp_path / "runs"), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["table1_general", *words])
    script.main()
    name = "table1_general_resnet18_stage-one_quick"
    with (tmp_path / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["dataset"], row["method"]) for row in rows] == [
        (f"mvtec_ad/{category}", method)
        for category in CATEGORIES
        for method in ("DRA", "AHL(DRA)")
    ]
    assert all(0 <= float(row["auc_roc"]) <= 1 for row in rows)
    text = (tmp_path / f"{name}.md").read_text()
    mean = text.partition("## mvtec_ad, mean of 3 categories")[2]
    for method in ("DRA", "AHL(DRA)"):
        values = [float(row["auc_roc"]) for row in rows if row["method"] == method]
        assert f"| {method} | {np.mean(values):.3f}" in mean
    # Both methods of a category have one trained trunk, and each category its own.
    digests = []
    for folder in sorted((tmp_path / "runs").rglob("seed-0")):
        with Checkpoints(folder, read_only=True) as checkpoints:
            digests.append(trunk_from_params(*checkpoints.load_trunk()).digest)
    assert len(digests) == 6
    assert digests[::2] == digests[1::2]
    assert len({*digests, load_trunk("resnet18").digest}) == 4
    assert len(list((tmp_path / "cache/stage_one").iterdir())) == 3
    # The same command again only reads.
    monkeypatch.setattr(run, "start", None)
    script.main()
    assert (tmp_path / f"{name}.md").read_text() == text
