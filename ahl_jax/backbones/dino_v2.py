"""DINOv2: vision transformers that have learnt without labels, with or without registers."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ahl_jax.backbones.layers import Conv, LayerNorm, Tensor, imagenet_normalised
from ahl_jax.backbones.vision_transformer import Block, by_official_names, quarters

_PATCH = 14
_GRID = 37
"""Patches along a side of the images of training, each with a position of its own."""

_EPSILON = 1e-6

_ADDRESS = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vit{0}14/dinov2_vit{0}14{1}_pretrain.pth"


_NAMES = (
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.", ""),
    ("encoder.layer.", "blocks."),
    ("attention.output.dense.", "attn.proj."),
    ("attention.attention.", "attn."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("layernorm.", "norm."),
)
"""Of Hugging Face's ``Dinov2Model``, and the official ones."""


class DINOv2(nnx.Module):
    """Patch tokens after the last norm: the levels are those at the ends of the blocks' quarters.

    They are all on one grid.
    """

    width: ClassVar[int]
    """Channels of a token."""

    depth: ClassVar[int]
    """Blocks; a multiple of 4."""

    registers: ClassVar[int] = 0
    """Tokens that stand for no patch, beside the class token."""

    channels: ClassVar[tuple[int, ...]]
    address: ClassVar[str | None]
    stride: ClassVar[int] = _PATCH
    batch_norm_epsilon: ClassVar[float | None] = None
    unused: ClassVar[tuple[str, ...]] = ("mask_token", "head.")

    def __init__(self) -> None:
        width = self.width
        self.patches = Conv((3, width), _PATCH, _PATCH, (0, 0), ("patch_embed.proj", None))
        self.first = Tensor((1, 1, width), "cls_token")
        self.positions = Tensor((1, 1 + _GRID**2, width), "pos_embed")
        if self.registers:
            self.register = Tensor((1, self.registers, width), "register_tokens")
        self.blocks = nnx.Dict(
            {
                f"{index:02}": Block(width, f"blocks.{index}", _EPSILON)
                for index in range(self.depth)
            }
        )
        self.norm = LayerNorm(width, "norm", _EPSILON)

    def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b h2 w2 c"], ...]:
        """Maps RGB images in 0..255 to the feature maps of all levels, the deepest first."""
        x = self.patches(imagenet_normalised(images))
        b, rows, columns, c = x.shape
        extra = self.first() + self.positions()[:, :1]
        if self.registers:
            extra = jnp.concatenate([extra, self.register()], 1)
        x = (x + self._positions(rows, columns)).reshape(b, -1, c)
        x = jnp.concatenate([jnp.broadcast_to(extra, (b, *extra.shape[1:])), x], 1)
        ends = quarters(self.blocks, x)
        return tuple(self.norm(y[:, extra.shape[1] :]).reshape(b, rows, columns, c) for y in ends)

    @staticmethod
    def official_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A state dict of Hugging Face's ``Dinov2Model`` as the official one; any other as it is.

        Raises:
            ValueError: for shapes that do not go together.
        """
        if "embeddings.patch_embeddings.projection.weight" not in tensors:
            return tensors
        return by_official_names(tensors, _NAMES)

    def _positions(self, rows: int, columns: int) -> Float[Array, "1 rows columns c"]:
        """What stands for the place of each patch, resized as in training."""
        table = self.positions()[:, 1:].reshape(1, _GRID, _GRID, -1)
        if rows == columns == _GRID:
            return table
        if self.registers:
            return jax.image.resize(table, (1, rows, columns, table.shape[-1]), "cubic")
        return jnp.einsum(
            "ri,kj,bijc->brkc", _bicubic(rows), _bicubic(columns), table, precision="highest"
        )


def _bicubic(size: int) -> Float[np.ndarray, "size grid"]:
    """The weights of the ``_GRID`` old positions in each of ``size`` new ones.

    As of PyTorch's bicubic interpolation without antialiasing, by the factor (size + 0.1) / 37 that
    the networks without registers were trained with.
    """
    at = (np.arange(size) + 0.5) * _GRID / (size + 0.1) - 0.5
    weights = np.zeros((size, _GRID), np.float32)
    for tap in range(-1, 3):
        old = np.floor(at) + tap
        far = np.abs(at - old)
        near = (1.25 * far - 2.25) * far**2 + 1
        weight = np.where(far <= 1, near, -0.75 * (((far - 5) * far + 8) * far - 4))
        np.add.at(weights, (np.arange(size), np.clip(old, 0, _GRID - 1).astype(int)), weight)
    return weights


class DINOv2_ViTS14(DINOv2):  # noqa: N801 (the official name)
    """The small one."""

    width, depth, channels = 384, 12, (384,) * 4
    address = _ADDRESS.format("s", "")


class DINOv2_ViTS14_reg(DINOv2_ViTS14):  # noqa: N801
    """With registers."""

    registers = 4
    address = _ADDRESS.format("s", "_reg4")


class DINOv2_ViTB14(DINOv2):  # noqa: N801
    """Twice the channels."""

    width, depth, channels = 768, 12, (768,) * 4
    address = _ADDRESS.format("b", "")


class DINOv2_ViTB14_reg(DINOv2_ViTB14):  # noqa: N801
    """With registers."""

    registers = 4
    address = _ADDRESS.format("b", "_reg4")


class DINOv2_ViTL14(DINOv2):  # noqa: N801
    """Twice the blocks, and more channels."""

    width, depth, channels = 1024, 24, (1024,) * 4
    address = _ADDRESS.format("l", "")


class DINOv2_ViTL14_reg(DINOv2_ViTL14):  # noqa: N801
    """With registers."""

    registers = 4
    address = _ADDRESS.format("l", "_reg4")
