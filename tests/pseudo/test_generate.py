"""What every generator promises, over many keys at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ahl_jax.common.errors import UserError
from ahl_jax.pseudo import GENERATORS, make_pseudo
from ahl_jax.pseudo.common import MAX_SHIFT, MIN_SHIFT

SIDE, KEYS = 64, 40  # one batch shape, so that each generator compiles once
# Share of pixels that may change: the stated areas, with room for rounding to pixels at this size.
BOUNDS = {"cutmix": (0.018, 0.27), "cutpaste": (0.001, 0.165), "draem": (0.019, 0.251)}

names = pytest.mark.parametrize("name", GENERATORS)


def random_images(seed, count=KEYS, height=SIDE, width=SIDE):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def flat(value, count=KEYS):
    return np.full((count, SIDE, SIDE, 3), value, np.uint8)


def changed(altered, images):
    return (np.asarray(altered) != images).any(-1)


@names
def test_only_a_bounded_part_changes(name):
    images = random_images(0)
    share = changed(make_pseudo(name, jax.random.key(0), images, random_images(1)), images).mean(
        (1, 2)
    )
    low, high = BOUNDS[name]
    assert share.min() >= low * 0.98  # a replaced pixel may by chance have the same value
    assert share.max() <= high
    assert share.std() > 0.005  # sizes vary


@names
def test_every_image_changes_even_on_plain_surfaces(name):
    images = np.concatenate([flat(value, KEYS // 5) for value in (0, 5, 128, 250, 255)])
    sources = flat(90) if name == "cutmix" else images
    altered = make_pseudo(name, jax.random.key(1), images, sources)
    assert changed(altered, images).any((1, 2)).all()


@names
def test_the_key_decides(name):
    images, sources = random_images(2), random_images(3)
    first = np.asarray(make_pseudo(name, jax.random.key(0), images, sources))
    np.testing.assert_array_equal(first, make_pseudo(name, jax.random.key(0), images, sources))
    other = np.asarray(make_pseudo(name, jax.random.key(1), images, sources))
    assert (first != other).any((1, 2, 3)).all()


@names
def test_images_of_a_batch_are_altered_in_different_places(name):
    images = np.broadcast_to(random_images(4, 1), (KEYS, SIDE, SIDE, 3))
    sources = np.broadcast_to(random_images(5, 1), (KEYS, SIDE, SIDE, 3))
    masks = changed(make_pseudo(name, jax.random.key(0), images, sources), images)
    assert len({mask.tobytes() for mask in masks}) == KEYS


@names
@given(seed=st.integers(0, 2**31 - 1), top=st.sampled_from([1.0, 40.0, 255.0]))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_float_contract_of_one_image(name, seed, top):
    image, source = np.random.default_rng(seed).uniform(0, top, (2, SIDE, SIDE, 3))
    image = image.astype(np.float32)
    altered = np.asarray(jitted(name)(jax.random.key(seed), image, source.astype(np.float32)))
    assert altered.shape == image.shape
    assert altered.dtype == np.float32
    assert np.isfinite(altered).all()
    assert altered.min() >= 0
    assert altered.max() <= 255
    same = (altered == image).all(-1)
    assert 0.7 < same.mean() < 1  # bit for bit


COMPILED: dict = {}


def jitted(name):
    return COMPILED.setdefault(name, jax.jit(GENERATORS[name]))


@names
def test_works_on_images_that_are_not_square(name):
    images, sources = random_images(6, 64, 32, 96), random_images(7, 64, 32, 96)
    share = changed(make_pseudo(name, jax.random.key(3), images, sources), images).mean((1, 2))
    assert share.min() > 0
    assert share.max() < 0.35


@names
def test_a_grey_image_stays_grey(name):
    images = np.repeat(random_images(8)[..., :1], 3, axis=-1)
    sources = np.repeat(random_images(9)[..., :1], 3, axis=-1)
    altered = np.asarray(make_pseudo(name, jax.random.key(0), images, sources)).astype(int)
    assert np.abs(altered - altered[..., :1]).max() <= 1  # rounding


def test_cutmix_pastes_a_whole_rectangle_of_the_source_from_another_place():
    # Every source pixel tells its own row and column.
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"), -1)
    source = np.concatenate([grid, np.full((SIDE, SIDE, 1), 200)], -1).astype(np.uint8)
    images, sources = flat(255), np.broadcast_to(source, (KEYS, SIDE, SIDE, 3))
    altered = np.asarray(make_pseudo("cutmix", jax.random.key(0), images, sources)).astype(int)
    for picture in altered:
        rows, columns = np.nonzero(picture[..., 2] == 200)
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        moves = picture[rows, columns, :2] - np.stack([rows, columns], -1)
        assert (moves == moves[0]).all()
        assert (moves[0] != 0).all()


@pytest.mark.parametrize("name", ["cutpaste", "draem"])
def test_turning_leaves_no_corners(name):
    # On white all of a patch or texture is one tone, unless something blank was turned into it.
    white = flat(255)
    altered = np.asarray(make_pseudo(name, jax.random.key(5), white, white))
    for picture in altered:
        assert len(np.unique(picture[changed(picture, white[0])])) == 1
    if name == "cutpaste":
        assert altered.min() >= 255 - MAX_SHIFT
        assert altered.min((1, 2, 3)).max() <= 255 - MIN_SHIFT


def test_cutpaste_patch_is_a_solid_turned_rectangle():
    grey = flat(128)
    masks = changed(make_pseudo("cutpaste", jax.random.key(6), grey, grey), grey)
    tilted = 0
    for mask in masks:
        points = np.argwhere(mask) - np.argwhere(mask).mean(0)
        # In the frame of the rectangle its area is the product of its extents.
        best = min(
            np.ptp(points @ [np.cos(a), np.sin(a)]) * np.ptp(points @ [-np.sin(a), np.cos(a)])
            for a in np.linspace(0, np.pi / 2, 91)
        )
        upright = np.prod(np.ptp(points, axis=0) + 1)
        tilted += len(points) < 0.75 * upright
        assert len(points) >= 0.85 * best
    assert tilted > KEYS // 4  # scars and half of the broad patches


def test_cutpaste_ignores_the_source():
    images = random_images(10)
    first = make_pseudo("cutpaste", jax.random.key(0), images, random_images(11))
    second = make_pseudo("cutpaste", jax.random.key(0), images, random_images(12))
    np.testing.assert_array_equal(first, second)


def test_generators_vmap_and_jit_over_typed_and_raw_keys():
    image = jnp.asarray(random_images(13, 1)[0], jnp.float32)
    for make_key in (jax.random.key, jax.random.PRNGKey):
        keys = jax.random.split(make_key(0), 4)
        out = jax.vmap(GENERATORS["cutmix"], in_axes=(0, None, None))(keys, image, image[::-1])
        assert out.shape == (4, SIDE, SIDE, 3)


def test_wrong_arguments_are_named():
    images = random_images(0, 2)
    with pytest.raises(UserError, match="cutmix, cutpaste, draem"):
        make_pseudo("mixup", jax.random.key(0), images, images)
    with pytest.raises(ValueError, match="sources"):
        make_pseudo("cutmix", jax.random.key(0), images, images[:1])
    with pytest.raises(ValueError, match="32 x 32"):
        make_pseudo("cutmix", jax.random.key(0), images[:, :16], images[:, :16])
