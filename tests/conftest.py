"""Settings that every test needs, made before JAX is imported."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compilation is most of what the tests take; their arrays are too small to repay LLVM's optimiser.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

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
