"""CutPaste: a patch of the image itself, recoloured and turned, pasted elsewhere."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ahl_jax.pseudo.common import jitter, log_uniform, pixel_grid, rotate, sample, two_places

PATCH_AREA = (0.02, 0.15)
"""Share of a square image that a patch covers; of other images, of the largest square in it."""

PATCH_ASPECT = (0.3, 3.3)
SCAR_LENGTH = (0.1, 0.3)
SCAR_WIDTH = (0.015, 0.06)
"""Sides of a scar, as shares of the image's shorter side."""

MAX_ANGLE = jnp.pi / 4


def cutpaste(
    key: PRNGKeyArray, image: Float[Array, "h w 3"], source: Float[Array, "h w 3"]
) -> Float[Array, "h w 3"]:
    """Pastes a recoloured patch of ``image`` elsewhere in it: a broad one, or a thin scar.

    Scars are always turned, broad patches half the time. The patch is cut as a turned rectangle
    (it has no blank corners), and taken from inside the image.

    Args:
        key: Decides shape, places, angle and colours.
        image: A normal image, 0 to 255.
        source: Not used; the patch is the image's own.

    Returns:
        The image with the patch; pixels outside it are those of ``image``.
    """
    del source
    kind_key, shape_key, angle_key, place_key, colour_key = jax.random.split(key, 5)
    scar, turned = jax.random.bernoulli(kind_key, shape=(2,))
    angle = jax.random.uniform(angle_key, minval=-MAX_ANGLE, maxval=MAX_ANGLE)
    angle = jnp.where(scar | turned, angle, 0.0)
    # A rectangle of more than sqrt(2) pixels has a pixel's centre in it at any place and angle.
    half = jnp.maximum(_sides(shape_key, scar) * min(image.shape[:2]), 1.5) / 2

    # Places are such that the patch is inside the image both where it is cut and where it goes.
    last = jnp.asarray(image.shape[:2]) - 1.0
    cos, sin = jnp.cos(angle), jnp.abs(jnp.sin(angle))
    reach = jnp.stack([half[0] * cos + half[1] * sin, half[0] * sin + half[1] * cos])
    to, start = two_places(place_key)
    target = reach + to * jnp.maximum(last - 2 * reach, 0.0)
    origin = half + start * (last - 2 * half)

    rows, columns = pixel_grid(*image.shape[:2])
    rows, columns = rotate(rows - target[0], columns - target[1], angle)
    inside = (jnp.abs(rows) <= half[0]) & (jnp.abs(columns) <= half[1])
    patch = sample(image, rows + origin[0], columns + origin[1])
    return jnp.where(inside[..., None], jitter(colour_key, patch, image, inside), image)


def _sides(key: PRNGKeyArray, scar: Array) -> Float[Array, "2"]:
    """Height and width of the patch, as shares of the image's shorter side."""
    area_key, aspect_key, length_key, width_key, flip_key = jax.random.split(key, 5)
    area = jax.random.uniform(area_key, minval=PATCH_AREA[0], maxval=PATCH_AREA[1])
    stretch = jnp.sqrt(log_uniform(aspect_key, *PATCH_ASPECT))
    broad = jnp.sqrt(area) * jnp.stack([stretch, 1 / stretch])
    length = jax.random.uniform(length_key, minval=SCAR_LENGTH[0], maxval=SCAR_LENGTH[1])
    width = jax.random.uniform(width_key, minval=SCAR_WIDTH[0], maxval=SCAR_WIDTH[1])
    thin = jnp.stack([length, width])
    thin = jnp.where(jax.random.bernoulli(flip_key), thin, thin[::-1])
    return jnp.where(scar, thin, broad)
