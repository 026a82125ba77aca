"""DRAEM: a foreign texture, blended in where smooth random noise is high."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ahl_jax.pseudo.common import jitter, log_uniform, pixel_grid, rotate, sample
from ahl_jax.pseudo.noise import perlin_noise, top_share

AREA = (0.02, 0.25)
"""Share of the image that the mask covers."""

OPACITY = (0.2, 1.0)
"""beta, how much of the blend is texture."""

ZOOM = (0.5, 2.0)
"""Scale of the texture relative to the source image."""


def draem(
    key: PRNGKeyArray, image: Float[Array, "h w 3"], source: Float[Array, "h w 3"]
) -> Float[Array, "h w 3"]:
    """Blends a texture made from ``source`` into ``image`` under a thresholded Perlin mask.

    The threshold is such that the mask covers a random share of the image, so the mask is never
    empty and never everything.

    Args:
        key: Decides mask, texture and opacity.
        image: A normal image, 0 to 255.
        source: Another normal image, 0 to 255.

    Returns:
        (1 - beta) image + beta texture inside the mask, and ``image`` outside.
    """
    noise_key, share_key, texture_key, opacity_key = jax.random.split(key, 4)
    share = jax.random.uniform(share_key, minval=AREA[0], maxval=AREA[1])
    mask = top_share(perlin_noise(noise_key, *image.shape[:2]), share)
    texture = _texture(texture_key, source, image, mask)
    opacity = jax.random.uniform(opacity_key, minval=OPACITY[0], maxval=OPACITY[1])
    blend = (1 - opacity) * image + opacity * texture
    return jnp.where(mask[..., None], jnp.clip(blend, 0.0, 255.0), image)


def _texture(
    key: PRNGKeyArray,
    source: Float[Array, "h w 3"],
    image: Float[Array, "h w 3"],
    mask: Bool[Array, "h w"],
) -> Float[Array, "h w 3"]:
    """The source turned, zoomed and moved, with one change of tone, and recoloured."""
    angle_key, zoom_key, place_key, tone_key, colour_key = jax.random.split(key, 5)
    height, width = source.shape[:2]
    angle = jax.random.uniform(angle_key, minval=-jnp.pi, maxval=jnp.pi)
    place = jax.random.uniform(place_key, (2,)) * jnp.asarray([height, width])
    rows, columns = pixel_grid(height, width)
    rows, columns = rotate(rows - height / 2, columns - width / 2, angle)
    zoom = log_uniform(zoom_key, *ZOOM)
    texture = sample(source, rows / zoom + place[0], columns / zoom + place[1])
    tones = jnp.stack(
        [
            texture,
            255 - texture,
            jnp.where(texture < 128, texture, 255 - texture),  # solarised
            jnp.floor(texture / 64) * 64 + 32,  # posterised
        ]
    )
    tone = tones[jax.random.randint(tone_key, (), 0, len(tones))]
    return jitter(colour_key, tone, image, mask)
