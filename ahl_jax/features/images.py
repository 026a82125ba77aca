"""Feature maps of image files, from the store where it has them."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped, UInt8

from ahl_jax.backbones import Trunk, products_in
from ahl_jax.common import stop
from ahl_jax.common.errors import BadImageError
from ahl_jax.common.progress import Progress
from ahl_jax.config.settings import SCALES, FeatureConfig, Views
from ahl_jax.data.images import image_digest, iter_batches, without_skipping
from ahl_jax.data.records import ImageSource, InMemory
from ahl_jax.detectors.inputs import POOLINGS
from ahl_jax.distributed.cores import cores, on_all_cores
from ahl_jax.features.store import Store, entry_key
from ahl_jax.features.tiles import frame_of, framing, tiles_of

FeatureMaps = tuple[Float[np.ndarray, "n h w c"], ...]
"""One float32 array per scale, the larger scale first, whatever the trunk's products were in."""

_ROWS = 64

View = tuple[int, bool]

VIEWS: tuple[View, ...] = tuple(
    (quarters, mirrored) for quarters in (0, 2, 1, 3) for mirrored in (False, True)
)
"""Quarter turns of an image, after a reflection or none; ``config.views`` takes the first ones."""

# To be raised by whoever changes what a given image and trunk give: the reading and resizing of
# images, the scales, or the pseudo-anomaly generators.
VERSION = 1

_T = TypeVar("_T")

_Array = TypeVar("_Array", np.ndarray, Array)

_log = logging.getLogger(__name__)


def extract(
    paths: Sequence[ImageSource],
    trunk: Trunk,
    config: FeatureConfig,
    store: Store,
    *,
    skip_bad: bool = False,
    progress: bool = True,
    label: str = "images",
    also: Sequence[Views] = (),
) -> tuple[FeatureMaps, list[int]]:
    """The trunk's feature maps of image files.

    An image is read as ``frame_of`` the settings says, and its second scale is the exact mean of
    2 x 2 pixels. The maps of its tiles stand one below the other. Files of equal content are
    computed once.

    Args:
        paths: The image files; the same one may appear more than once.
        trunk: The frozen network.
        config: Its image size and batch are used.
        store: Read first; what it lacks is computed and written to it.
        skip_bad: Leave out images that cannot be read, with a warning.
        progress: Show how far it is, on stderr.
        label: What the progress calls them.
        also: Smaller numbers of views. Of images whose maps are computed, the store gets those of
            so many views too, which takes no longer.

    Returns:
        The maps of the images that could be read, [n, h, w, c] for each scale, and their indices
        into ``paths``, in order.

    Raises:
        BadImageError: if an image cannot be read and ``skip_bad`` is off; what was computed until
            then stays in the store.
        UserError: if the store cannot be written to.
    """
    dtype = trunk_dtype(config.precision, jax.default_backend())
    fewer = [dataclasses.replace(config, views=views) for views in also]
    keys: list[str | None] = []
    keys_of_fewer: dict[str, list[str]] = {}
    for path in paths:
        stop.check()
        try:
            digest, more = image_digest(path), _reading(path)
            key, *others = (
                image_key(digest, trunk, some, dtype, **more) for some in (config, *fewer)
            )
            keys.append(key)
            keys_of_fewer[key] = others
        except BadImageError as error:
            if not skip_bad:
                raise
            left_out(path, str(error))
            keys.append(None)
    # The first file of each content.
    files = {key: path for key, path in zip(reversed(keys), reversed(paths), strict=True) if key}
    distinct = list(dict.fromkeys(key for key in keys if key))

    def compute(missing: list[str]) -> Iterator[tuple[list[str], tuple[jax.Array, ...]]]:
        batches = iter_batches(
            [files[key] for key in missing],
            frame_of(config),
            config.image_batch,
            skip_bad=skip_bad,
            on_bad=left_out,
        )
        for indices, images in batches:
            batch = [missing[i] for i in indices]
            if not also:
                yield batch, trunk_maps(trunk, images, config, dtype)
                continue
            maps, *of_fewer = _maps_by_views(trunk, images, [config, *fewer], dtype)
            for row, key in enumerate(batch):
                for other, found in zip(keys_of_fewer[key], of_fewer, strict=True):
                    store.write(other, [np.asarray(x[row]) for x in found])
            yield batch, maps

    maps, found = cached(
        distinct, trunk, config, store, compute, f"features of {label}" if progress else None
    )
    rows = {key: row for row, key in enumerate(found)}
    kept = [i for i, key in enumerate(keys) if key in rows]
    order = [rows[key] for key in keys if key in rows]
    if order != list(range(len(found))):
        maps = rows_of(maps, order, store)
    return maps, kept


