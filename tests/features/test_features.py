import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ahl_jax.backbones import Trunk, load_trunk
from ahl_jax.common.errors import BadImageError, UserError
from ahl_jax.common.files import default_folder
from ahl_jax.config.settings import FeatureConfig, PseudoConfig, Views
from ahl_jax.data.records import InMemory
from ahl_jax.distributed.part import Part
from ahl_jax.features import Store, extract, extract_pseudo
from ahl_jax.features.images import fine_maps, image_key
from ahl_jax.features.maps import trunk_dtype, trunk_maps
from ahl_jax.features.store import entry_key
from ahl_jax.features.tiles import frame_of
from experiments.benchmarks.extract import random_weights

CONFIG = FeatureConfig(image_size=64, image_batch=4)


@dataclasses.dataclass(frozen=True, eq=False)
class MeanTrunk(Trunk):
    """The mean colour of each 32 x 32 block, projected: small, and its values are known.

    The finer map has the mean colour of each 16 x 16 block.
    """

    def apply_with_fine(self, params, images):
        return jnp.einsum("bhwc,cd->bhwd", block_means(images, 32), params), block_means(images, 16)


def block_means(images, side):
    b, h, w, c = images.shape
    return images.reshape(b, h // side, side, w // side, side, c).mean((2, 4))


def make_trunk(digest="0", channels=5):
    params = jax.random.normal(jax.random.key(0), (3, channels))
    return MeanTrunk("mean", (channels,), 32, digest, params)


TRUNK = make_trunk()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


@pytest.fixture
def images(tmp_path):
    """Nine images of random pixels, of the size that they are read at."""
    return make_images(tmp_path / "images", 9)


def make_images(folder: Path, count: int, seed: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{i:03}.png" for i in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    return paths


@pytest.fixture
def passes(monkeypatch):
    """How many images each trunk pass was for; a pass raises once ``limit`` is reached."""

    counter = Passes()
    monkeypatch.setattr("ahl_jax.features.images.trunk_maps", counter)
    monkeypatch.setattr("ahl_jax.features.pseudo.trunk_maps", counter)
    return counter


class Passes:
    def __init__(self):
        self.calls, self.limit = 0, None

    def __call__(self, trunk, images, config, dtype):
        if self.calls == self.limit:
            raise KeyboardInterrupt
        self.calls += 1
        return trunk_maps(trunk, images, config, dtype)


def files(store):
    return sorted(p for p in store.folder.rglob("*") if p.is_file())


def test_maps_are_the_trunks_at_full_and_half_size(images, store):
    (large, small), kept = extract(images, TRUNK, CONFIG, store)
    assert kept == list(range(9))
    assert large.shape == (9, 2, 2, 5)
    assert small.shape == (9, 1, 1, 5)
    assert large.dtype == small.dtype == np.float32
    for path, big, half in zip(images, large, small, strict=True):
        pixels = np.asarray(Image.open(path), np.float64)
        blocks = pixels.reshape(2, 32, 2, 32, 3).mean((1, 3))
        np.testing.assert_allclose(big, blocks @ np.float64(TRUNK.params), rtol=1e-4, atol=1e-2)
        # The mean of the means of 2 x 2 pixels is the mean of all pixels.
        np.testing.assert_allclose(
            half[0, 0], pixels.mean((0, 1)) @ np.float64(TRUNK.params), rtol=1e-4, atol=1e-2
        )


def test_a_second_run_computes_nothing_and_gives_the_same_bits(images, store, passes):
    first, _ = extract(images, TRUNK, CONFIG, store)
    assert passes.calls == 3
    second, _ = extract(images, TRUNK, CONFIG, Store(store.folder))
    assert passes.calls == 3
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()


def test_only_new_images_are_computed(images, store, passes):
    whole, _ = extract(images, TRUNK, CONFIG, Store(store.folder / "other"))
    extract(images[2:4], TRUNK, CONFIG, store)
    passes.calls = 0
    maps, _ = extract(images, TRUNK, CONFIG, store)
    assert passes.calls == 2  # seven of nine images, in batches of four
    for a, b in zip(maps, whole, strict=True):
        np.testing.assert_array_equal(a, b)


def test_equal_files_are_computed_once_and_order_is_kept(images, store, tmp_path, passes):
    copy = tmp_path / "copy.png"
    copy.write_bytes(images[1].read_bytes())
    maps, kept = extract([images[1], images[0], copy, images[1]], TRUNK, CONFIG, store)
    assert kept == [0, 1, 2, 3]
    assert len(files(store)) == 2
    assert passes.calls == 1
    for scale, alone in zip(maps, extract(images[:2], TRUNK, CONFIG, store)[0], strict=True):
        np.testing.assert_array_equal(scale, alone[[1, 0, 1, 1]])


def test_what_decides_the_features_decides_the_entry(images, store):
    extract(images[:1], TRUNK, CONFIG, store)
    extract(images[:1], make_trunk(digest="1"), CONFIG, store)
    extract(images[:1], TRUNK, dataclasses.replace(CONFIG, image_size=128), store)
    assert len(files(store)) == 3
    Image.new("RGB", (64, 64)).save(images[0])
    assert not extract(images[:1], TRUNK, CONFIG, store)[0][0].any()
    extract(images[:1], TRUNK, dataclasses.replace(CONFIG, image_batch=2), store)
    assert len(files(store)) == 4


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "other shapes", "no scale"])
def test_a_damaged_entry_is_rewritten(images, store, damage):
    (whole, _), _ = extract(images[:2], TRUNK, CONFIG, store)
    for path in files(store):
        content = path.read_bytes()
        small = np.zeros((1, 1, 5), np.float32)
        if damage == "other shapes":
            store.write(path.stem, [small, small])
        elif damage == "no scale":
            store.write(path.stem, [small])
        else:
            path.write_bytes(
                {"truncated": content[:-1], "empty": b"", "garbage": b"x" * 99}[damage]
            )
    np.testing.assert_array_equal(extract(images[:2], TRUNK, CONFIG, store)[0][0], whole)
    assert all(store.read(p.stem, [(2, 2, 5), (1, 1, 5)]) for p in files(store))


