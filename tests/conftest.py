"""Settings that every test needs, a tiny data set in MVTec layout, and a finished run on it."""

import atexit
import gc
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

# Before JAX is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compilation is most of what the tests take; their arrays are too small to repay LLVM's optimiser.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if "PYTEST_XDIST_WORKER" not in os.environ:
    # What workers inherit and share: features, never the user's, and every compiled program.
    _kept = tempfile.mkdtemp(prefix="ahl_jax-tests-")
    atexit.register(shutil.rmtree, _kept, ignore_errors=True)
    os.environ["AHL_CACHE"] = _kept
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{_kept}/compiled")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # Otherwise a program is another one in a folder of another name.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")

from ahl_jax import Config, preset, train
from ahl_jax.common.files import alone
from tests.runs import FinishedRun
from tests.sweeps.stand_in import StandIn

# Traces are of many small objects, most of which stay: walking through them takes a seventh of all.
gc.set_threshold(100_000, 20, 50)

# The first example compiles, so hypothesis's clock would say nothing about the code.
settings.register_profile("default", deadline=None)
settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if os.environ.get("CI") else "default")


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
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers have; what is in it stays as it is made."""
    mine = tmp_path_factory.getbasetemp()
    return (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "shared"


def _made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """The folder, which the first worker that needs it makes and the others wait for."""
    with alone(folder.with_name(f"{folder.name}-made"), lambda: None):
        if not folder.exists():
            unfinished = folder.with_name(f"{folder.name}-unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def weave(shared: Path) -> Path:
    return _made_once(shared / "weave", lambda folder: _write(folder, "weave"))


@pytest.fixture(scope="session")
def textures(weave: Path, shared: Path) -> Path:
    """Two textures with the same defects; ``carpet`` is ``weave``."""

    def make(folder: Path) -> None:
        shutil.copytree(weave, folder / "carpet")
        _write(folder / "grid", "grid")

    return _made_once(shared / "textures", make)


@pytest.fixture(scope="session")
def marked(weave: Path, shared: Path) -> Path:
    """``weave`` with masks of its spots, which are black."""

    def make(folder: Path) -> None:
        shutil.copytree(weave, folder)
        masks = folder / "ground_truth/spot"
        masks.mkdir(parents=True)
        for image in (folder / "test/spot").iterdir():
            dark = Image.open(image).convert("L").point(lambda value: 255 * (value < 40))
            dark.save(masks / f"{image.stem}_mask.png")

    return _made_once(shared / "marked", make)


@pytest.fixture(scope="session")
def config(weave: Path) -> Config:
    return preset("debug", str(weave), shots=4)


@pytest.fixture(scope="session")
def finished(config: Config, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    run = _made_once(shared / "run", lambda folder: train(config, folder, progress=False))
    workdir = shutil.copytree(run, tmp_path_factory.mktemp("runs") / "finished")
    return FinishedRun(config, workdir, json.loads((workdir / "metrics.json").read_text()))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Sweeps write runs with made-up figures, and train nothing."""
    made = StandIn()
    monkeypatch.setattr("ahl_jax.sweeps.cells.train_seeds", made)
    return made
