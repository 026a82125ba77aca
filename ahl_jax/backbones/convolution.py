"""Convolutions that are quick on a CPU too, and so are their gradients.

XLA's CPU backend has one quick convolution, of NHWC by HWIO. It brings others to that form in a
program's entry alone, not in the body of a ``lax.scan``: there the gradients that JAX makes take a
naive loop. Here they are made of matrix products and of convolutions of that form. A convolution of
each channel by itself always takes a naive loop there, so it is made of shifted products.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Features are computed once and compared with stored ones, so they are worth full float32;
# the default of GPUs and TPUs is less. On a CPU it changes nothing.
PRECISION = lax.Precision.HIGHEST

Padding = tuple[int, int]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    x: Float[Array, "b h w i"], kernel: Float[Array, "k k i o"], stride: int, padding: Padding
) -> Float[Array, "b h2 w2 o"]:
    """A full convolution, alike in height and width; its sums are float32.

    Args:
        x: what is convolved, of the kernel's dtype.
        kernel: as the products take it.
        stride: locations from one window to the next.
        padding: zeros before and after.
    """
    return _plain(x, kernel, stride, padding)


def _plain(x: Array, kernel: Array, stride: int, padding: Padding, groups: int = 1) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=(padding, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=PRECISION,
        preferred_element_type=jnp.float32,
    )


def _forward(x: Array, kernel: Array, stride: int, padding: Padding) -> tuple[Array, tuple]:
    return _plain(x, kernel, stride, padding), (x, kernel)


def _backward(stride: int, padding: Padding, kept: tuple, gradient: Array) -> tuple[Array, Array]:
    def by_products(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        wide = x.astype(jnp.float32), kernel.astype(jnp.float32)
        of_x = _of_input(wide[1], gradient, stride, padding, (x.shape[1], x.shape[2]))
        of_kernel = _of_kernel(wide[0], gradient, stride, padding, len(kernel))
        return of_x.astype(x.dtype), of_kernel.astype(kernel.dtype)

    def by_xla(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        plain = functools.partial(_plain, stride=stride, padding=padding)
        return jax.vjp(plain, x, kernel)[1](gradient)

    return lax.platform_dependent(*kept, gradient, cpu=by_products, default=by_xla)


convolve.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def convolve_each(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k c"],
    bias: Float[Array, " c"] | None,
    stride: int,
    padding: Padding,
) -> Float[Array, "b h2 w2 c"]:
    """A convolution of each channel by itself, alike in height and width.

    XLA fuses the shifted products into one loop on a CPU, where its own convolution of this kind
    takes forty times as long; a TPU's compiler takes nine times as long for them.

    Args:
        x: what is convolved.
        kernel: of the same dtype.
        bias: added to every location.
        stride: locations from one window to the next.
        padding: zeros before and after.
    """
    return lax.platform_dependent(
        x,
        kernel,
        bias,
        cpu=functools.partial(_shifted, stride, padding),
        default=functools.partial(_grouped, stride, padding),
    )


def _shifted(stride: int, padding: Padding, x: Array, kernel: Array, bias: Array | None) -> Array:
    images, height, width, c = x.shape
    rows, columns = height + sum(padding), width + sum(padding)
    x = _fitted(x, padding[0], (rows, columns))
    # The bias comes first, as features on disk were summed up.
    total: Any = 0.0 if bias is None else bias
    for row in range(len(kernel)):
        for column in range(len(kernel)):
            # For a symbolic number of images an index would be a gather.
            ends = (rows - len(kernel) + row + 1, columns - len(kernel) + column + 1)
            window = lax.slice(x, (0, row, column, 0), (images, *ends, c), (1, stride, stride, 1))
            total = total + window * kernel[row, column]
    return total


def _grouped(stride: int, padding: Padding, x: Array, kernel: Array, bias: Array | None) -> Array:
    found = _plain(x, kernel[:, :, None], stride, padding, groups=x.shape[-1])
    return found if bias is None else found + bias


def _forward_each(
    x: Array, kernel: Array, bias: Array | None, stride: int, padding: Padding
) -> tuple[Array, tuple]:
    return convolve_each(x, kernel, bias, stride, padding), (x, kernel, bias)


def _backward_each(
    stride: int, padding: Padding, kept: tuple, gradient: Array
) -> tuple[Array, Array, Array | None]:
    def pulled_back(function: Callable[..., Array], kept: tuple, gradient: Array) -> Any:
        return jax.vjp(functools.partial(function, stride, padding), *kept)[1](gradient)

    by_shifts, by_xla = (functools.partial(pulled_back, each) for each in (_shifted, _grouped))
    return lax.platform_dependent(kept, gradient, cpu=by_shifts, default=by_xla)


convolve_each.defvjp(_forward_each, _backward_each)


# A convolution with a stride is one without, of tiles of stride x stride pixels, which become
# channels. Its kernel is filled up with zeros to whole tiles.


def _of_input(
    kernel: Float[Array, "k k i o"],
    gradient: Float[Array, "b h2 w2 o"],
    stride: int,
    padding: Padding,
    shape: tuple[int, int],
) -> Float[Array, "b h w i"]:
    size, _, inputs, outputs = kernel.shape
    tiles = -(-size // stride)
    more = (0, tiles * stride - size)
    kernel = jnp.pad(kernel, (more, more, (0, 0), (0, 0)))
    kernel = kernel.reshape(tiles, stride, tiles, stride, inputs, outputs)
    kernel = kernel[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
    kernel = kernel.reshape(tiles, tiles, outputs, -1)
    tiled = _plain(gradient, kernel, 1, (tiles - 1, tiles - 1))
    b, rows, columns, _ = tiled.shape
    x = tiled.reshape(b, rows, columns, stride, stride, inputs).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(b, rows * stride, columns * stride, inputs)
    return _fitted(x, -padding[0], shape)


def _of_kernel(
    x: Float[Array, "b h w i"],
    gradient: Float[Array, "b h2 w2 o"],
    stride: int,
    padding: Padding,
    size: int,
) -> Float[Array, "k k i o"]:
    b, height, width, outputs = gradient.shape
    inputs = x.shape[-1]
    tiles = -(-size // stride)
    rows, columns = height + tiles - 1, width + tiles - 1
    x = _fitted(x, padding[0], (rows * stride, columns * stride))
    x = x.reshape(b, rows, stride, columns, stride, inputs).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(b, rows, columns, -1)
    flat = gradient.reshape(-1, outputs)

    def row(first: int) -> Array:
        windows = [x[:, first : first + height, left : left + width] for left in range(tiles)]
        seen = jnp.concatenate(windows, -1).reshape(len(flat), -1)
        return jnp.matmul(seen.T, flat, precision=PRECISION)

    kernel = jnp.stack([row(first) for first in range(tiles)])
    kernel = kernel.reshape(tiles, tiles, stride, stride, inputs, outputs)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5)
    kernel = kernel.reshape(tiles * stride, tiles * stride, inputs, outputs)
    return kernel[:size, :size]


def _fitted(x: Float[Array, "b h w c"], before: int, shape: tuple[int, int]) -> Array:
    """Zeros before height and width, or less of them where negative; then brought to a shape."""
    edges = ((before, side - before - n, 0) for side, n in zip(shape, x.shape[1:3], strict=True))
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
