import hashlib
import io
import os
import threading
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ahl_jax.common.errors import BadImageError
from ahl_jax.data.batches import iter_batches
from ahl_jax.data.images import (
    as_image,
    image_digest,
    image_mode,
    read_image,
    read_pixels,
    seen_size,
)


def gradient(height=40, width=60):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 5, columns * 4, (rows + columns) * 2], -1).astype(np.uint8)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def encoded(array, form, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name", ["a.png", "b.bmp", "c.tif", "d.TIFF", "e.npy", "f.webp", "g.jp2", "h.J2K"]
)
def test_lossless_formats_give_the_same_pixels(tmp_path, name):
    array = gradient()
    path = tmp_path / name
    if name.endswith("npy"):
        np.save(path, array)
    else:
        save(path, array, **({"lossless": True, "exact": True} if name == "f.webp" else {}))
    image = read_image(path, 32)
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    reference = read_image(save(tmp_path / "reference.png", array), 32)
    np.testing.assert_array_equal(image, reference)


def test_an_image_of_the_right_size_is_not_altered(tmp_path):
    array = gradient(48, 48)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", array), 48), array)


@pytest.mark.parametrize("factor", [1, 10])
def test_jpeg_is_close_at_any_scale(tmp_path, factor):
    array = gradient().repeat(factor, 0).repeat(factor, 1)
    image = read_image(save(tmp_path / "a.JPG", array, quality=95), 32).astype(int)
    reference = read_image(save(tmp_path / "a.png", array), 32).astype(int)
    assert np.abs(image - reference).mean() < 3


def test_shrinking_averages_instead_of_picking(tmp_path):
    checks = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    image = read_image(save(tmp_path / "a.png", checks), 32)
    assert np.abs(image[2:-2, 2:-2].astype(int) - 127).max() <= 3


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(tmp_path, orientation, turns):
    array = gradient(48, 48)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(save(tmp_path / "a.png", array, exif=exif), 48)
    np.testing.assert_array_equal(image, np.rot90(array, turns))


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.float32])
def test_tiffs_are_turned_whatever_is_in_them(tmp_path, dtype, orientation, turns):
    grey = gradient(48, 48)[..., 1] > 90
    exif = Image.Exif()
    exif[0x0112] = orientation
    top = {bool: 1, np.uint16: 65535}.get(dtype, 255)
    path = save(tmp_path / "a.tif", (grey * top).astype(dtype), exif=exif)
    expected = np.rot90(grey * 255, turns)[..., None].repeat(3, -1)
    np.testing.assert_array_equal(read_image(path, 48), expected)
    assert seen_size(path)[0] == (48, 48)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "avif", "npy"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_size_is_the_one_that_is_seen(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, gradient())
    else:
        save(path, gradient(), exif=exif)
    assert seen_size(path)[0] == read_pixels(path).shape[1::-1]


