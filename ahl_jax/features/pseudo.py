"""Feature maps of pseudo-anomalies made from normal images."""

import dataclasses
import functools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, UInt8

from ahl_jax.backbones import Trunk
from ahl_jax.config.settings import FeatureConfig, PseudoConfig
from ahl_jax.data.batches import iter_batches
from ahl_jax.data.frame import Frame
from ahl_jax.data.images import image_digest, read_image
from ahl_jax.data.records import ImageSource
from ahl_jax.distributed.part import WHOLE, Part
from ahl_jax.features.images import cached, image_key, reading
from ahl_jax.features.maps import FeatureMaps, map_shapes, padded, trunk_dtype, trunk_maps
from ahl_jax.features.store import Store
from ahl_jax.features.tiles import frame_of, tiles_of
from ahl_jax.pseudo import make_pseudo


@dataclass(frozen=True, eq=False)
class PseudoFeatures:
    """Pseudo-anomalies, generator after generator."""

    maps: FeatureMaps
    """Those of all, or of a part of them: one float32 array [m, h, w, c] per scale."""

    generator: Int[np.ndarray, " n"]
    """Which made it: an index into the configured generators."""

    origin: Int[np.ndarray, " n"]
    """The normal image it was made from: an index into the tiles of the given normals."""

    source: Int[np.ndarray, " n"]
    """The one that CutMix takes its patch from, likewise; the others do not look at theirs."""


def extract_pseudo(
    normals: Sequence[ImageSource],
    trunk: Trunk,
    features: FeatureConfig,
    pseudo: PseudoConfig,
    seed: int,
    store: Store,
    part: Part = WHOLE,
    *,
    progress: bool = True,
) -> PseudoFeatures:
    """Makes pseudo-anomalies and extracts their feature maps.

    Each is made from a tile of a random normal and another one, which CutMix takes its patch from.
    Photographs that are not cut have one tile, which is all of them. What one
    generator makes does not depend on which others are in use, nor on how the images are batched,
    nor on which of them are made.

    Args:
        normals: Image files of the training normals, all readable.
        trunk: The frozen network.
        features: As for ``extract``.
        pseudo: The generators, and how many images each makes.
        seed: Decides everything random.
        store: Read first; what it lacks is computed and written to it.
        part: The part of them, counted over all generators, whose maps are wanted.
        progress: Show how far it is, on stderr.

    Raises:
        BadImageError: if an image cannot be read.
        UserError: if the store cannot be written to.
    """
    count = pseudo.pseudo_per_generator
    wanted = part.span(len(pseudo.generators) * count)
    tiles = tiles_of(features)
    shapes = map_shapes(trunk, _one_tile(features))
    whole = tuple(store.empty((len(wanted), *shape)) for shape in shapes)
    generator, pairs = origins(pseudo, len(normals) * tiles.count, seed)
    for number, name in enumerate(pseudo.generators):
        first = number * count
        drawn = pairs[first : first + count]
        items = range(max(wanted.start - first, 0), min(wanted.stop - first, count))
        if not items:
            continue
        label = f"{name} pseudo-anomalies" if progress else None
        start = first + items.start - wanted.start
        into = tuple(scale[start : start + len(items)] for scale in whole)
        _extract_one(name, seed, items, drawn, normals, trunk, features, store, label, into)
    return PseudoFeatures(whole, generator, *pairs.T)


