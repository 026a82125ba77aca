"""DINOv2: vision transformers that have learnt without labels, with or without registers."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ahl_jax.backbones.layers import Tensor, imagenet_normalised
from ahl_jax.backbones.vision_transformer import VisionTransformer, by_official_names

_GRID = 37
"""Patches along a side of the images of training, each with a position of its own."""

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


class DINOv2(VisionTransformer):
    """Those with a position for each patch."""

    registers: ClassVar[int] = 0
    """Tokens that stand for no patch, beside the class token."""

    stride = 14
    epsilon = 1e-6
    unused: ClassVar[tuple[str, ...]] = ("mask_token", "head.")

    def __init__(self) -> None:
        super().__init__()
        self.positions = Tensor((1, 1 + _GRID**2, self.width), "pos_embed")
        if self.registers:
            self.register = Tensor((1, self.registers, self.width), "register_tokens")

    def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b h2 w2 c"], ...]:
        """Maps RGB images in 0..255 to the feature maps of all levels, the deepest first."""
        patches = self.patches(imagenet_normalised(images))
        extra = self.first() + self.positions()[:, :1]
        if self.registers:
            extra = jnp.concatenate([extra, self.register()], 1)
        return self.levels_of(patches + self._positions(*patches.shape[1:3]), extra)

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
