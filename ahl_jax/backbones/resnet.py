"""ResNets with torchvision's weights; ResNet-18 is the trunk behind AHL's published figures."""

from typing import ClassVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from ahl_jax.backbones.layers import Conv, Pointwise, imagenet_normalised

_WIDTHS = (64, 128, 256, 512)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a skip, projected where the shape changes."""

    expansion: ClassVar[int] = 1

    def __init__(self, channels: tuple[int, int], inner: int, stride: int, name: str) -> None:
        inputs, outputs = channels
        self.first = Conv((inputs, inner), 3, stride, (1, 1), _source(name, 1))
        self.second = Conv((inner, outputs), 3, 1, (1, 1), _source(name, 2))
        self.skip = _skip(channels, stride, name)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Applies the block."""
        skip = x if self.skip is None else self.skip(x)
        return jax.nn.relu(self.second(jax.nn.relu(self.first(x))) + skip)


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 convolutions and a skip; the 3x3 one has the stride, as in torchvision."""

    expansion: ClassVar[int] = 4

    def __init__(self, channels: tuple[int, int], inner: int, stride: int, name: str) -> None:
        inputs, outputs = channels
        self.first = Pointwise((inputs, inner), _source(name, 1))
        self.second = Conv((inner, inner), 3, stride, (1, 1), _source(name, 2))
        self.third = Pointwise((inner, outputs), _source(name, 3))
        self.skip = _skip(channels, stride, name)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Applies the block."""
        skip = x if self.skip is None else self.skip(x)
        y = jax.nn.relu(self.second(jax.nn.relu(self.first(x))))
        return jax.nn.relu(self.third(y) + skip)


class ResNet(nnx.Module):
    """Everything before the global average pool: the levels are ``layer4`` to ``layer1``."""

    channels: ClassVar[tuple[int, ...]]
    stride: ClassVar[int] = 32
    batch_norm_epsilon: ClassVar[float] = 1e-5
    unused: ClassVar[tuple[str, ...]] = ("fc.",)

    block: ClassVar[type[BasicBlock] | type[Bottleneck]]
    repeats: ClassVar[tuple[int, ...]]
    """Blocks of each stage."""

    wide: ClassVar[int] = 1
    """Factor of the channels within a block."""

    address: ClassVar[str | None]

    def __init__(self) -> None:
        self.stem = Conv((3, 64), 7, 2, (3, 3), ("conv1", "bn1"))
        blocks: dict[str, BasicBlock | Bottleneck] = {}
        inputs = 64
        for stage, (width, repeats) in enumerate(zip(_WIDTHS, self.repeats, strict=True), start=1):
            outputs = width * self.block.expansion
            for repeat in range(repeats):
                stride = 2 if stage > 1 and repeat == 0 else 1
                name = f"layer{stage}.{repeat}"
                blocks[name.replace(".", "_")] = self.block(
                    (inputs, outputs), width * self.wide, stride, name
                )
                inputs = outputs
        self.blocks = nnx.Dict(blocks)

    def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b h2 w2 c"], ...]:
        """Maps RGB images in 0..255 to the feature maps of all levels, the deepest first."""
        x = jax.nn.relu(self.stem(imagenet_normalised(images)))
        x = nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        ends = []
        for stage, repeats in enumerate(self.repeats, start=1):
            for repeat in range(repeats):
                x = self.blocks[f"layer{stage}_{repeat}"](x)
            ends.append(x)
        return tuple(ends[::-1])


class ResNet18(ResNet):
    """The trunk of the paper."""

    channels, block, repeats = (512, 256, 128, 64), BasicBlock, (2, 2, 2, 2)
    address = "https://download.pytorch.org/models/resnet18-f37072fd.pth"


class ResNet34(ResNet):
    """Twice as deep."""

    channels, block, repeats = (512, 256, 128, 64), BasicBlock, (3, 4, 6, 3)
    address = "https://download.pytorch.org/models/resnet34-b627a593.pth"


class ResNet50(ResNet):
    """Bottlenecks, and four times the channels."""

    channels, block, repeats = (2048, 1024, 512, 256), Bottleneck, (3, 4, 6, 3)
    address = "https://download.pytorch.org/models/resnet50-0676ba61.pth"


class Wide_ResNet50_2(ResNet):  # noqa: N801 (torchvision's name)
    """ResNet-50 with twice the channels within its blocks."""

    channels, block, repeats, wide = (2048, 1024, 512, 256), Bottleneck, (3, 4, 6, 3), 2
    address = "https://download.pytorch.org/models/wide_resnet50_2-95faca4d.pth"


def _source(block: str, number: int) -> tuple[str, str]:
    return f"{block}.conv{number}", f"{block}.bn{number}"


def _skip(channels: tuple[int, int], stride: int, block: str) -> Pointwise | None:
    inputs, outputs = channels
    if stride == 1 and inputs == outputs:
        return None
    return Pointwise(channels, (f"{block}.downsample.0", f"{block}.downsample.1"), stride)