def chunk(kind, content):
    checksum = zlib.crc32(kind + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + kind + content + checksum


LONG = zlib.compress(bytes(3 * 2**20))
TURNED = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x03\0\0\0\0\0\0\0"
NEEDLESS = {
    "no EXIF": chunk(b"eXIf", b"garbage not tiff"),
    "cut EXIF": chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff"),
    "EXIF of letters": chunk(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n9\nzz")
    ),
    "long text": chunk(b"zTXt", b"Comment\0\0" + LONG),
    "long international text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + LONG),
    "long plain text": chunk(b"tEXt", b"Comment\0" + bytes(65 * 2**20)),
    "long profile": chunk(b"iCCP", b"icc\0\0" + LONG),
    "unknown compression": chunk(b"zTXt", b"Comment\0\7text"),
    "damaged text": chunk(b"tEXt", b"Comment\0text")[:-1] + b"!",
    "damaged EXIF": chunk(b"eXIf", b"MM\0*")[:-1] + b"!",
    "short gamma": chunk(b"gAMA", b""),
}


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("name", NEEDLESS)
def test_a_png_is_read_whatever_is_wrong_beside_its_pixels(tmp_path, name, where):
    whole = encoded(gradient(48, 48), "PNG")
    cut = 33 if where == "before" else len(whole) - 12
    path = tmp_path / "a.png"
    path.write_bytes(whole[:cut] + NEEDLESS[name] + whole[cut:])
    np.testing.assert_array_equal(read_image(path, 48), gradient(48, 48))
    assert seen_size(path) == ((48, 48), None)
    assert image_mode(path) == "RGB"


def test_a_png_with_too_long_a_text_is_turned_all_the_same(tmp_path):
    whole = encoded(gradient(48, 48), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(whole[:33] + NEEDLESS["long text"] + chunk(b"eXIf", TURNED) + whole[33:])
    np.testing.assert_array_equal(read_image(path, 48), gradient(48, 48)[::-1, ::-1])


@pytest.mark.parametrize(
    "exif", [b"garbage!!", b"II*\0\x08\0\0\0\xff\xff\x12", b"II*\0\xff\xff\xff\x7f"]
)
def test_a_jpeg_with_a_damaged_exif_is_not_turned(tmp_path, exif):
    plain = read_image(save(tmp_path / "a.jpg", gradient()), 32)
    damaged = save(tmp_path / "b.jpg", gradient(), exif=b"Exif\0\0" + exif)
    np.testing.assert_array_equal(read_image(damaged, 32), plain)


@pytest.mark.parametrize("top", [255, 65535])
def test_32_bit_tiffs_hold_values_of_8_or_of_16_bits(tmp_path, top):
    array = np.linspace(0, top, 64 * 64).reshape(64, 64).astype(np.int32)
    image = read_image(save(tmp_path / "a.tif", array), 64)
    expected = np.rint(array / (top / 255))[..., None].repeat(3, -1)
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(as_image(Image.fromarray(array), 64), expected)


@pytest.mark.parametrize("form", ["float32", "float64", "unit float32", "unit float64"])
@pytest.mark.parametrize("shape", [(90, 70), (90, 70, 1), (90, 70, 3)])
def test_arrays_of_floats_are_read_as_those_of_8_bits(tmp_path, form, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    unit, _, kind = form.rpartition(" ")
    floats = array.astype(kind) / (255 if unit else 1)
    expected = as_image(array, 32)
    np.testing.assert_array_equal(as_image(floats.astype(kind), 32), expected)
    for name, values in (("floats", floats), ("bytes", array)):
        np.save(tmp_path / f"{name}.npy", values)
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.npy", 32), expected)


@pytest.mark.parametrize("suffix", ["png", "tif", "npy"])
def test_16_bit_grey_keeps_its_range(tmp_path, suffix):
    array = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, array)
    else:
        save(path, array)
    image = read_image(path, 64)
    np.testing.assert_array_equal(image, np.rint(array / 257)[..., None].repeat(3, -1))


def test_palette_alpha_grey_and_bits_become_rgb(tmp_path):
    array = gradient(32, 32)
    rgba = np.concatenate([array, np.full((32, 32, 1), 9, np.uint8)], -1)
    np.testing.assert_array_equal(read_image(save(tmp_path / "rgba.png", rgba), 32), array)
    palette = Image.fromarray(array // 128 * 255).quantize(8)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png", 32), array // 128 * 255)
    bits = array[..., 0] > 60
    save(tmp_path / "bits.png", bits)
    np.testing.assert_array_equal(
        read_image(tmp_path / "bits.png", 32), bits[..., None].repeat(3, -1) * 255
    )
    float_tiff = save(tmp_path / "f.tif", array[..., 1].astype(np.float32) / 255)
    np.testing.assert_array_equal(
        read_image(float_tiff, 32), read_image(save(tmp_path / "g.png", array[..., 1]), 32)
    )


@given(
    channels=st.sampled_from([0, 1, 3, 4, 6]),
    kind=st.sampled_from(["uint8", "uint16", "float16", "float32", "float64", "unit"]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_npy_of_every_shape_and_type_reads_alike(tmp_path_factory, channels, kind, seed):
    shape = (32, 32, channels) if channels else (32, 32)
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    array.flat[:2] = 0, 255
    stored = {"unit": lambda a: a / 255, "uint16": lambda a: a.astype(np.uint16) * 257}.get(
        kind, lambda a: a.astype(kind)
    )(array)
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    np.save(path, stored)
    expected = array.reshape(32, 32, -1)[..., :3]
    np.testing.assert_array_equal(read_image(path, 32), np.broadcast_to(expected, (32, 32, 3)))


def npy_bytes(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


class Boom:
    def __reduce__(self):
        return os._exit, (3,)  # loading it would end the test run


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
HUGE = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + (
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (900000, 900000, 3), }".ljust(117) + b"\n"
)  # fmt: skip
BAD = {
    "empty.png": (b"", "empty"),
    "empty.npy": (b"", "empty"),
    "text.png": (b"this is no picture\n", "not a PNG"),
    "text.npy": (b"this is no array\n", ""),
    "cut.png": (encoded(NOISE, "PNG")[:4000], ""),
    "cut.jpg": (encoded(NOISE, "JPEG")[:1500], "truncated"),
    "cut.bmp": (encoded(NOISE, "BMP")[:5000], ""),
    "cut.tif": (encoded(NOISE, "TIFF", compression="tiff_lzw")[:5000], ""),
    "eps.png": (encoded(NOISE, "EPS"), "not a PNG"),
    "cut.webp": (encoded(NOISE, "WEBP")[:1500], ""),
    "cut.avif": (encoded(NOISE, "AVIF")[:1500], ""),
    "cut.gif": (encoded(NOISE, "GIF")[:1500], ""),
    "cut.jp2": (encoded(NOISE, "JPEG2000")[:1500], ""),
    "cut.npy": (npy_bytes(NOISE)[:5000], ""),
    "huge.npy": (HUGE, ""),
    "pickle.npy": (npy_bytes(np.array([[Boom()]]), allow_pickle=True), "objects"),
    "nan.npy": (npy_bytes(np.full((8, 8), np.nan)), "finite"),
    "inf.npy": (npy_bytes(np.array([[0.0, np.inf]] * 5)), "finite"),
    "negative.npy": (npy_bytes(np.full((8, 8), -0.5)), "-0.5"),
    "large.npy": (npy_bytes(np.full((8, 8), 4000.0)), "4000"),
    "int.npy": (npy_bytes(np.zeros((8, 8), np.int64)), "int64"),
    "complex.npy": (npy_bytes(np.zeros((8, 8), complex)), "complex"),
    "pair.npy": (npy_bytes(np.zeros((8, 8, 2), np.uint8)), "shape"),
    "flat.npy": (npy_bytes(np.zeros(64, np.uint8)), "shape"),
    "none.npy": (npy_bytes(np.zeros((0, 8, 3), np.uint8)), ""),
    "first.npy": (npy_bytes(np.zeros((3, 64, 64), np.uint8)), "channels first"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(tmp_path, name):
    content, reason = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadImageError) as caught:
        read_image(path, 32)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_named(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "gone.png", tmp_path / "gone.npy", tmp_path / "folder.png"):
        with pytest.raises(BadImageError, match=path.name):
            read_image(path, 32)
        with pytest.raises(BadImageError, match=path.name):
            image_digest(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_before_decoding(tmp_path):
    for side in (12_000, 20_000):
        path = tmp_path / f"{side}.png"
        Image.new("1", (side, side)).save(path)
        assert path.stat().st_size < 200_000
        start = time.perf_counter()
        with pytest.raises(BadImageError, match="pixels"):
            read_image(path, 32)
        assert time.perf_counter() - start < 0.5


def test_digest_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"abc" * 100_000)
    assert image_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def many(tmp_path):
    paths = []
    for i in range(23):
        paths.append(save(tmp_path / f"{i:02}.png", np.full((20, 30), i * 10, np.uint8)))
    return paths


@given(batch=st.integers(1, 30), bad=st.sets(st.integers(0, 22)))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_batches_keep_order_and_leave_out_what_is_bad(tmp_path_factory, batch, bad):
    folder = tmp_path_factory.mktemp("batch")
    paths = [save(folder / f"{i}.bmp", np.full((8, 8), i * 10, np.uint8)) for i in range(23)]
    for i in bad:
        paths[i].write_bytes(b"BM")
    reported = []
    batches = list(
        iter_batches(
            paths, 16, batch, skip_bad=True, on_bad=lambda *report: reported.append(report)
        )
    )
    good = [i for i in range(23) if i not in bad]
    assert [i for indices, _ in batches for i in indices] == good
    for indices, images in batches:
        assert images.shape == (len(indices), 16, 16, 3)
        np.testing.assert_array_equal(images[:, 3, 3, 1], indices * 10)
    assert all(len(indices) == batch for indices, _ in batches[:-1])
    assert [path for path, _ in reported] == [paths[i] for i in sorted(bad)]
    assert all(path.name in reason for path, reason in reported)


def test_the_first_bad_image_stops_the_reading_and_is_named(many):
    many[11].write_bytes(b"")
    batches = iter_batches(many, 16, 4)
    assert next(batches)[0].tolist() == [0, 1, 2, 3]
    with pytest.raises(BadImageError, match=r"11\.png"):
        list(batches)


def test_reading_runs_ahead_of_the_caller_and_stops_with_it(many, monkeypatch):
    read, lock = [], threading.Lock()

    def spy(path, size):
        with lock:
            read.append(path)
        return read_image(path, size)

    monkeypatch.setattr("ahl_jax.data.batches.read_image", spy)
    batches = iter_batches(many, 16, 2)
    next(batches)
    deadline = time.monotonic() + 5
    while len(read) < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(read) >= 10
    batches.close()


def test_no_images_give_no_batches():
    assert list(iter_batches([], 16, 4)) == []