def test_an_interrupted_run_goes_on_where_it_was(images, store, passes):
    passes.limit = 2
    with pytest.raises(KeyboardInterrupt):
        extract(images, TRUNK, CONFIG, store)
    assert len(files(store)) == 4  # the second batch had not come back yet
    passes.calls, passes.limit = 0, None
    maps, kept = extract(images, TRUNK, CONFIG, store)
    assert passes.calls == 2  # five images are left
    assert kept == list(range(9))
    whole, _ = extract(images, TRUNK, CONFIG, Store(store.folder / "other"))
    for a, b in zip(maps, whole, strict=True):
        np.testing.assert_array_equal(a, b)


KILLED = """
    import sys
    from pathlib import Path
    from tests.features.test_features import CONFIG, TRUNK
    from ahl_jax.features import Store, extract

    print("ready", flush=True)
    extract(sorted(Path(sys.argv[1]).iterdir()), TRUNK, CONFIG, Store(Path(sys.argv[2])))
"""


def test_a_killed_run_leaves_whole_entries(tmp_path, passes):
    images = make_images(tmp_path / "images", 600)
    store = Store(tmp_path / "cache")
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), tmp_path / "images", store.folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert process.stdout.readline() == b"ready\n"
    while not len(files(store)) > 30 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    entries = [p for p in files(store) if p.suffix == ".safetensors"]
    assert 30 <= len(entries) < 600
    assert all(store.read(p.stem, [(2, 2, 5), (1, 1, 5)]) is not None for p in entries)
    _, kept = extract(images, TRUNK, CONFIG, store)
    assert len(kept) == 600
    assert passes.calls == -(-(600 - len(entries)) // CONFIG.image_batch)


@pytest.mark.parametrize("position", [0, 4, 8])
def test_bad_images_stop_the_run_or_are_left_out(images, store, position, caplog):
    whole, _ = extract(images, TRUNK, CONFIG, Store(store.folder / "other"))
    images[position].write_bytes(b"no image")
    with pytest.raises(BadImageError, match=str(images[position])):
        extract(images, TRUNK, CONFIG, store)
    maps, kept = extract(images, TRUNK, CONFIG, store, skip_bad=True)
    assert kept == [i for i in range(9) if i != position]
    assert str(images[position]) in caplog.text
    for a, b in zip(maps, whole, strict=True):
        np.testing.assert_array_equal(a, b[kept])


def test_missing_images_count_as_bad(images, store):
    images[3].unlink()
    with pytest.raises(BadImageError, match=str(images[3])):
        extract(images, TRUNK, CONFIG, store)
    assert extract(images, TRUNK, CONFIG, store, skip_bad=True)[1] == [0, 1, 2, 4, 5, 6, 7, 8]


def test_no_images_give_no_maps(store):
    (large, small), kept = extract([], TRUNK, CONFIG, store)
    assert (large.shape, small.shape, kept) == ((0, 2, 2, 5), (0, 1, 1, 5), [])


def test_progress_is_plain_lines_where_there_is_no_terminal(images, store, capsys):
    extract(images[:5], TRUNK, CONFIG, store, progress=False)
    assert capsys.readouterr().err == ""
    extract(images, TRUNK, CONFIG, store)
    out, err = capsys.readouterr()
    assert out == ""
    assert "4 to compute (5 more are there already)" in err
    assert "4 of 4" in err
    extract(images, TRUNK, CONFIG, store)
    assert capsys.readouterr().err == ""


def test_unwritable_store_is_named(tmp_path, images, store):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"cannot write features to {tmp_path}/file.*AHL_CACHE"):
        Store(tmp_path / "file" / "cache")
    store.folder.rmdir()
    store.folder.touch()
    with pytest.raises(UserError, match=f"cannot write features to {store.folder}"):
        extract(images, TRUNK, CONFIG, store)


