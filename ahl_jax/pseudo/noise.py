"""Perlin noise of any direction and scale, and masks of a chosen area from it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ahl_jax.pseudo.common import pixel_grid, rotate

_LATTICE = 64
_MAX_EXPONENT = 5  # 32 cells, and 32 sqrt(2) < 64 along a turned axis: the lattice never repeats


def perlin_noise(key: PRNGKeyArray, height: int, width: int) -> Float[Array, "h w"]:
    """Smooth noise around 0, between -1 and 1.

    Each axis has 1, 2, 4, ... or 32 cells across the image, at random. The grid is turned by a
    random angle; it is the coordinates that turn, so the noise is defined in every corner.
    """
    scale_key, angle_key, origin_key, gradient_key = jax.random.split(key, 4)
    cells = 2.0 ** jax.random.randint(scale_key, (2,), 0, _MAX_EXPONENT + 1)
    rows, columns = pixel_grid(height, width)
    rows, columns = rotate(
        rows / height - 0.5,
        columns / width - 0.5,
        jax.random.uniform(angle_key, minval=-jnp.pi, maxval=jnp.pi),
    )
    origin = jax.random.uniform(origin_key, (2,), maxval=_LATTICE)
    rows, columns = rows * cells[0] + origin[0], columns * cells[1] + origin[1]

    direction = jax.random.uniform(gradient_key, (_LATTICE, _LATTICE), maxval=2 * jnp.pi)
    gradients = jnp.stack([jnp.cos(direction), jnp.sin(direction)], axis=-1)
    row, column = jnp.floor(rows), jnp.floor(columns)
    down, right = rows - row, columns - column

    def corner(i: int, j: int) -> Float[Array, "h w"]:
        at = gradients[(row + i).astype(int) % _LATTICE, (column + j).astype(int) % _LATTICE]
        return at[..., 0] * (down - i) + at[..., 1] * (right - j)

    v, u = _fade(down), _fade(right)
    top = corner(0, 0) * (1 - u) + corner(0, 1) * u
    bottom = corner(1, 0) * (1 - u) + corner(1, 1) * u
    return top * (1 - v) + bottom * v


def top_share(values: Float[Array, "h w"], share: Float[Array, ""]) -> Bool[Array, "h w"]:
    """True where the values are highest, over the given share of the area.

    The highest pixel is always in and the lowest never, unless all values are equal. Bisection
    of the threshold costs a thirtieth of sorting on a CPU.
    """

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        too_many = jnp.mean(values > middle) > share
        return jnp.where(too_many, middle, low), jnp.where(too_many, high, middle)

    low, _ = jax.lax.fori_loop(0, 20, halve, (values.min(), values.max()))
    return values > low


def _fade(t: Float[Array, "h w"]) -> Float[Array, "h w"]:
    """Perlin's blending curve, whose first two derivatives vanish at both ends."""
    return t**3 * (t * (6 * t - 15) + 10)
