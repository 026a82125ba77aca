"""Feature maps of image files, from the store where it has them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Float

from ahl_jax.backbones import Trunk
from ahl_jax.common import stop
from ahl_jax.common.errors import BadImageError
from ahl_jax.common.progress import Progress
from ahl_jax.config.settings import SCALES, FeatureConfig
from ahl_jax.data.batches import iter_batches, left_out
from ahl_jax.data.images import image_digest
from ahl_jax.data.records import ImageSource, InMemory
from ahl_jax.features.maps import (
    FeatureMaps,
    all_maps,
    map_shapes,
    trunk_dtype,
    trunk_maps,
)
from ahl_jax.features.store import Store, entry_key
from ahl_jax.features.tiles import frame_of, framing

_ROWS = 64

_T = TypeVar("_T")

# To be raised by whoever changes what a given image and trunk give: the reading and resizing of
# images, the scales, or the pseudo-anomaly generators.
VERSION = 1


def extract(
    paths: Sequence[ImageSource],
    trunk: Trunk,
    config: FeatureConfig,
    store: Store,
    *,
    skip_bad: bool = False,
    progress: bool = True,
    label: str = "images",
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

    Returns:
        The maps of the images that could be read, [n, h, w, c] for each scale, and their indices
        into ``paths``, in order.

    Raises:
        BadImageError: if an image cannot be read and ``skip_bad`` is off; what was computed until
            then stays in the store.
        UserError: if the store cannot be written to.
    """
    dtype = trunk_dtype(config.precision, jax.default_backend())
    keys: list[str | None] = []
    for path in paths:
        stop.check()
        try:
            digest, more = image_digest(path), reading(path)
            keys.append(image_key(digest, trunk, config, dtype, **more))
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
            yield [missing[i] for i in indices], trunk_maps(trunk, images, config, dtype)

    maps, found = cached(
        distinct, trunk, config, store, compute, f"features of {label}" if progress else None
    )
    rows = {key: row for row, key in enumerate(found)}
    kept = [i for i, key in enumerate(keys) if key in rows]
    order = [rows[key] for key in keys if key in rows]
    if order != list(range(len(found))):
        maps = rows_of(maps, order, store)
    return maps, kept


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


def reading(path: ImageSource) -> dict[str, int]:
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


def fine_maps(
    paths: Sequence[ImageSource], trunk: Trunk, config: FeatureConfig, label: str | None = None
) -> Float[np.ndarray, "n h w c"]:
    """The finer maps of ``Trunk.apply_with_fine``, which the store does not keep.

    Args:
        paths: the image files, at least one.
        trunk: the frozen network.
        config: its image size, batch, views and precision are used.
        label: name of what is counted on stderr; nothing is without one.

    Raises:
        BadImageError: if an image cannot be read.
    """
    dtype = trunk_dtype(config.precision, jax.default_backend())
    found = []
    with Progress(len(paths), label) as bar:
        for _, images in iter_batches(paths, frame_of(config), config.image_batch):
            fine = all_maps(trunk, images, config, dtype)[SCALES]
            found.append(np.asarray(fine)[: len(images)])
            bar.update(len(images))
    return np.concatenate(found)


def _one_behind(items: Iterable[_T]) -> Iterator[_T]:
    """The items, each only once the next is under way: the device works while the host writes."""
    before: list[_T] = []
    for item in items:
        yield from before
        before = [item]
    yield from before