def test_full_disk_is_one_sentence_and_leaves_no_part(monkeypatch, images, store):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match="the disk is full"):
        extract(images, TRUNK, CONFIG, store)
    assert files(store) == []


def test_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("AHL_CACHE", str(tmp_path / "a"))
    assert default_folder() == tmp_path / "a"
    monkeypatch.delenv("AHL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert default_folder() == tmp_path / "b" / "ahl_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "ahl_jax"


def test_a_trunks_products_are_in_bfloat16_where_the_device_has_them():
    float32, bfloat16 = np.dtype("float32"), jnp.dtype("bfloat16")
    for platform, dtype in (("cpu", float32), ("gpu", bfloat16), ("tpu", bfloat16)):
        assert trunk_dtype("bfloat16", platform) == dtype
        assert trunk_dtype("float32", platform) == float32
    keys = [image_key("a", TRUNK, CONFIG, dtype) for dtype in (float32, bfloat16)]
    assert keys[0] != keys[1]
    # Of the features that users have already.
    assert keys[0] == entry_key(
        version=1, image="a", trunk="mean", weights="0", image_size=64, scales=2
    )


@pytest.mark.parametrize(
    "name", [pytest.param("efficientnet_lite0", marks=pytest.mark.slow), "resnet18"]
)
def test_features_in_bfloat16_are_near_those_in_float32(name, tmp_path):
    weights = None
    if name == "resnet18":
        random_weights(name, tmp_path / "random.safetensors")
        weights = tmp_path / "random.safetensors"
    trunk = load_trunk(name, weights)
    images = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), np.uint8)
    exact, near = (
        trunk_maps(trunk, images, FeatureConfig(image_batch=3), jnp.dtype(dtype))
        for dtype in ("float32", "bfloat16")
    )
    for scale, rounded in zip(exact, near, strict=True):
        assert rounded.dtype == np.float32
        # Every product's factors are rounded to 8 bits, which is 0.4 percent each time at most,
        # and adds up over the layers.
        rows = [np.reshape(values, (len(images), -1)) for values in (rounded - scale, scale)]
        error, size = (np.linalg.norm(values, axis=1) for values in rows)
        assert (error < 0.06 * size).all()
        # Far more than float32 would leave.
        assert (error > 1e-3 * size).all()


def test_keys_tell_every_part_apart():
    keys = {
        entry_key(image="a", size=1),
        entry_key(image="a", size=2),
        entry_key(image="a", size="1"),
        entry_key(image="b", size=1),
        entry_key(image="a"),
    }
    assert len(keys) == 5
    assert entry_key(image="a", size=1) == entry_key(size=1, image="a")


PSEUDO = PseudoConfig(generators=("cutmix", "cutpaste"), pseudo_per_generator=6)


def pseudo_features(images, store, seed=3, features=CONFIG, pseudo=PSEUDO):
    return extract_pseudo(images, TRUNK, features, pseudo, seed, store, progress=False)


