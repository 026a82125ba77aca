"""The convolution of the trunks: its own gradients are those of the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax

from ahl_jax.backbones.convolution import convolve, convolve_each


def _plain(x, kernel, stride, padding, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        (padding, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        preferred_element_type=jnp.float32,
    )


def _arrays(height, width, size, dtype=jnp.float32):
    rng = np.random.default_rng(height + 10 * width)
    x = rng.normal(size=(2, height, width, 3))
    kernel = rng.normal(size=(size, size, 3, 4))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


def _close(found, expected, tolerance=1e-5):
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max() + 1e-6


def _with_gradients(function, stride, padding):
    """What a convolution gives, and its gradients by a cotangent of many values."""

    def both(*arrays):
        y, back = jax.vjp(lambda *args: function(*args, stride, padding), *arrays)
        cotangent = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return jax.tree.leaves((y, back(cotangent)))

    return jax.jit(both)


# The stem of a ResNet, its 3x3 layers, EfficientNet-Lite0's stem; then any other.
@given(
    size=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    height=st.integers(4, 9),
    width=st.integers(4, 9),
)
@example(size=7, stride=2, padding=(3, 3), height=12, width=10)
@example(size=3, stride=1, padding=(1, 1), height=6, width=7)
@example(size=3, stride=2, padding=(1, 1), height=8, width=6)
@example(size=3, stride=2, padding=(0, 1), height=8, width=6)
@settings(max_examples=8)
def test_gradients_are_those_of_the_plain_convolution(size, stride, padding, height, width):
    # XLA's own gradient is wrong on a CPU where the padding is as wide as the kernel (jax 0.10.2).
    padding = tuple(min(zeros, size - 1) for zeros in padding)
    arrays = _arrays(height, width, size)
    y, *gradients = _with_gradients(convolve, stride, padding)(*arrays)
    expected, *plain = _with_gradients(_plain, stride, padding)(*arrays)
    np.testing.assert_array_equal(y, expected)
    _close(gradients, plain)


def test_products_of_bfloat16_have_gradients_of_float32_sums() -> None:
    arrays = _arrays(8, 6, 3, jnp.bfloat16)
    found = _with_gradients(convolve, 2, (1, 1))(*arrays)
    assert found[0].dtype == jnp.float32
    # Rounded to bfloat16 once, at the end, as JAX does it: at most one unit in the last place.
    _close(found, _with_gradients(_plain, 2, (1, 1))(*arrays), tolerance=2**-7)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_in_a_scan_of_recomputed_steps(stride: int) -> None:
    x, kernel = _arrays(6, 6, 3)

    def trained(function):
        def loss(kernel):
            return jnp.sum(jnp.tanh(function(x, kernel, stride, (1, 1))))

        def step(kernel, _):
            return kernel - 0.01 * jax.grad(jax.checkpoint(loss))(kernel), None

        return jax.jit(lambda kernel: lax.scan(step, kernel, length=3)[0])(kernel)

    _close([trained(convolve)], [trained(_plain)])
    assert not jnp.allclose(trained(convolve), kernel)


def test_naive_convolutions_are_not_in_the_compiled_gradient() -> None:
    # Those are dilated, or of other dimensions than the forward pass.
    x, kernel = _arrays(8, 8, 3)
    text = _with_gradients(convolve, 2, (1, 1)).lower(x, kernel).as_text("hlo")
    found = [line for line in text.splitlines() if " convolution(" in line]
    assert len(found) == 2  # forward, and the gradient of what is convolved
    assert not any("hs_dilate" in line for line in found)
    assert all("b01f_01io->b01f" in line for line in found)


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 1, (1, 1)), (5, 2, (1, 2))])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_convolution_of_each_channel_is_the_grouped_one(size, stride, padding, with_bias) -> None:
    x, kernel = _arrays(9, 8, size)
    kernel, bias = kernel[..., 0], jnp.arange(3.0) if with_bias else None

    def grouped(x, kernel, bias, stride, padding):
        y = _plain(x, kernel[:, :, None], stride, padding, groups=3)
        return y if bias is None else y + bias

    found, expected = (
        _with_gradients(function, stride, padding)(x, kernel, bias)
        for function in (convolve_each, grouped)
    )
    _close(found, expected)


def test_elsewhere_than_on_a_cpu_a_channel_is_not_convolved_by_shifts() -> None:
    x, kernel = _arrays(8, 8, 3)
    function = jax.jit(lambda *args: convolve_each(*args, None, 1, (1, 1)))
    for platform, there in (("cpu", False), ("cuda", True), ("tpu", True)):
        text = function.trace(x, kernel[..., 0]).lower(lowering_platforms=(platform,)).as_text()
        assert ("feature_group_count = 3" in text) == there
