"""Settings that every test needs, a tiny data set in MVTec layout, and a finished run on it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

# Before JAX is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compilation is most of what the tests take; their arrays are too small to repay LLVM's optimiser.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

from ahl_jax import Config, preset, train
from ahl_jax.cli.shell import keep_compiled_programs
from tests.runs import FinishedRun
from tests.sweeps.stand_in import StandIn

# The first example compiles, so hypothesis's clock would say nothing about the code.
settings.register_profile("default", deadline=None)
settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session", autouse=True)
def feature_cache() -> Iterator[Path]:
    """A feature cache of this session alone; tests never touch the user's."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("AHL_CACHE")
        os.environ["AHL_CACHE"] = folder
        yield Path(folder)
        if before is None:
            del os.environ["AHL_CACHE"]
        else:
            os.environ["AHL_CACHE"] = before


def _picture(rng: np.random.Generator, defect: str | None, texture: str) -> np.ndarray:
    rows, columns = np.mgrid[:96, :96]
    shift = rng.uniform(0, 6)
    grey = {
        "weave": 128 + 40 * np.sin(rows / 3 + shift) * np.sin(columns / 4),
        "grid": 90 + 70 * ((rows + shift).astype(int) // 12 % 2 ^ columns // 12 % 2),
    }[texture]
    picture = grey[..., None] + rng.normal(0, 6, (96, 96, 3))
    top, left = rng.integers(10, 60, 2)
    if defect == "scratch":
        picture[top : top + 3, left : left + 30] = 250
    elif defect == "spot":
        picture[top : top + 14, left : left + 14] = 10
    return np.clip(picture, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(feature_cache: Path) -> None:
    """Compile each program once for all runs."""
    keep_compiled_programs()


def _write(root: Path, texture: str) -> Path:
    rng = np.random.default_rng(0)
    parts = [("train/good", 20, None), ("test/good", 9, None)]
    parts += [("test/scratch", 7, "scratch"), ("test/spot", 7, "spot")]
    for folder, count, defect in parts:
        (root / folder).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(_picture(rng, defect, texture)).save(root / folder / f"{i:02}.png")
    return root


@pytest.fixture(scope="session")
def weave(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("data") / "weave", "weave")


@pytest.fixture(scope="session")
def textures(weave: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two textures with the same defects; ``carpet`` is ``weave``."""
    root = tmp_path_factory.mktemp("data") / "textures"
    shutil.copytree(weave, root / "carpet")
    _write(root / "grid", "grid")
    return root


@pytest.fixture(scope="session")
def config(weave: Path) -> Config:
    return preset("debug", str(weave), shots=4)


@pytest.fixture(scope="session")
def finished(config: Config, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    return FinishedRun(config, workdir, train(config, workdir, progress=False))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Sweeps write runs with made-up figures, and train nothing."""
    made = StandIn()
    monkeypatch.setattr("ahl_jax.sweeps.cells.train_seeds", made)
    return made