def test_pseudo_features_tell_their_generator_and_source(images, store):
    normal, _ = extract(images, TRUNK, CONFIG, store)
    made = pseudo_features(images, store)
    assert made.generator.tolist() == [0] * 6 + [1] * 6
    assert made.maps[0].shape == (12, 2, 2, 5)
    assert made.maps[1].shape == (12, 1, 1, 5)
    assert set(made.origin) | set(made.source) <= set(range(9))
    assert (made.origin != made.source).all()
    # Each is an altered copy of its source: not equal to it, and nearer to it than to the others.
    distance = np.abs(made.maps[0][:, None] - normal[0][None]).sum((2, 3, 4))
    own = distance[np.arange(12), made.origin]
    assert (own > 0).all()
    assert (own < np.median(distance, axis=1)).mean() > 0.8


def test_pseudo_features_of_arrays_are_those_of_pictures(images, store, tmp_path):
    arrays = []
    for path in images:
        arrays.append(tmp_path / f"{path.stem}.npy")
        np.save(arrays[-1], np.asarray(Image.open(path).convert("RGB")))
    expected, found = pseudo_features(images, store), pseudo_features(arrays, store)
    for a, b in zip(expected.maps, found.maps, strict=True):
        np.testing.assert_array_equal(a, b)


def test_pseudo_features_are_deterministic_in_the_seed(images, store, tmp_path):
    first = pseudo_features(images, store)
    again = pseudo_features(images, Store(tmp_path / "again"))
    other = pseudo_features(images, store, seed=4)
    np.testing.assert_array_equal(first.origin, again.origin)
    for a, b, c in zip(first.maps, again.maps, other.maps, strict=True):
        assert a.tobytes() == b.tobytes()
        assert not np.array_equal(a, c)


def test_pseudo_features_come_from_the_store(images, store, passes):
    pseudo_features(images, store)
    assert passes.calls == 4
    pseudo_features(images, store)
    assert passes.calls == 4


def test_pseudo_anomalies_do_not_depend_on_batches_or_other_generators(images, tmp_path):
    whole = pseudo_features(images, Store(tmp_path / "a"))
    small = pseudo_features(
        images,
        Store(tmp_path / "b"),
        features=dataclasses.replace(CONFIG, image_batch=5),
        pseudo=PseudoConfig(("cutmix",), 6),
    )
    for a, b in zip(whole.maps, small.maps, strict=True):
        # Another batch size is another program, which may round differently.
        np.testing.assert_allclose(a[:6], b, rtol=1e-5, atol=1e-4)
    alone = pseudo_features(
        images, Store(tmp_path / "c"), pseudo=PseudoConfig(("cutpaste", "cutmix"), 4)
    )
    np.testing.assert_array_equal(alone.origin, whole.origin[[6, 7, 8, 9, 0, 1, 2, 3]])
    np.testing.assert_array_equal(alone.maps[0][:4], whole.maps[0][6:10])
    np.testing.assert_array_equal(alone.maps[0][4:], whole.maps[0][:4])


@pytest.mark.parametrize("processes", [2, 5])
def test_parts_of_the_pseudo_anomalies_are_those_of_the_whole(images, store, processes):
    whole = pseudo_features(images, Store(store.folder / "whole"))
    found = [
        extract_pseudo(images, TRUNK, CONFIG, PSEUDO, 3, store, part=Part(p, processes),
                       progress=False)
        for p in range(processes)
    ]  # fmt: skip
    for made in found:
        np.testing.assert_array_equal(made.origin, whole.origin)
        np.testing.assert_array_equal(made.generator, whole.generator)
    lengths = [len(made.maps[0]) for made in found]
    assert max(lengths) <= min(lengths) + 1
    for scale, expected in enumerate(whole.maps):
        np.testing.assert_array_equal(
            np.concatenate([made.maps[scale] for made in found]), expected
        )


def test_an_interrupted_pseudo_run_goes_on_to_the_same_features(images, store, tmp_path, passes):
    whole = pseudo_features(images, Store(tmp_path / "whole"))
    passes.calls, passes.limit = 0, 3
    with pytest.raises(KeyboardInterrupt):
        pseudo_features(images, store)
    for entry in files(store)[::2]:
        entry.unlink()
    passes.limit = None
    resumed = pseudo_features(images, store)
    for a, b in zip(whole.maps, resumed.maps, strict=True):
        assert a.tobytes() == b.tobytes()


