"""The tiny trunk among the others, and images for it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ahl_jax import Config, preset
from ahl_jax.config.presets import with_settings
from tests.stage_one.tiny import SIZE, install


@pytest.fixture(autouse=True)
def tiny(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey noise; anomalies have a spot."""
    root = tmp_path_factory.mktemp("data") / "spots"
    rng = np.random.default_rng(0)
    for folder, count in {"train/good": 12, "test/good": 8, "test/spot": 12}.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            picture = rng.normal(120, 12, (SIZE, SIZE, 3))
            if "spot" in folder:
                top, left = rng.integers(0, SIZE - 40, 2)
                picture[top : top + 40, left : left + 40] += 60
            image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
            image.save(root / folder / f"{i:02}.png")
    return root


@pytest.fixture
def config(spots: Path) -> Config:
    changed = {"trunk": "tiny", "stage_one": True, "stage_one_epochs": 3, "stage_one_steps": 4,
               "stage_one_batch": 9, "stage_one_lr": 0.01, "stage_one_detector": "devnet",
               "generators": ("cutmix", "cutpaste"), "epochs": 2, "shots": 4}  # fmt: skip
    return with_settings(preset("debug", str(spots)), changed)
