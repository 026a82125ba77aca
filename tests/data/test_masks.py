"""Masks of anomalous pixels, from folders and from prepared data sets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ahl_jax.common.errors import BadImageError
from ahl_jax.data.masks import read_mask


def _put(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


def _marked(value: int = 255) -> np.ndarray:
    mask = np.zeros((20, 40))
    mask[:10, :20] = value
    return mask


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("test/scratch/01.png", "ground_truth/scratch/01_mask.png"),
        ("screw/test/scratch/deep/01.jpg", "screw/ground_truth/scratch/deep/01.png"),
        ("pcb1/Data/Images/Anomaly/01.JPG", "pcb1/Data/Masks/Anomaly/01.png"),
    ],
)
def test_a_mask_lies_where_its_layout_has_it(tmp_path: Path, image: str, mask: str) -> None:
    path = _put(tmp_path / image, np.zeros((20, 40, 3)))
    assert read_mask(path, tmp_path, 8) is None
    _put(tmp_path / mask, _marked())
    found = read_mask(path, tmp_path, 8)
    assert found is not None
    assert found[:4, :4].all()
    assert found.sum() == 16


@pytest.mark.parametrize("value", [1, 255])
def test_any_value_but_0_marks_a_pixel(tmp_path: Path, value: int) -> None:
    path = _put(tmp_path / "test/a/1.png", np.zeros((20, 40, 3)))
    _put(tmp_path / "ground_truth/a/1_mask.png", np.stack([_marked(value)] * 3, -1))
    found = read_mask(path, tmp_path, 20)
    assert found is not None
    assert found.sum() == 100


def test_an_empty_mask_is_none(tmp_path: Path) -> None:
    path = _put(tmp_path / "test/a/1.png", np.zeros((20, 40, 3)))
    _put(tmp_path / "ground_truth/a/1_mask.png", np.zeros((20, 40)))
    assert read_mask(path, tmp_path, 20) is None


def test_links_out_of_the_data_set_are_not_followed(tmp_path: Path) -> None:
    path = _put(tmp_path / "data/test/a/1.png", np.zeros((20, 40, 3)))
    _put(tmp_path / "elsewhere/1_mask.png", _marked())
    (tmp_path / "data/ground_truth").mkdir()
    (tmp_path / "data/ground_truth/a").symlink_to(tmp_path / "elsewhere")
    assert read_mask(path, tmp_path / "data", 20) is None


def test_a_damaged_mask_is_named(tmp_path: Path) -> None:
    path = _put(tmp_path / "test/a/1.png", np.zeros((20, 40, 3)))
    mask = _put(tmp_path / "ground_truth/a/1_mask.png", _marked())
    mask.write_bytes(mask.read_bytes()[:30])
    with pytest.raises(BadImageError, match=r"1_mask\.png cannot be read"):
        read_mask(path, tmp_path, 20)