def test_one_normal_is_its_own_source(images, store):
    made = pseudo_features(images[:1], store)
    assert made.origin.tolist() == [0] * 12
    assert np.isfinite(made.maps[0]).all()


def test_an_images_bits_do_not_depend_on_its_batch(tmp_path):
    trunk = load_trunk("efficientnet_lite0")
    images = make_images(tmp_path / "images", 6)
    config = FeatureConfig(image_size=64, image_batch=4)
    together, _ = extract(images, trunk, config, Store(tmp_path / "a"))
    backwards, _ = extract(images[::-1], trunk, config, Store(tmp_path / "b"))
    for a, b in zip(together, backwards, strict=True):
        assert a.tobytes() == b[::-1].tobytes()
    for i, path in enumerate(images):
        alone, _ = extract([path], trunk, config, Store(tmp_path / f"c{i}"))
        for a, b in zip(together, alone, strict=True):
            assert a[i].tobytes() == b[0].tobytes()


@pytest.mark.parametrize(
    ("quarters", "mirrored"),
    [
        (1, False),
        (2, True),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in ((0, False), (2, False), (3, False))
        ),
        *(pytest.param(quarters, True, marks=pytest.mark.slow) for quarters in (0, 1, 3)),
    ],
)
def test_with_eight_views_a_turned_image_has_turned_maps(quarters, mirrored):
    def turned(array):
        return np.rot90(np.asarray(array)[:, :, ::-1] if mirrored else array, quarters, (1, 2))

    trunk = load_trunk("efficientnet_lite0")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    config = FeatureConfig(image_size=64, image_batch=2, views=8)
    dtype = jnp.dtype("float32")

    def maps(images):
        pair = trunk_maps(trunk, images, config, dtype)
        return *pair, fine_maps([InMemory("one", x) for x in images], trunk, config)

    other = maps(np.ascontiguousarray(turned(images)))
    for scale, found in zip(maps(images), other, strict=True):
        np.testing.assert_allclose(found, turned(scale), atol=1e-3 * np.abs(scale).max())


@pytest.mark.parametrize("cores", [2, 3, 16])
@pytest.mark.parametrize(("views", "tiles"), [(1, (1, 2)), (4, (1, 1)), ("2+8", (2, 1))])
def test_views_and_tiles_on_cores_of_their_own_give_the_same(cores, views, tiles, monkeypatch):
    config = FeatureConfig(image_size=64, image_batch=1, views=views, tiles=tiles)
    frame = frame_of(config)
    image = np.random.default_rng(0).integers(0, 256, (1, frame.height, frame.width, 3), np.uint8)

    def maps(count):
        monkeypatch.setattr("ahl_jax.features.maps.cores", lambda: count)
        monkeypatch.setattr("ahl_jax.distributed.cores.cores", lambda: count)
        return *trunk_maps(TRUNK, image, config, jnp.dtype("float32")), fine_maps(
            [InMemory("one", image[0])], TRUNK, config
        )

    for together, apart in zip(maps(1), maps(cores), strict=True):
        np.testing.assert_allclose(apart, together, rtol=1e-5, atol=1e-5 * np.abs(together).max())


def test_the_views_are_the_mean_of_maps_turned_back():
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    dtype = jnp.dtype("float32")

    def maps(images, views):
        return trunk_maps(TRUNK, images, FeatureConfig(image_batch=3, views=views), dtype)

    one, mirrored = maps(images, 1), maps(np.ascontiguousarray(images[:, :, ::-1]), 1)
    for two, a, b in zip(maps(images, 2), one, mirrored, strict=True):
        np.testing.assert_allclose(two, (a + np.asarray(b)[:, :, ::-1]) / 2, rtol=1e-5, atol=1e-3)
    eight = maps(images, 8)
    for both, a, b in zip(maps(images, "2+8"), eight, maps(images, 2), strict=True):
        np.testing.assert_allclose(both, np.concatenate([a, b], -1), rtol=1e-5, atol=1e-3)
    views = get_args(Views)
    keys = {image_key("a", TRUNK, FeatureConfig(views=n), dtype) for n in views}
    assert len(keys) == len(views) == 5
