"""CutMix: a rectangle of another normal image, put in a place where it does not belong."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ahl_jax.pseudo.common import log_uniform, pixel_grid, two_places

AREA = (0.02, 0.25)
"""Share of the image that the rectangle covers, before its sides are rounded to pixels."""

ASPECT = (1 / 3, 3.0)
"""Height to width of the rectangle, relative to the image's own."""


def cutmix(
    key: PRNGKeyArray, image: Float[Array, "h w 3"], source: Float[Array, "h w 3"]
) -> Float[Array, "h w 3"]:
    """Replaces a random rectangle of ``image`` by one of ``source`` from another place.

    Args:
        key: Decides size, shape and both places.
        image: A normal image, 0 to 255.
        source: Another normal image, 0 to 255.

    Returns:
        The image with the rectangle; pixels outside it are those of ``image``.
    """
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    extent = jnp.asarray(image.shape[:2])
    area = jax.random.uniform(area_key, minval=AREA[0], maxval=AREA[1])
    stretch = jnp.sqrt(log_uniform(aspect_key, *ASPECT))
    shares = jnp.sqrt(area) * jnp.stack([stretch, 1 / stretch])
    sides = jnp.maximum(jnp.round(shares * extent), 1).astype(int)
    room = extent - sides + 1
    target, origin = (jnp.floor(place * room).astype(int) for place in two_places(place_key))
    moved = jnp.roll(source, target - origin, axis=(0, 1))
    rows, columns = pixel_grid(*image.shape[:2])
    inside = (rows >= target[0]) & (rows < target[0] + sides[0])
    inside &= (columns >= target[1]) & (columns < target[1] + sides[1])
    return jnp.where(inside[..., None], moved, image)
