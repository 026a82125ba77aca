"""ConvNeXt with torchvision's weights."""

from typing import ClassVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from ahl_jax.backbones.layers import Conv, Depthwise, LayerNorm, Linear, Tensor, imagenet_normalised


class Block(nnx.Module):
    """A depthwise 7x7 convolution, then a layer of four times the channels; scaled and added."""

    def __init__(self, channels: int, name: str) -> None:
        self.depthwise = Depthwise(channels, 7, 1, (f"{name}.block.0", None))
        self.norm = LayerNorm(channels, f"{name}.block.2")
        self.expand = Linear((channels, 4 * channels), (f"{name}.block.3", None))
        self.reduce = Linear((4 * channels, channels), (f"{name}.block.5", None))
        self.scale = Tensor((channels, 1, 1), f"{name}.layer_scale")

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Applies the block."""
        y = self.expand(self.norm(self.depthwise(x)))
        return x + self.scale().ravel() * self.reduce(jax.nn.gelu(y, approximate=False))


class ConvNeXt_Tiny(nnx.Module):  # noqa: N801 (torchvision's name)
    """Everything before the global average pool: the levels are the outputs of the four stages."""

    repeats: ClassVar[tuple[int, ...]] = (3, 3, 9, 3)
    """Blocks of each stage."""

    channels: ClassVar[tuple[int, ...]] = (768, 384, 192, 96)
    stride: ClassVar[int] = 32
    batch_norm_epsilon: ClassVar[float | None] = None
    unused: ClassVar[tuple[str, ...]] = ("classifier.",)
    address: ClassVar[str | None] = "https://download.pytorch.org/models/convnext_tiny-983f1562.pth"

    def __init__(self) -> None:
        widths = self.channels[::-1]
        self.stem = Conv((3, widths[0]), 4, 4, (0, 0), ("features.0.0", None))
        self.stem_norm = LayerNorm(widths[0], "features.0.1")
        norms: dict[str, LayerNorm] = {}
        halvings: dict[str, Conv] = {}
        blocks: dict[str, Block] = {}
        for stage, (width, repeats) in enumerate(zip(widths, self.repeats, strict=True)):
            if stage:
                name, before = f"features.{2 * stage}", widths[stage - 1]
                norms[str(stage)] = LayerNorm(before, f"{name}.0")
                halvings[str(stage)] = Conv((before, width), 2, 2, (0, 0), (f"{name}.1", None))
            for repeat in range(repeats):
                name = f"features.{2 * stage + 1}.{repeat}"
                blocks[f"{len(blocks):02}"] = Block(width, name)
        self.norms, self.halvings = nnx.Dict(norms), nnx.Dict(halvings)
        self.blocks = nnx.Dict(blocks)

    def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b h2 w2 c"], ...]:
        """Maps RGB images in 0..255 to the feature maps of all levels, the deepest first."""
        x = self.stem_norm(self.stem(imagenet_normalised(images)))
        names, ends = iter(sorted(self.blocks)), []
        for stage, repeats in enumerate(self.repeats):
            if stage:
                x = self.halvings[str(stage)](self.norms[str(stage)](x))
            for _ in range(repeats):
                x = self.blocks[next(names)](x)
            ends.append(x)
        return tuple(ends[::-1])
