"""ResNet-18 with torchvision's weights, the trunk behind the published figures of AHL."""

from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ahl_jax.backbones.layers import Conv, Pointwise
from ahl_jax.errors import UserError

_STAGES = (64, 128, 256, 512)
# ImageNet's channel means and standard deviations, of images in 0..1.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a skip, projected where the shape changes."""

    def __init__(self, channels: tuple[int, int], stride: int, name: str) -> None:
        inputs, outputs = channels
        self.first = Conv(channels, 3, stride, (1, 1), (f"{name}.conv1", f"{name}.bn1"))
        self.second = Conv((outputs, outputs), 3, 1, (1, 1), (f"{name}.conv2", f"{name}.bn2"))
        self.skip = (
            Pointwise(channels, (f"{name}.downsample.0", f"{name}.downsample.1"), stride)
            if stride > 1 or inputs != outputs
            else None
        )

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Applies the block."""
        skip = x if self.skip is None else self.skip(x)
        return jax.nn.relu(self.second(jax.nn.relu(self.first(x))) + skip)


class ResNet18(nnx.Module):
    """Everything before the global average pool: the output of ``layer4``."""

    channels: ClassVar[int] = 512
    stride: ClassVar[int] = 32
    batch_norm_epsilon: ClassVar[float] = 1e-5
    unused: ClassVar[tuple[str, ...]] = ("fc.",)

    def __init__(self) -> None:
        self.stem = Conv((3, 64), 7, 2, (3, 3), ("conv1", "bn1"))
        blocks: dict[str, BasicBlock] = {}
        inputs = 64
        for stage, outputs in enumerate(_STAGES, start=1):
            for repeat in range(2):
                stride = 2 if stage > 1 and repeat == 0 else 1
                name = f"layer{stage}.{repeat}"
                blocks[name.replace(".", "_")] = BasicBlock((inputs, outputs), stride, name)
                inputs = outputs
        self.blocks = nnx.Dict(blocks)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h/32 w/32 512"]:
        """Maps RGB images in 0..255 to the last feature map."""
        x = (images / 255.0 - jnp.array(_MEAN)) / jnp.array(_DEVIATION)
        x = nnx.max_pool(jax.nn.relu(self.stem(x)), (3, 3), (2, 2), ((1, 1), (1, 1)))
        for name in sorted(self.blocks):
            x = self.blocks[name](x)
        return x

    @staticmethod
    def default_weights() -> Path:
        """There are none.

        Raises:
            UserError: always, naming the file to bring.
        """
        raise UserError(
            "resnet18 needs torchvision's ImageNet weights: download resnet18-f37072fd.pth and "
            "give it with --trunk-weights"
        )
