"""Photographs in parts: crops, margins and tiles."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ahl_jax import load, preset, train
from ahl_jax.common.errors import BadImageError, UserError
from ahl_jax.config.settings import SCALES, FeatureConfig
from ahl_jax.data.frame import Frame
from ahl_jax.data.images import as_image, read_image
from ahl_jax.data.records import InMemory
from ahl_jax.features.split import defect_tiles
from ahl_jax.features.tiles import (
    Tiles,
    frame_of,
    marked_in,
    tiles_of,
    tiles_of_defects,
    warn_of_shrinking,
)
from ahl_jax.inference.export import export_model
from ahl_jax.inference.heatmaps import upsampled
from tests.runs import FinishedRun


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """128 x 64 pixels, every one of its own value."""
    rows, columns = np.mgrid[:64, :128]
    pixels = np.stack([rows * 2, columns, rows + columns], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photograph.png")
    return tmp_path / "photograph.png"


def test_a_crop_is_the_part_alone(photograph: Path) -> None:
    pixels = np.asarray(Image.open(photograph))
    crop = read_image(photograph, Frame(32, 16, crop=(40, 8, 32, 16)))
    np.testing.assert_array_equal(crop, pixels[8:24, 40:72])


def test_a_crop_is_of_the_photograph_as_it_is_seen(photograph: Path, tmp_path: Path) -> None:
    upright = Image.open(photograph)
    exif = Image.Exif()
    exif[0x0112] = 8  # to be turned by a quarter
    upright.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "turned.png", exif=exif)
    frame = Frame(32, 16, crop=(40, 8, 32, 16))
    np.testing.assert_array_equal(
        read_image(tmp_path / "turned.png", frame), read_image(photograph, frame)
    )


def test_a_large_jpeg_is_cropped_where_its_pixels_are(tmp_path: Path) -> None:
    # Decoded at a fraction of its size, the crop would be elsewhere.
    pixels = np.zeros((1024, 1024, 3), np.uint8)
    pixels[512:576, 256:320] = 255
    Image.fromarray(pixels).save(tmp_path / "large.jpg", quality=95)
    crop = read_image(tmp_path / "large.jpg", Frame(64, 64, crop=(256, 512, 64, 64)))
    assert crop.mean() > 250


def test_a_crop_beyond_the_photograph_is_one_sentence(photograph: Path) -> None:
    said = "has 128 x 64 pixels, which the crop 100 0 40 20 goes beyond; train with a `crop` that"
    for source in (photograph, InMemory("1.png", np.asarray(Image.open(photograph)))):
        with pytest.raises(BadImageError, match=said):
            read_image(source, Frame(32, 32, crop=(100, 0, 40, 20)))


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_what_keeps_its_aspect_stands_in_the_middle(tmp_path: Path, depth: type) -> None:
    grey = np.full((64, 128), np.iinfo(depth).max, depth)
    np.save(tmp_path / "white.npy", grey)
    image = read_image(tmp_path / "white.npy", Frame(64, 64, keep_aspect=True))
    assert (image[16:48] == 255).all()
    assert (image[[*range(16), *range(48, 64)]] == 116).all()


@pytest.mark.parametrize("overlap", [0, 0.125, 0.3])
def test_tiles_cover_the_image_and_stitch_to_it(overlap: float) -> None:
    tiles = Tiles(2, 3, overlap)
    width, height = tiles.extent(40)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    # Linear, which means and interpolation leave as it is.
    image = (rows + 3 * columns)[None, ..., None]
    cut = tiles.cut(image, 40)
    assert cut.shape == (6, 40, 40, 1)
    np.testing.assert_array_equal(cut[0], image[0, :40, :40])
    np.testing.assert_array_equal(cut[5], image[0, -40:, -40:])
    back = np.asarray(tiles.stitched(jnp.asarray(cut[..., 0])))
    assert back.shape == (1, height, width)
    inner = np.s_[0, 1:-1, 1:-1]
    np.testing.assert_allclose(back[inner], image[..., 0][inner], atol=1e-3 if overlap < 0.2 else 2)


def test_the_worst_tile_counts() -> None:
    scores = jnp.array([0.0, 3, 1, 2, 0, 1, 1, 5])
    heads = jnp.arange(16.0).reshape(8, 2)
    worst, its = Tiles(2, 2).worst(scores, heads)
    np.testing.assert_array_equal(worst, [3, 5])
    np.testing.assert_array_equal(its, [[2, 3], [14, 15]])


def test_the_tile_with_the_defect_is_found() -> None:
    rng = np.random.default_rng(0)
    anomalies = rng.normal(size=(12, 8))
    anomalies[[2, 4, 11]] += 6
    normals, marked = rng.normal(size=(200, 8)), np.zeros((3, 4), int)
    found = tiles_of_defects(Tiles(2, 2), anomalies, normals, marked)
    np.testing.assert_array_equal(found, [2, 4, 11])
    # The mask counts; the distance does among tiles that have as much of it.
    marked[0, 1], marked[1] = 5, [0, 7, 7, 3]
    anomalies[6] += 3
    found = tiles_of_defects(Tiles(2, 2), anomalies, normals, marked)
    np.testing.assert_array_equal(found, [1, 6, 11])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"keep_aspect": True},
        {"crop": (0, 0, 100, 200)},
        {"crop": (190, 90, 110, 40), "keep_aspect": True},
    ],
)
def test_marked_pixels_are_counted_in_the_tiles_that_show_them(settings: dict) -> None:
    marks = np.zeros((200, 300), bool)
    marks[100:120, 190:220], marks[5:9, 120:124] = True, True
    features = FeatureConfig(image_size=192, tiles=(2, 3), tile_overlap=0.25, **settings)

    def shown(pixels: np.ndarray) -> np.ndarray:
        image = as_image(pixels.astype(np.uint8), frame_of(features))
        return tiles_of(features).cut(image[None], 192).astype(float).sum((1, 2, 3))

    # The tiles of a photograph that is white where it is marked, without their grey margins.
    light = shown(255 * marks) - shown(0 * marks)
    counted = marked_in(features, marks)
    scale = light.sum() / max(counted.sum(), 1)
    np.testing.assert_allclose(counted * scale, light, rtol=0, atol=0.03 * light.sum() + 1e-9)
    assert (counted.sum() == 0) == ("crop" in settings and "keep_aspect" not in settings)


def test_a_heat_map_is_on_the_part_that_was_seen() -> None:
    heat = np.array([[0.0, 1], [0, 1]], np.float32)
    whole = upsampled(heat, 64, 128, Frame(32, 32, crop=(40, 8, 32, 16)).seen(128, 64))
    assert whole[8:24, 64:72].min() > 0.5
    assert whole[:8].max() == whole[:, :40].max() == whole[:, 72:].max() == 0
    margins = np.zeros((4, 4), np.float32)
    margins[0] = 9  # above the photograph
    kept = upsampled(margins, 64, 128, Frame(32, 32, keep_aspect=True).seen(128, 64))
    assert kept.max() < 9 / 2
    cropped = Frame(32, 32, crop=(40, 8, 32, 64), keep_aspect=True).seen(128, 128)
    colder = np.full((4, 4), 5, np.float32)
    colder[:, 0] = 1  # beside the photograph
    shown = upsampled(colder, 128, 128, cropped)
    assert shown[0, 0] == shown[8:72, 40:72].min() > 1


def test_photographs_that_shrink_too_much_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("L", (4000, 3000)).save(tmp_path / "large.png")
    warn_of_shrinking([tmp_path / "large.png"], FeatureConfig())
    assert "4000 x 3000 pixels become 16 times smaller" in caplog.text
    assert "`tiles`, here 4 5" in caplog.text
    caplog.clear()
    warn_of_shrinking([tmp_path / "large.png"], FeatureConfig(tiles=(4, 5)))
    warn_of_shrinking([tmp_path / "large.png"], FeatureConfig(crop=(0, 0, 512, 512)))
    # Whole pixels of two tiles that overlap by a tenth: a little more than four times.
    Image.new("L", (1945, 1945)).save(tmp_path / "square.png")
    warn_of_shrinking([tmp_path / "square.png"], FeatureConfig(tiles=(2, 2), tile_overlap=0.1))
    assert not caplog.text


def test_a_photograph_scores_as_its_worst_tile(finished: FinishedRun, tmp_path: Path) -> None:
    plain = load(finished.workdir)
    features = dataclasses.replace(plain.config.features, tiles=(1, 2))
    scorer = dataclasses.replace(plain.scorer, tiles=tiles_of(features))
    config = dataclasses.replace(plain.config, features=features)
    tiled = dataclasses.replace(plain, config=config, scorer=scorer)
    frame, side = frame_of(features), features.image_size
    assert (frame.width, frame.height) == (side + side * 7 // 8, side)
    images = np.random.default_rng(0).integers(0, 255, (2, side, frame.width, 3), np.uint8)
    found = tiled.of_arrays(images)
    halves = plain.of_arrays(np.concatenate([images[:, :, :side], images[:, :, -side:]]))
    np.testing.assert_allclose(found.scores, halves.scores.reshape(2, 2).max(0), rtol=1e-5)
    np.testing.assert_allclose(found.heat[:, :, 0], halves.heat[:2, :, 0], rtol=1e-4)
    exported = export_model(tiled, tmp_path / "model.bin", platforms=["cpu"])
    again = exported.call(images, np.float32("nan"))
    np.testing.assert_allclose(again["score"], found.scores, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fit", "ahl"])
def test_a_small_defect_is_found_by_tiles(method: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def photograph(path: Path, defect: bool) -> None:
        pixels = np.kron(rng.integers(90, 160, (64, 96)), np.ones((12, 12), int))
        if defect:
            y, x = rng.integers(20, [720, 1100])
            pixels[y : y + 12, x : x + 12] = 255
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)

    for folder, count in (("train/good", 20), ("test/good", 12), ("test/hole", 16)):
        for i in range(count):
            photograph(tmp_path / "data" / folder / f"{i}.png", "hole" in folder)
    given = {"shots": 4, "views": 1, "image_size": 192, "tiles": (3, 4), "epochs": 1}
    name = "density" if method == "fit" else "debug"
    config = preset(name, str(tmp_path / "data"), method=method, **given)
    metrics = train(config, tmp_path / "run")
    assert metrics["n_seen"] == 4
    assert metrics["auc_roc"] > (0.95 if method == "fit" else 0.6)


def test_stage_one_takes_no_tiles(weave: Path) -> None:
    with pytest.raises(UserError, match="stage one trains on whole photographs"):
        preset("density", str(weave), tiles=(2, 2), stage_one=True)


def test_the_first_mean_over_views_tells_the_tile_of_a_defect() -> None:
    tiles, rng = tiles_of(FeatureConfig(image_size=192, tiles=(1, 2))), np.random.default_rng(0)
    sides = (6, 3)
    # The second mean, the last two channels, is far out everywhere.
    maps = tuple(rng.normal([0, 0, 90, 90], size=(3, 2 * s, s, 4)) for s in sides)
    for scale in maps:
        scale[:, len(scale[0]) // 2 :, :, :2] += 5
    normals = rng.normal(size=(40, 2 * SCALES))
    found = defect_tiles(tiles, maps, normals, np.zeros((3, 2), int), ())
    for scale, chosen in zip(maps, found, strict=True):
        np.testing.assert_array_equal(chosen, scale[:, len(scale[0]) // 2 :])