def origins(
    pseudo: PseudoConfig, normals: int, seed: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n 2"]]:
    """The ``generator`` of pseudo-anomalies, and pairs of their ``origin`` and ``source``.

    Args:
        pseudo: the generators, and how many images each makes.
        normals: how many tiles all normals have.
        seed: decides everything random.
    """
    count = pseudo.pseudo_per_generator
    pairs = [_draw(normals, count, seed, name) for name in pseudo.generators]
    return np.repeat(np.arange(len(pseudo.generators)), count), np.concatenate(pairs)


def pseudo_images(
    normals: Sequence[ImageSource],
    frame: Frame | int,
    pseudo: PseudoConfig,
    seed: int,
    wanted: Sequence[int],
) -> UInt8[np.ndarray, "n h w 3"]:
    """Some of the pseudo-anomalies as images, as ``extract_pseudo`` makes them.

    Args:
        normals: Image files of the training normals, all readable.
        frame: As for ``read_image``.
        pseudo: The generators, and how many images each makes.
        seed: Decides everything random.
        wanted: Which of them, counted over all generators.

    Raises:
        BadImageError: if an image cannot be read.
    """
    made = []
    for number in wanted:
        generator, item = divmod(number, pseudo.pseudo_per_generator)
        name = pseudo.generators[generator]
        drawn = _draw(len(normals), item + 1, seed, name)[item].tolist()
        image, source = (read_image(normals[i], frame)[None] for i in drawn)
        made.append(_make(name, _key(name, seed), np.array([item]), image, source)[0])
    return np.stack(made)


def _draw(normals: int, count: int, seed: int, name: str) -> Int[np.ndarray, "count 2"]:
    """Pairs of two different normals, or of the same where there is only one."""
    rng = np.random.default_rng((seed, _number(name)))
    # Row by row, so that a larger count goes on where a smaller one ended.
    drawn = rng.integers([normals, max(normals - 1, 1)], size=(count, 2))
    return np.stack([drawn[:, 0], (drawn.sum(1) + 1) % normals], axis=1)


def _key(name: str, seed: int) -> PRNGKeyArray:
    """Decides everything random of what a generator makes."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _number(name))


def _number(name: str) -> int:
    """A generator's number, the same whichever others are in use."""
    return zlib.crc32(name.encode())


def _extract_one(
    name: str,
    seed: int,
    items: range,
    drawn: Int[np.ndarray, "count 2"],
    normals: Sequence[ImageSource],
    trunk: Trunk,
    features: FeatureConfig,
    store: Store,
    label: str | None,
    into: FeatureMaps,
) -> None:
    """The maps of some of one generator's images."""
    batch = features.image_batch
    dtype = trunk_dtype(features.precision, jax.default_backend())
    key = _key(name, seed)
    tiles = tiles_of(features)
    digest = functools.cache(lambda image: image_digest(normals[image]))

    def entry(item: int) -> str:
        (image, tile), (source, source_tile) = (
            divmod(i, tiles.count) for i in drawn[item].tolist()
        )
        more = reading(normals[image]) | reading(normals[source])
        if tiles.count > 1:
            more |= {"tile": tile, "source_tile": source_tile}
        return image_key(
            digest(image), trunk, features, dtype,
            generator=name, seed=seed, item=item, source=digest(source), **more,
        )  # fmt: skip

    keys = [entry(item) for item in items]
    item_of = dict(zip(keys, items, strict=True))

    def compute(missing: list[str]) -> Iterator[tuple[list[str], tuple[jax.Array, ...]]]:
        items = np.array([item_of[entry] for entry in missing])
        # Image, source, image, source: so that both are read ahead by the same threads.
        places = drawn[items].ravel()
        files = [normals[i // tiles.count] for i in places]
        for start, (rows, images) in enumerate(iter_batches(files, frame_of(features), 2 * batch)):
            here = slice(start * batch, start * batch + len(images) // 2)
            cut = tiles.cut(images, features.image_size)
            own = cut[np.arange(len(images)) * tiles.count + places[rows] % tiles.count]
            made = _make(name, key, *(padded(a, batch) for a in (items[here], own[::2], own[1::2])))
            yield missing[here], trunk_maps(trunk, made, _one_tile(features), dtype)

    cached(keys, trunk, _one_tile(features), store, compute, label, into)


def _one_tile(features: FeatureConfig) -> FeatureConfig:
    """The settings for what is a single tile already."""
    return dataclasses.replace(features, tiles=(1, 1))


@functools.partial(jax.jit, static_argnums=0)
def _make(
    name: str,
    key: PRNGKeyArray,
    items: Int[Array, " b"],
    images: UInt8[Array, "b h w 3"],
    sources: UInt8[Array, "b h w 3"],
) -> UInt8[Array, "b h w 3"]:
    """A pseudo-anomaly per image, each with a key of its own that the batch does not decide."""

    def one(item: Array, image: Array, source: Array) -> Array:
        return make_pseudo(name, jax.random.fold_in(key, item), image[None], source[None])[0]

    return jax.vmap(one)(items, images, sources)
