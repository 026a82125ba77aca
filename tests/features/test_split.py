"""Which images a run has, and their digest."""

import os
import shutil
from pathlib import Path

from ahl_jax import load_split, preset
from ahl_jax.features.split import split_digest


def test_names_that_are_no_utf_8_have_a_digest(weave: Path, tmp_path: Path) -> None:
    data = shutil.copytree(weave, tmp_path / "weave")
    (data / "test/spot").rename(data / "test" / os.fsdecode(b"\xf6l"))
    (data / "train/good/00.png").rename(data / "train/good" / os.fsdecode(b"\xe9.png"))
    split = load_split(preset("debug", str(data), shots=4))
    assert len(split_digest(split)) == 64
