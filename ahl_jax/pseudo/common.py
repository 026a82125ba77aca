"""Helpers of the generators: pixel grids, sampling between pixels, places and colours."""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float, PRNGKeyArray

MIN_SHIFT, MAX_SHIFT = 12.0, 48.0
"""How far ``jitter`` moves the brightness of a patch, on the scale from 0 to 255."""

CONTRAST = (0.7, 1.3)
SATURATION = (0.7, 1.3)


def pixel_grid(height: int, width: int) -> tuple[Float[Array, "h w"], Float[Array, "h w"]]:
    """Row and column of every pixel."""
    rows, columns = jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32)
    grid = jnp.meshgrid(rows, columns, indexing="ij")
    return grid[0], grid[1]


def rotate(
    rows: Float[Array, "h w"], columns: Float[Array, "h w"], angle: Float[Array, ""]
) -> tuple[Float[Array, "h w"], Float[Array, "h w"]]:
    """Coordinates turned about the origin by ``angle`` radians."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return rows * cos - columns * sin, rows * sin + columns * cos


def sample(
    image: Float[Array, "h w 3"], rows: Float[Array, "h w"], columns: Float[Array, "h w"]
) -> Float[Array, "h w 3"]:
    """The image at fractional coordinates, bilinear; outside, the image is mirrored."""
    channels = [
        map_coordinates(image[..., c], [rows, columns], order=1, mode="reflect") for c in range(3)
    ]
    return jnp.stack(channels, axis=-1)


def two_places(key: PRNGKeyArray) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
    """Two random places in the unit square, at least a quarter apart along both axes."""
    first_key, offset_key = jax.random.split(key)
    first = jax.random.uniform(first_key, (2,))
    return first, (first + jax.random.uniform(offset_key, (2,), minval=0.25, maxval=0.75)) % 1.0


def log_uniform(key: PRNGKeyArray, low: float, high: float) -> Float[Array, ""]:
    """A positive number whose logarithm is uniform."""
    return jnp.exp(jax.random.uniform(key, minval=jnp.log(low), maxval=jnp.log(high)))


def jitter(
    key: PRNGKeyArray,
    patch: Float[Array, "h w 3"],
    under: Float[Array, "h w 3"],
    mask: Bool[Array, "h w"],
) -> Float[Array, "h w 3"]:
    """The patch with other brightness, contrast and saturation.

    The mean brightness inside ``mask`` moves by ``MIN_SHIFT`` to ``MAX_SHIFT``, and to the other
    side where it would come too close to ``under``, the content that the patch will cover: an
    anomaly must show, on a plain surface too. Grey stays grey, because a tint would give away
    every pseudo-anomaly of a grey data set.
    """
    shift_key, sign_key, contrast_key, saturation_key = jax.random.split(key, 4)
    share = mask[..., None] / (3.0 * jnp.maximum(mask.sum(), 1))
    mean, covered = (patch * share).sum(), (under * share).sum()
    shift = jax.random.uniform(shift_key, minval=MIN_SHIFT, maxval=MAX_SHIFT)
    shift = jnp.where(jax.random.bernoulli(sign_key), shift, -shift)
    # Of the two sides, one is always at least half the shift away, even where values saturate.
    hidden = jnp.abs(jnp.clip(mean + shift, 0.0, 255.0) - covered) < MIN_SHIFT / 2
    shift = jnp.where(hidden, -shift, shift)
    contrast = jax.random.uniform(contrast_key, minval=CONTRAST[0], maxval=CONTRAST[1])
    saturation = jax.random.uniform(saturation_key, minval=SATURATION[0], maxval=SATURATION[1])
    grey = patch.mean(-1, keepdims=True)
    coloured = grey + (patch - grey) * saturation
    return jnp.clip(mean + shift + (coloured - mean) * contrast, 0.0, 255.0)
