"""The trunk's feature maps of images in memory: both scales, tiles and views, on all cores."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped, UInt8

from ahl_jax.backbones import Trunk, products_in
from ahl_jax.config.settings import SCALES, FeatureConfig, Views, averaged
from ahl_jax.distributed.cores import cores, on_all_cores
from ahl_jax.features.tiles import tiles_of

FeatureMaps = tuple[Float[np.ndarray, "n h w c"], ...]
"""One float32 array per scale, the larger scale first, whatever the trunk's products were in."""

View = tuple[int, bool]

VIEWS: tuple[View, ...] = tuple(
    (quarters, mirrored) for quarters in (0, 2, 1, 3) for mirrored in (False, True)
)
"""Quarter turns of an image, after a reflection or none; ``averaged`` takes the first ones."""

_T = TypeVar("_T")

_Array = TypeVar("_Array", np.ndarray, Array)


def trunk_dtype(precision: str, platform: str) -> np.dtype:
    """The dtype of the trunk's products: that of the features, but on a CPU always float32.

    Most CPUs have no products of bfloat16, and would be slower.
    """
    return jnp.dtype(jnp.float32 if platform == "cpu" else precision)


def map_shapes(trunk: Trunk, config: FeatureConfig) -> list[tuple[int, int, int]]:
    """Height, width and channels of an image's maps, with tile below tile, scale by scale.

    Means over views stand side by side, as channels.
    """
    sides = [config.image_size // 2**scale // trunk.stride for scale in range(SCALES)]
    channels = trunk.channels * len(averaged(config.views))
    return [(tiles_of(config).count * side, side, channels) for side in sides]


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
    return all_maps(trunk, images, config, dtype)[:SCALES]


def all_maps(
    trunk: Trunk, images: UInt8[np.ndarray | Array, "b H W 3"], config: FeatureConfig,
    dtype: np.dtype,
) -> tuple[Float[Array, "batch h w c"], ...]:  # fmt: skip
    """``trunk_maps``, and behind them the finer ones of ``Trunk.apply_with_fine``."""
    if len(images) < config.image_batch:
        images = padded(np.asarray(images), config.image_batch)
    return maps_on_all_cores(trunk, images, config, dtype)


def maps_on_all_cores(
    trunk: Trunk, images: UInt8[np.ndarray | Array, "b H W 3"], config: FeatureConfig,
    dtype: np.dtype,
) -> tuple[Array, ...]:  # fmt: skip
    """``tiled_maps``, shared out among the cores of a CPU.

    Where these are more than the images, each tile and each view of an image counts as one.
    """
    apply, params = trunk.apply_with_fine, trunk.params
    platform, tiles = jax.default_backend(), tiles_of(config)
    counts = averaged(config.views)
    views = VIEWS[: counts[0]]
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
    means = (*[counts] * SCALES, counts[:1])
    return tuple(tiles.together(_means(x, of)) for x, of in zip(split, means, strict=True))


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
    views: Views,
    dtype: np.dtype,
    params: PyTree,
    images: UInt8[Array, "b size size 3"],
    platform: str | None = None,
) -> tuple[Float[Array, "b h w c"], ...]:
    """The maps of images at both scales, then the finer ones of the larger, averaged over views.

    Args:
        apply: ``Trunk.apply_with_fine``.
        views: as for ``averaged``; of the finer maps there is the first mean alone.
        dtype: of the trunk's products.
        params: the trunk's parameters.
        images: RGB.
        platform: as for ``by_platform``.
    """
    params = products_in(dtype, params)

    def maps(images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b h2 w2 c"], ...]:
        counts = averaged(views)
        seen = jnp.stack([_turned(images, view) for view in VIEWS[: counts[0]]])
        found, fine = jax.lax.map(functools.partial(apply, params), seen)
        return _means(found, counts), _means(fine, counts[:1])

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


def _means(found: Sequence[_Array], counts: Sequence[int]) -> _Array:
    """Maps [v, b, h, w, c] of the first v views of b images, turned back; means over so many."""
    xp = np if isinstance(found[0], np.ndarray) else jnp

    def back(maps: _Array, view: View) -> _Array:
        quarters, mirrored = view
        maps = xp.rot90(maps, -quarters, axes=(1, 2))
        return maps[:, :, ::-1] if mirrored else maps

    upright = xp.stack([back(maps, view) for maps, view in zip(found, VIEWS, strict=False)])
    return xp.concatenate([upright[:count].mean(0) for count in counts], -1)
