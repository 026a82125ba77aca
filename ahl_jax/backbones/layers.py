"""The layers of the trunks, on NHWC arrays, each with its inference batch norm folded in."""

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

# Features are computed once and compared with stored ones, so they are worth full float32;
# the default of GPUs and TPUs is less. On a CPU it changes nothing.
_PRECISION = lax.Precision.HIGHEST

Padding = tuple[int, int]


def same_padding(size: int, stride: int) -> Padding:
    """TensorFlow's "same" padding (before, after) of a side that is a multiple of the stride."""
    total = max(size - stride, 0)
    return total // 2, total - total // 2


class Layer(nnx.Module):
    """A kernel and a bias: a convolution and the batch norm behind it, folded into one.

    Attributes:
        kernel: parameter, in the layout the subclass computes with.
        bias: parameter [out channels].
        source: names of the convolution and of the batch norm in a torch state dict.
        torch_shape: shape of that convolution's weight, [out, in / groups, height, width].
    """

    def __init__(
        self, kernel: tuple[int, ...], source: tuple[str, str], torch_shape: tuple[int, ...]
    ) -> None:
        self.kernel = nnx.Param(jnp.zeros(kernel))
        self.bias = nnx.Param(jnp.zeros(torch_shape[0]))
        self.source = source
        self.torch_shape = torch_shape


class Conv(Layer):
    """A full convolution with a square kernel [size, size, in, out]."""

    def __init__(
        self,
        channels: tuple[int, int],
        size: int,
        stride: int,
        padding: Padding,
        source: tuple[str, str],
    ) -> None:
        inputs, outputs = channels
        super().__init__((size, size, inputs, outputs), source, (outputs, inputs, size, size))
        self.stride, self.padding = stride, padding

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Convolves, in products of the kernel's dtype and sums of the bias's; adds the bias."""
        kernel = self.kernel[...]
        x = lax.conv_general_dilated(
            x.astype(kernel.dtype),
            kernel,
            window_strides=(self.stride, self.stride),
            padding=(self.padding, self.padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=_PRECISION,
            preferred_element_type=self.bias[...].dtype,
        )
        return x + self.bias[...]


class Pointwise(Layer):
    """A 1x1 convolution as a matrix product; kernel [in, out]."""

    def __init__(self, channels: tuple[int, int], source: tuple[str, str], stride: int = 1) -> None:
        inputs, outputs = channels
        super().__init__((inputs, outputs), source, (outputs, inputs, 1, 1))
        self.stride = stride

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Takes every stride-th pixel to the output channels; dtypes as for ``Conv``."""
        kernel, bias = self.kernel[...], self.bias[...]
        x = x[:, :: self.stride, :: self.stride].astype(kernel.dtype)
        x = jnp.matmul(x, kernel, precision=_PRECISION, preferred_element_type=bias.dtype)
        return x + bias


class Depthwise(Layer):
    """A convolution of each channel by itself, with "same" padding; kernel [size, size, channels].

    Computed as size * size shifted multiply-adds, which XLA fuses into one loop. Its grouped
    convolution is about forty times slower on a CPU.
    """

    kernel_axes: ClassVar[int] = 3
    """What tells its kernel from those of products."""

    def __init__(self, channels: int, size: int, stride: int, source: tuple[str, str]) -> None:
        super().__init__((size, size, channels), source, (channels, 1, size, size))
        self.size, self.stride = size, stride

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Convolves each channel and adds the bias."""
        _, height, width, _ = x.shape
        edges = same_padding(self.size, self.stride)
        x = jnp.pad(x, ((0, 0), edges, edges, (0, 0)))
        kernel = self.kernel[...]
        total = self.bias[...]
        for row in range(self.size):
            for column in range(self.size):
                window = x[
                    :,
                    row : row + height - self.stride + 1 : self.stride,
                    column : column + width - self.stride + 1 : self.stride,
                ]
                total = total + window * kernel[row, column]
        return total
