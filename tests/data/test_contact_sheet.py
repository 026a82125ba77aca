"""The picture of a data set."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from ahl_jax import DataConfig, UserError
from ahl_jax.common import files
from ahl_jax.data.contact_sheet import draw
from ahl_jax.data.folder import load


def test_names_may_be_anything(weave: Path, tmp_path: Path) -> None:
    data = shutil.copytree(weave, tmp_path / "weave")
    names = [os.fsdecode(b"caf\xe9.png"), "_$a_{$ $.png", "two\nlines.png", "n" * 251 + ".png"]
    for name, photo in zip(names, sorted((data / "train/good").iterdir()), strict=False):
        photo.rename(photo.with_name(name))
    (data / "test/spot").rename(data / "test" / os.fsdecode(b"\xf6 $x_{"))
    draw(load(DataConfig(str(data))), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        sheet.load()


def test_a_full_disk_leaves_nothing_unfinished(
    weave: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        draw(load(DataConfig(str(weave))), tmp_path / "sheet.png")
    assert os.listdir(tmp_path) == []