def trunk_dtype(precision: str, platform: str) -> np.dtype:
    """The dtype of the trunk's products: that of the features, but on a CPU always float32.

    Most CPUs have no products of bfloat16, and would be slower.
    """
    return jnp.dtype(jnp.float32 if platform == "cpu" else precision)


def map_shapes(trunk: Trunk, config: FeatureConfig) -> list[tuple[int, int, int]]:
    """Height, width and channels of an image's maps, with tile below tile, scale by scale."""
    sides = [config.image_size // 2**scale // trunk.stride for scale in range(SCALES)]
    return [(tiles_of(config).count * side, side, trunk.channels) for side in sides]


def rows_of(maps: FeatureMaps, order: Sequence[int], store: Store) -> FeatureMaps:
    """The maps of some images, in the order given."""
    chosen = tuple(store.empty((len(order), *m.shape[1:])) for m in maps)
    for whole, some in zip(maps, chosen, strict=True):
        for start in range(0, len(order), _ROWS):
            some[start : start + _ROWS] = whole[list(order[start : start + _ROWS])]
    return chosen


def image_key(
    digest: str, trunk: Trunk, config: FeatureConfig, dtype: np.dtype, **more: str | int
) -> str:
    """The store's key of an image.

    Args:
        digest: its file's.
        trunk: the frozen network.
        config: all that decides how the image is read is used.
        dtype: that of the trunk's products.
        more: what was done to the image before.
    """
    if dtype != np.float32:
        more["dtype"] = str(dtype)
    return entry_key(
        version=VERSION,
        image=digest,
        trunk=trunk.name,
        weights=trunk.digest,
        image_size=config.image_size,
        scales=SCALES,
        **framing(config),
        **({} if config.views == 1 else {"views": config.views}),
        **more,
    )


def _reading(path: ImageSource) -> dict[str, int]:
    """What tells the features of an image from those that earlier versions have stored.

    They resized arrays in files as floats, of 8 bits too, and read 32-bit TIFFs of those as black.
    """
    changed = isinstance(path, InMemory) or path.name.lower().endswith((".npy", ".tif", ".tiff"))
    return {"reading": 2} if changed else {}


def cached(
    keys: Sequence[str],
    trunk: Trunk,
    config: FeatureConfig,
    store: Store,
    compute: Callable[[list[str]], Iterable[tuple[list[str], tuple[jax.Array, ...]]]],
    label: str | None,
    into: FeatureMaps | None = None,
) -> tuple[FeatureMaps, list[str]]:
    """Maps from the store, where need be after computing and writing them.

    Args:
        keys: Distinct keys.
        trunk: Tells, with ``config``, the shapes of the maps.
        config: See ``trunk``.
        store: The store.
        compute: Called with the missing keys; yields batches of keys and their maps, of which
            rows past the keys are padding. It may leave keys out.
        label: What the entries are, for the progress on stderr; None for no progress.
        into: Arrays to put the maps into, instead of new ones.

    Returns:
        The maps, and the keys of their rows: ``keys`` without those left out.
    """
    shapes = map_shapes(trunk, config)
    if into is None:
        into = tuple(store.empty((len(keys), *shape)) for shape in shapes)
    maps = into
    row = {key: i for i, key in enumerate(keys)}
    missing = []
    for key in keys:
        entry = store.read(key, shapes)
        if entry is None:
            missing.append(key)
            continue
        for whole, one in zip(maps, entry, strict=True):
            whole[row[key]] = one
    if not missing:
        return maps, list(keys)
    left_out = set(missing)
    with Progress(len(missing), label, cached=len(keys) - len(missing)) as bar:
        for batch, computed in _one_behind(compute(missing)):
            arrays = [np.asarray(c) for c in computed]
            for i, key in enumerate(batch):
                store.write(key, [a[i] for a in arrays])
                for whole, a in zip(maps, arrays, strict=True):
                    whole[row[key]] = a[i]
            left_out.difference_update(batch)
            bar.update(len(batch))
    found = [key for key in keys if key not in left_out]
    if left_out:
        maps = rows_of(maps, [row[key] for key in found], store)
    return maps, found


def trunk_maps(
    trunk: Trunk,
    images: UInt8[np.ndarray | Array, "b H W 3"],
    config: FeatureConfig,
    dtype: np.dtype,
) -> tuple[Float[Array, "batch h w c"], ...]:
    """The maps of up to ``config.image_batch`` images; rows past theirs are padding.

    Every call has the same shapes, so there is one compilation, and an image's maps do not depend
    on how many others came with it. ``dtype`` is that of the trunk's products.
    """
    return _all_maps(trunk, images, config, dtype)[:SCALES]


def fine_maps(
    paths: Sequence[ImageSource], trunk: Trunk, config: FeatureConfig, *, progress: bool = True
) -> Float[np.ndarray, "n h w c"]:
    """The finer maps of ``Trunk.apply_with_fine``, which the store does not keep.

    Args:
        paths: the image files, at least one.
        trunk: the frozen network.
        config: its image size, batch, views and precision are used.
        progress: show how far it is, on stderr.

    Raises:
        BadImageError: if an image cannot be read.
    """
    dtype = trunk_dtype(config.precision, jax.default_backend())
    found = []
    label = "fine features of some training normals" if progress else None
    with Progress(len(paths), label) as bar:
        for _, images in iter_batches(paths, frame_of(config), config.image_batch):
            fine = _all_maps(trunk, images, config, dtype)[SCALES]
            found.append(np.asarray(fine)[: len(images)])
            bar.update(len(images))
    return np.concatenate(found)


def _maps_by_views(
    trunk: Trunk,
    images: UInt8[np.ndarray, "b H W 3"],
    configs: Sequence[FeatureConfig],
    dtype: np.dtype,
) -> list[tuple[Array, ...]]:
    """``trunk_maps`` by settings that differ in their views alone; each view is computed once."""
    first, platform = configs[0], jax.default_backend()
    tiles, counts = tiles_of(first), [int(config.views) for config in configs]
    cut = tiles.cut(np.asarray(_whole(images, first)), first.image_size)
    found = [
        on_all_cores(
            lambda part: two_scales(
                trunk.apply_with_fine, 1, dtype, trunk.params, part, platform
            )[:SCALES],
            _turned(cut, view),
        )
        for view in VIEWS[: max(counts)]
    ]  # fmt: skip
    scales = [[of_view[scale] for of_view in found] for scale in range(SCALES)]
    return [
        tuple(tiles.together(_mean(maps[:count], VIEWS[:count])) for maps in scales)
        for count in counts
    ]


def _whole(
    images: UInt8[np.ndarray | Array, "b H W 3"], config: FeatureConfig
) -> UInt8[np.ndarray | Array, "batch H W 3"]:
    """The images as a batch of the one size that programs are compiled for."""
    batch = config.image_batch
    return images if len(images) == batch else padded(np.asarray(images), batch)


def _all_maps(
    trunk: Trunk, images: UInt8[np.ndarray | Array, "b H W 3"], config: FeatureConfig,
    dtype: np.dtype,
) -> tuple[Float[Array, "batch h w c"], ...]:  # fmt: skip
    return maps_on_all_cores(trunk, _whole(images, config), config, dtype)


def maps_on_all_cores(
    trunk: Trunk, images: UInt8[np.ndarray | Array, "b H W 3"], config: FeatureConfig,
    dtype: np.dtype,
) -> tuple[Array, ...]:  # fmt: skip
    """``tiled_maps``, shared out among the cores of a CPU.

    Where these are more than the images, each tile and each view of an image counts as one.
    """
    apply, params = trunk.apply_with_fine, trunk.params
    platform, tiles = jax.default_backend(), tiles_of(config)
    views = VIEWS[: int(config.views)]
    if platform != "cpu" or tiles.count * len(views) == 1 or len(images) >= cores():
        return on_all_cores(
            lambda part: tiled_maps(apply, config, dtype, params, part, platform), images
        )
    cut = tiles.cut(np.asarray(images), config.image_size)
    found = on_all_cores(
        lambda part: two_scales(apply, 1, dtype, params, part, platform),
        np.concatenate([_turned(cut, view) for view in views]),
    )
    split = (x.reshape(len(views), len(cut), *x.shape[1:]) for x in found)
    return tuple(tiles.together(_mean(x, views)) for x in split)


def tiled_maps(
    apply: Callable[[PyTree, Array], tuple[Array, Array]],
    config: FeatureConfig,
    dtype: np.dtype,
    params: PyTree,
    images: UInt8[np.ndarray | Array, "b H W 3"],
    platform: str | None = None,
) -> tuple[Float[Array, "b h w c"], ...]:
    """``two_scales`` of images as ``frame_of`` the settings gives them, tile below tile."""
    tiles = tiles_of(config)
    cut = tiles.cut(jnp.asarray(images), config.image_size)
    maps = two_scales(apply, config.views, dtype, params, cut, platform)
    return tuple(map(tiles.together, maps))


def padded(array: Shaped[np.ndarray, "b ..."], batch: int) -> Shaped[np.ndarray, "batch ..."]:
    """The array with its last row repeated until it has ``batch`` rows."""
    return np.concatenate([array, np.repeat(array[-1:], batch - len(array), axis=0)])


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 5))
def two_scales(
    apply: Callable[[PyTree, Array], tuple[Array, Array]],
    views: int,
    dtype: np.dtype,
    params: PyTree,
    images: UInt8[Array, "b size size 3"],
    platform: str | None = None,
) -> tuple[Float[Array, "b h w c"], ...]:
    """The maps of images at both scales, then the finer ones of the larger; means over ``views``.

    Args:
        apply: ``Trunk.apply_with_fine``.
        views: how many of ``VIEWS``.
        dtype: of the trunk's products.
        params: the trunk's parameters.
        images: RGB.
        platform: as for ``by_platform``.
    """
    params = products_in(dtype, params)

    def maps(images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b h2 w2 c"], ...]:
        seen = jnp.stack([_turned(images, view) for view in VIEWS[:views]])
        found = jax.lax.map(functools.partial(apply, params), seen)
        return tuple(_mean(each, VIEWS[:views]) for each in found)

    def both(
        large: Float[Array, "b h w 3"], small: Float[Array, "b h/2 w/2 3"]
    ) -> tuple[Float[Array, "b h2 w2 c"], ...]:
        (of_large, fine), (of_small, _) = maps(large), maps(small)
        return of_large, of_small, fine

    large = images.astype(jnp.float32)
    small = half_size(large)
    return by_platform(
        platform,
        large,
        small,
        # One image's activations stay in the cache: 2.5 times as fast as a batch of 16.
        cpu=lambda *pairs: jax.lax.map(
            lambda pair: tuple(x[0] for x in both(*(one[None] for one in pair))), pairs
        ),
        default=both,
    )


def by_platform(
    platform: str | None, *args: Any, cpu: Callable[..., _T], default: Callable[..., _T]
) -> _T:
    """One of two functions of some arrays.

    Args:
        platform: what the program is for; None for any, which takes twice as long to trace.
        args: the arrays.
        cpu: on a CPU.
        default: elsewhere.
    """
    if platform is None:
        return jax.lax.platform_dependent(*args, cpu=cpu, default=default)
    return (cpu if platform == "cpu" else default)(*args)


def half_size(images: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c"]:
    """The means of 2 x 2 pixels; exact for 8-bit values in float32."""
    # By a reshape, with three channels, a TPU takes thirty times as long.
    starts = [(0, row, column, 0) for row in (0, 1) for column in (0, 1)]
    corners = [jax.lax.slice(images, start, images.shape, (1, 2, 2, 1)) for start in starts]
    return functools.reduce(jnp.add, corners) / 4


def _turned(images: _Array, view: View) -> _Array:
    """Images [b, h, w, c] as a view has them."""
    quarters, mirrored = view
    xp = np if isinstance(images, np.ndarray) else jnp
    return xp.rot90(images[:, :, ::-1] if mirrored else images, quarters, axes=(1, 2))


def _mean(found: Sequence[_Array], views: Sequence[View]) -> _Array:
    """Maps [v, b, h, w, c] of the views of b images, turned back; the mean over the views."""
    xp = np if isinstance(found[0], np.ndarray) else jnp

    def back(maps: _Array, view: View) -> _Array:
        quarters, mirrored = view
        maps = xp.rot90(maps, -quarters, axes=(1, 2))
        return maps[:, :, ::-1] if mirrored else maps

    return xp.stack([back(maps, view) for maps, view in zip(found, views, strict=True)]).mean(0)


def _one_behind(items: Iterable[_T]) -> Iterator[_T]:
    """The items, each only once the next is under way: the device works while the host writes."""
    before: list[_T] = []
    for item in items:
        yield from before
        before = [item]
    yield from before


def left_out(path: ImageSource, reason: str) -> None:
    """Warns of an image that cannot be read."""
    _log.warning("left out: %s", without_skipping(reason))


Maps = Sequence[Float[np.ndarray, "n h w c"]]
"""Feature maps of n images, one array per scale."""


def global_averages(maps: Maps) -> Float[np.ndarray, "n d"]:
    """The averages over the locations of each image, scale beside scale, in float32."""
    return pooled_features(maps, 1)


def pooled_features(maps: Maps, poolings: int) -> Float[np.ndarray, "n p*d"]:
    """The first ``POOLINGS`` of each image, one after the other, each scale beside scale."""
    n, width = len(maps[0]), poolings * sum(m.shape[-1] for m in maps)
    found = np.empty((n, width), np.float32)
    # Summed in float64, which of all images at once would take twice their maps' memory, or more.
    for start in range(0, n, _ROWS):
        few = [m[start : start + _ROWS] for m in maps]
        rows = [pool(m, np.float64) for pool in POOLINGS[:poolings] for m in few]
        np.concatenate(rows, axis=1, out=found[start : start + _ROWS], casting="same_kind")
    return found


def averages_of(pooled: Float[np.ndarray, "n p*d"], poolings: int) -> Float[np.ndarray, "n d"]:
    """The ``global_averages`` among pooled features."""
    return pooled[:, : pooled.shape[1] // poolings]
