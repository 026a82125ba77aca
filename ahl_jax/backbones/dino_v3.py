"""DINOv3: vision transformers whose queries and keys are turned by the places of their patches."""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ahl_jax.backbones.layers import Conv, LayerNorm, Tensor, imagenet_normalised
from ahl_jax.backbones.vision_transformer import HEAD, Block, by_official_names, quarters

_PATCH = 16

_EPSILON = 1e-5

_REGISTERS = 4
"""Tokens that stand for no patch, beside the class token."""

_LONGEST = 100
"""The longest period of a turn, in halves of an image's side; the shortest is 1."""

_NAMES = (
    ("rope_embeddings.", "rope_embed."),
    ("embeddings.patch_embeddings.", "patch_embed.proj."),
    ("embeddings.register_tokens", "storage_tokens"),
    ("embeddings.", ""),
    ("model.layer.", "blocks."),
    ("layer.", "blocks."),
    ("attention.o_proj.", "attn.proj."),
    ("attention.q_proj.", "attn.query."),
    ("attention.k_proj.", "attn.key."),
    ("attention.v_proj.", "attn.value."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("mlp.up_proj.", "mlp.fc1."),
    ("mlp.down_proj.", "mlp.fc2."),
)
"""Of Hugging Face's ``DINOv3ViTModel``, and the official ones."""


class DINOv3(nnx.Module):
    """Patch tokens after the last norm: the levels are those at the ends of the blocks' quarters.

    They are all on one grid. The weights are Meta's to give, after one has agreed to a licence.
    """

    width: ClassVar[int]
    """Channels of a token."""

    depth: ClassVar[int]
    """Blocks; a multiple of 4."""

    channels: ClassVar[tuple[int, ...]]
    address: ClassVar[str | None] = None
    stride: ClassVar[int] = _PATCH
    batch_norm_epsilon: ClassVar[float | None] = None
    unused: ClassVar[tuple[str, ...]] = ("mask_token", "rope_embed.")

    def __init__(self) -> None:
        width = self.width
        self.patches = Conv((3, width), _PATCH, _PATCH, (0, 0), ("patch_embed.proj", None))
        self.first = Tensor((1, 1, width), "cls_token")
        self.register = Tensor((1, _REGISTERS, width), "storage_tokens")
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
        extra = jnp.concatenate([self.first(), self.register()], 1)
        extra = jnp.broadcast_to(extra, (b, *extra.shape[1:]))
        x = jnp.concatenate([extra, x.reshape(b, -1, c)], 1)
        angles = jnp.asarray(_angles(rows, columns, extra.shape[1]))[:, None]
        cosine, sine = jnp.cos(angles), jnp.sin(angles)

        def turn(x: Float[Array, "b n heads c"]) -> Float[Array, "b n heads c"]:
            left, right = jnp.split(x, 2, axis=-1)
            turned = left * cosine - right * sine, right * cosine + left * sine
            return jnp.concatenate(turned, -1)

        ends = quarters(self.blocks, x, turn)
        return tuple(self.norm(y[:, extra.shape[1] :]).reshape(b, rows, columns, c) for y in ends)

    @staticmethod
    def official_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A state dict of Hugging Face's or Meta's, with a bias of all queries, keys and values.

        Keys have none: theirs is masked or missing.

        Raises:
            ValueError: for shapes that do not go together.
        """
        tensors = dict(tensors)
        if "embeddings.patch_embeddings.weight" in tensors:
            for name in [name for name in tensors if name.endswith("attention.q_proj.bias")]:
                key = name.replace("q_proj", "k_proj")
                tensors.setdefault(key, np.zeros_like(tensors[name]))
            return by_official_names(tensors, _NAMES)
        for name in [name for name in tensors if name.endswith(".qkv.bias_mask")]:
            mask, bias = tensors.pop(name), name.removesuffix("_mask")
            tensors[bias] = np.where(mask == 0, 0, tensors[bias])
        return tensors


def _angles(rows: int, columns: int, before: int) -> Float[np.ndarray, "n c"]:
    """By how much the pairs of channels of each token's head are turned, in radians.

    A quarter of the channels turns by the height of the patch, a quarter by its place along the
    width, from -1 to 1. The tokens before those of patches are not turned.
    """
    places = [2 * (np.arange(side) + 0.5) / side - 1 for side in (rows, columns)]
    grid = np.stack(np.meshgrid(*places, indexing="ij"), -1).reshape(-1, 2, 1)
    periods = _LONGEST ** (np.arange(HEAD // 4) / (HEAD // 4))
    angles = (2 * np.pi * grid / periods).reshape(len(grid), -1)
    return np.concatenate([np.zeros((before, HEAD // 2)), angles]).astype(np.float32)


class DINOv3_ViTS16(DINOv3):  # noqa: N801 (the official name)
    """The small one."""

    width, depth, channels = 384, 12, (384,) * 4


class DINOv3_ViTB16(DINOv3):  # noqa: N801
    """Twice the channels."""

    width, depth, channels = 768, 12, (768,) * 4


class DINOv3_ViTL16(DINOv3):  # noqa: N801
    """Twice the blocks, and more channels."""

    width, depth, channels = 1024, 24, (1024,) * 4
