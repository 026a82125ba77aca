"""The generators by name, and a compiled entry point for batches."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from ahl_jax.common.errors import UserError
from ahl_jax.pseudo.cutmix import cutmix
from ahl_jax.pseudo.cutpaste import cutpaste
from ahl_jax.pseudo.draem import draem

Generator = Callable[
    [PRNGKeyArray, Float[Array, "h w 3"], Float[Array, "h w 3"]], Float[Array, "h w 3"]
]
"""``(key, image, source) -> altered image``: both are normal images with values from 0 to 255."""

GENERATORS: dict[str, Generator] = {"cutmix": cutmix, "cutpaste": cutpaste, "draem": draem}


def make_pseudo(
    name: str,
    key: PRNGKeyArray,
    images: UInt8[Array, "b h w 3"],
    sources: UInt8[Array, "b h w 3"],
) -> UInt8[Array, "b h w 3"]:
    """Makes one pseudo-anomaly from each image of a batch, in one compiled program.

    Args:
        name: A key of ``GENERATORS``.
        key: Decides everything random; each image gets a key of its own from it.
        images: Normal images, at least 32 pixels high and wide.
        sources: Other normal images, one for each image, of the same shape.

    Returns:
        The altered images; pixels outside the altered part are equal to those of ``images``.

    Raises:
        UserError: if there is no generator of that name.
        ValueError: if the shapes differ or the images are too small.
    """
    if name not in GENERATORS:
        raise UserError(f"no pseudo-anomaly generator {name!r}; there are: {', '.join(GENERATORS)}")
    if images.shape != sources.shape or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images {images.shape} and sources {sources.shape} must be [b, h, w, 3]")
    if min(images.shape[1:3]) < 32:
        raise ValueError(f"images {images.shape} must be at least 32 x 32 pixels")
    return _batch(name, key, images, sources)


@partial(jax.jit, static_argnums=0)
def _batch(
    name: str,
    key: PRNGKeyArray,
    images: UInt8[Array, "b h w 3"],
    sources: UInt8[Array, "b h w 3"],
) -> UInt8[Array, "b h w 3"]:
    keys = jax.random.split(key, images.shape[0])
    altered = jax.vmap(GENERATORS[name])(
        keys, images.astype(jnp.float32), sources.astype(jnp.float32)
    )
    return jnp.round(altered).astype(jnp.uint8)
