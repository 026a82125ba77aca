"""The layers of the trunks, on NHWC arrays or tokens, and where their numbers come from."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from ahl_jax.backbones.batch_norm import WeightedBatchNorm
from ahl_jax.backbones.convolution import PRECISION, Padding, convolve, convolve_each

Source = tuple[str, str | None]


# ImageNet's channel means and standard deviations, of images in 0..1.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


def imagenet_normalised(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """RGB images in 0..255 as networks of PyTorch take them."""
    return (images / 255.0 - jnp.array(_MEAN)) / jnp.array(_DEVIATION)


def same_padding(size: int, stride: int) -> Padding:
    """TensorFlow's "same" padding (before, after) of a side that is a multiple of the stride."""
    total = max(size - stride, 0)
    return total // 2, total - total // 2


class Tensor(nnx.Module):
    """A parameter that is as the state dict has it.

    Attributes:
        tensor: the parameter.
        source: its name in a torch state dict.
        torch_shape: its shape.
    """

    def __init__(self, shape: tuple[int, ...], source: str) -> None:
        self.tensor = nnx.Param(jnp.zeros(shape))
        self.source = source
        self.torch_shape = shape

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Its shape by its name in a torch state dict."""
        return {self.source: self.torch_shape}

    def __call__(self) -> Array:
        """The array."""
        return self.tensor[...]


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis."""

    def __init__(self, channels: int, source: str, epsilon: float = 1e-6) -> None:
        self.scale = Tensor((channels,), f"{source}.weight")
        self.shift = Tensor((channels,), f"{source}.bias")
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """Normalises every location."""
        variance = x.var(-1, keepdims=True)
        x = jax.nn.standardize(x, variance=variance, epsilon=self.epsilon)
        return x * self.scale() + self.shift()


class Layer(nnx.Module):
    """A kernel and a bias: a convolution and the batch norm behind it, if any, folded into one.

    Attributes:
        kernel: parameter, in the layout the subclass computes with; the last axis is the channels
            that come out.
        bias: parameter [out channels].
        norm: the batch norm itself, in place of the bias; see ``unfold``.
        weights: of the images whose moments ``norm`` takes; None for its running moments.
        source: names of the convolution and of the batch norm in a torch state dict. Where the
            latter is None, the convolution has a bias of its own.
        torch_shape: shape of that convolution's weight, [out, in / groups, height, width].
    """

    # Of the class, as NNX lets no instance put a module where it had None.
    norm: WeightedBatchNorm | None = None
    weights: Float[Array, " b"] | None = None

    def __init__(
        self, kernel: tuple[int, ...], source: Source, torch_shape: tuple[int, ...]
    ) -> None:
        self.kernel = nnx.Param(jnp.zeros(kernel))
        self.bias = nnx.Param(jnp.zeros(torch_shape[0]))
        self.source = source
        self.torch_shape = torch_shape

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name in a torch state dict: the kernel, and the bias or the batch norm's."""
        convolution, norm = self.source
        parts = ("weight", "bias", "running_mean", "running_var") if norm else ("bias",)
        others = {f"{norm or convolution}.{part}": self.torch_shape[:1] for part in parts}
        return {f"{convolution}.weight": self.torch_shape, **others}

    def unfold(self, epsilon: float) -> None:
        """Has a batch norm of its own from now on, as PyTorch trains it."""
        del self.bias
        self.norm = WeightedBatchNorm(self.torch_shape[0], epsilon=epsilon, unbiased=True)

    def finished(self, products: Float[Array, "b h w o"]) -> Float[Array, "b h w o"]:
        """The layer's outputs from its products."""
        if self.norm is None:
            return products + self.bias[...]
        images, *_, channels = products.shape
        return self.norm(products.reshape(images, -1, channels), self.weights)(products)


class Conv(Layer):
    """A full convolution with a square kernel [size, size, in, out]."""

    def __init__(
        self,
        channels: tuple[int, int],
        size: int,
        stride: int,
        padding: Padding,
        source: Source,
    ) -> None:
        inputs, outputs = channels
        super().__init__((size, size, inputs, outputs), source, (outputs, inputs, size, size))
        self.stride, self.padding = stride, padding

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Convolves, in products of the kernel's dtype and sums of float32."""
        kernel = self.kernel[...]
        x = convolve(x.astype(kernel.dtype), kernel, self.stride, self.padding)
        return self.finished(x)


class Pointwise(Layer):
    """A 1x1 convolution as a matrix product; kernel [in, out]."""

    pixel: ClassVar[tuple[int, ...]] = (1, 1)
    """What the weight's shape in torch ends with."""

    def __init__(self, channels: tuple[int, int], source: Source, stride: int = 1) -> None:
        inputs, outputs = channels
        super().__init__((inputs, outputs), source, (outputs, inputs, *self.pixel))
        self.stride = stride

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Takes every stride-th pixel to the output channels; dtypes as for ``Conv``."""
        kernel = self.kernel[...]
        if self.stride > 1:
            x = lax.slice(x, (0,) * 4, x.shape, (1, self.stride, self.stride, 1))
        x = x.astype(kernel.dtype)
        return self.finished(
            jnp.matmul(x, kernel, precision=PRECISION, preferred_element_type=jnp.float32)
        )


class Linear(Pointwise):
    """The same of tokens [batch, tokens, in], as torch's ``Linear`` has it."""

    pixel = ()


class Depthwise(Layer):
    """A convolution of each channel by itself, "same"-padded; kernel [size, size, channels]."""

    kernel_axes: ClassVar[int] = 3
    """Axes of its kernel, which tell it from those of products."""

    def __init__(self, channels: int, size: int, stride: int, source: Source) -> None:
        super().__init__((size, size, channels), source, (channels, 1, size, size))
        self.size, self.stride = size, stride

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Convolves each channel."""
        edges = same_padding(self.size, self.stride)
        bias = self.bias[...] if self.norm is None else None
        found = convolve_each(x, self.kernel[...], bias, self.stride, edges)
        return found if self.norm is None else self.finished(found)
