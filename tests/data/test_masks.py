"""Masks of anomalous pixels, from folders and from prepared data sets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ahl_jax.common.errors import BadImageError
from ahl_jax.data.images import read_pixels
from ahl_jax.data.masks import find_masks, read_mask, warn_of_unused

MARKS = np.zeros((20, 40), bool)
MARKS[:10, :20] = True


def _put(path: Path, picture: np.ndarray | Image.Image, orientation: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture.astype(np.uint8))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    picture.save(path, exif=exif)
    return path


def _image(root: Path, name: str = "test/a/1.png", orientation: int | None = None) -> Path:
    return _put(root / name, np.zeros((20, 40, 3)), orientation)


def _read(image: Path, root: Path) -> np.ndarray | None:
    found = find_masks([image], root)
    return read_mask(image, found[0]) if found else None


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("test/scratch/01.png", "ground_truth/scratch/01_mask.png"),
        ("screw/test/scratch/deep/01.jpg", "screw/ground_truth/scratch/deep/01.png"),
        ("pcb1/Data/Images/Anomaly/01.JPG", "pcb1/Data/Masks/Anomaly/01.png"),
        ("test/a/01.png", "ground_truth/a/01_mask.PNG"),
        ("test/a/01.png", "ground_truth/a/01.tif"),
        ("test/a/01.png", "ground_truth/a/01_gt.tiff"),
        ("test/a/01.png", "ground_truth/a/01_label.bmp"),
        ("test/a/IMG_1.JPG", "Ground_Truth/A/img_1_Mask.png"),
        ("test/a/Cafe\u0301.png", "ground_truth/a/Caf\u00e9_MASK.PNG"),
    ],
)
def test_a_mask_lies_where_its_layout_has_it(tmp_path: Path, image: str, mask: str) -> None:
    path = _image(tmp_path, image)
    assert _read(path, tmp_path) is None
    _put(tmp_path / mask, MARKS * 255)
    np.testing.assert_array_equal(_read(path, tmp_path), MARKS)


def test_the_exact_name_goes_before_the_same_in_another_case(tmp_path: Path) -> None:
    for name, marks in (("A", MARKS), ("a", ~MARKS)):
        _image(tmp_path, f"test/a/{name}.png")
        _put(tmp_path / f"ground_truth/a/{name}_mask.png", marks * 255)
    np.testing.assert_array_equal(_read(tmp_path / "test/a/A.png", tmp_path), MARKS)
    np.testing.assert_array_equal(_read(tmp_path / "test/a/a.png", tmp_path), ~MARKS)


def _palette(white: int) -> Image.Image:
    """A picture of two colours, with white at the index 0 or 1."""
    picture = Image.fromarray((MARKS ^ (white == 0)).astype(np.uint8), "P")
    picture.putpalette([255] * 3 + [0] * 3 if white == 0 else [0] * 3 + [255] * 3)
    return picture


def _with_alpha(colour: np.ndarray, alpha: np.ndarray) -> Image.Image:
    planes = [*([colour] * 3), alpha]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8), "RGBA")


SEEN = {
    "L": Image.fromarray((MARKS * 255).astype(np.uint8)),
    "faint": Image.fromarray(MARKS.astype(np.uint8)),
    "1": Image.fromarray(MARKS),
    "16 bit": Image.fromarray(MARKS.astype(np.uint16)),
    "RGB": Image.fromarray(np.stack([MARKS * 0, MARKS * 9, MARKS * 0], -1).astype(np.uint8)),
    "palette, white first": _palette(0),
    "palette, black first": _palette(1),
    "quantized": Image.fromarray((MARKS * 255).astype(np.uint8)).convert("RGB").quantize(2),
    "grey with alpha": _with_alpha(MARKS * 255, np.full(MARKS.shape, 255)).convert("LA"),
    "colour with alpha": _with_alpha(MARKS * 255, np.full(MARKS.shape, 255)),
    "transparent around": _with_alpha(np.full(MARKS.shape, 255), MARKS * 255),
    "transparent black": _with_alpha(MARKS * 255, MARKS * 0 + MARKS * 255),
}


@pytest.mark.parametrize("kind", SEEN)
def test_marked_is_what_a_person_sees(tmp_path: Path, kind: str) -> None:
    path = _image(tmp_path)
    _put(tmp_path / "ground_truth/a/1_mask.png", SEEN[kind])
    np.testing.assert_array_equal(_read(path, tmp_path), MARKS)


@pytest.mark.parametrize("kind", ["F", "I", "CMYK", "LAB", "1"])
def test_tiffs_too(tmp_path: Path, kind: str) -> None:
    mask = {
        "F": Image.fromarray(MARKS.astype(np.float32) / 255),
        "I": Image.fromarray(MARKS.astype(np.int32) * 70_000),
        "CMYK": Image.fromarray((MARKS * 255).astype(np.uint8)).convert("RGB").convert("CMYK"),
        "LAB": Image.merge("LAB", [Image.fromarray((MARKS * 255).astype(np.uint8))] * 3),
        "1": Image.fromarray(MARKS),
    }[kind]
    path = _image(tmp_path)
    _put(tmp_path / "ground_truth/a/1.tif", mask)
    np.testing.assert_array_equal(_read(path, tmp_path), MARKS)


def test_an_empty_mask_is_none(tmp_path: Path) -> None:
    path = _image(tmp_path)
    _put(tmp_path / "ground_truth/a/1_mask.png", np.zeros((20, 40)))
    assert _read(path, tmp_path) is None


@pytest.mark.parametrize("shape", [(10, 20), (40, 20), (20, 41)])
def test_a_mask_of_another_size_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = _image(tmp_path)
    mask = _put(tmp_path / "ground_truth/a/1_mask.png", np.ones(shape))
    with pytest.raises(BadImageError) as refused:
        _read(path, tmp_path)
    assert str(refused.value) == (
        f"the mask {mask} has {shape[1]} x {shape[0]} pixels, and its image {path} has 40 x 20; "
        "draw it in the size of the image, or delete it"
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_a_mask_is_the_same_way_up_as_its_image(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    stored = np.where(MARKS, 255, 0).astype(np.uint8)
    image = _put(tmp_path / f"test/a/1.{suffix}", np.stack([stored] * 3, -1), orientation)
    seen = read_pixels(image)[..., 0] > 128
    mask = tmp_path / "ground_truth/a/1_mask.png"
    # Drawn on the image as it is seen.
    _put(mask, seen * 255)
    np.testing.assert_array_equal(_read(image, tmp_path), seen)
    # Turned by itself.
    for name in ("1_mask.png", "1_mask.tif"):
        mask.unlink()
        mask = _put(mask.with_name(name), stored, orientation)
        if orientation > 1:
            np.testing.assert_array_equal(_read(image, tmp_path), seen)
    # Drawn on the stored pixels, as its size tells.
    mask.unlink()
    _put(mask.with_name("1_mask.png"), stored)
    if orientation > 4:
        np.testing.assert_array_equal(_read(image, tmp_path), seen)


def test_links_out_of_the_data_set_are_not_followed(tmp_path: Path) -> None:
    path = _image(tmp_path / "data")
    _put(tmp_path / "elsewhere/1_mask.png", MARKS * 255)
    (tmp_path / "data/ground_truth").mkdir()
    (tmp_path / "data/ground_truth/a").symlink_to(tmp_path / "elsewhere")
    assert _read(path, tmp_path / "data") is None


def test_folders_around_the_data_set_are_none_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _image(tmp_path / "test/data")
    _put(tmp_path / "ground_truth/data/test/a/1.png", MARKS * 255)
    assert _read(path, tmp_path / "test/data") is None
    warn_of_unused([path], tmp_path / "test/data")
    assert "no file" not in caplog.text


@pytest.mark.parametrize("name", ["1_mask.png", "1_mask.tif"])
def test_a_damaged_mask_is_named(tmp_path: Path, name: str) -> None:
    path = _image(tmp_path)
    mask = _put(tmp_path / "ground_truth/a" / name, MARKS * 255)
    mask.write_bytes(mask.read_bytes()[:30])
    with pytest.raises(BadImageError, match=rf"{name} cannot be read"):
        _read(path, tmp_path)
    _put(mask.with_name("1.jpg"), MARKS * 255).rename(mask)
    with pytest.raises(BadImageError, match="not a PNG, BMP or TIFF file"):
        _read(path, tmp_path)


def test_folders_from_which_nothing_matches_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("test/a/1.png", "test/b/1.png", "test/c/1.png", "test/good/1.png")
    images = [_image(tmp_path, name) for name in names]
    used = ("a/1_mask.png", "good/1.png")
    unused = ("b/2_mask.png", "b/deep/1.png", "c/1.jpg", "other/1.png", "2.png")
    for name in (*used, *unused):
        _put(tmp_path / "ground_truth" / name, MARKS * 255)
    (tmp_path / "ground_truth/a/notes.txt").touch()
    warn_of_unused(images, tmp_path)
    home = tmp_path / "ground_truth"
    assert f"no file in {home}, {home / 'b'}, {home / 'b/deep'} and 2 others" in caplog.text
    for name in unused:
        (home / name).unlink()
    caplog.clear()
    warn_of_unused(images, tmp_path)
    assert "no file" not in caplog.text
