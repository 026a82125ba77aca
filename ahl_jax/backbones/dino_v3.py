"""DINOv3: vision transformers whose queries and keys are turned by the places of their patches."""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ahl_jax.backbones.layers import Tensor, imagenet_normalised
from ahl_jax.backbones.vision_transformer import HEAD, VisionTransformer, by_official_names

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


class DINOv3(VisionTransformer):
    """Those without positions of their own; the weights are Meta's to give, under a licence."""

    stride = 16
    epsilon = 1e-5
    unused: ClassVar[tuple[str, ...]] = ("mask_token", "rope_embed.")

    def __init__(self) -> None:
        super().__init__()
        self.register = Tensor((1, _REGISTERS, self.width), "storage_tokens")

    def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b h2 w2 c"], ...]:
        """Maps RGB images in 0..255 to the feature maps of all levels, the deepest first."""
        patches = self.patches(imagenet_normalised(images))
        extra = jnp.concatenate([self.first(), self.register()], 1)
        _, rows, columns, _ = patches.shape
        angles = jnp.asarray(_angles(rows, columns, extra.shape[1]))[:, None]
        cosine, sine = jnp.cos(angles), jnp.sin(angles)

        def turn(x: Float[Array, "b n heads c"]) -> Float[Array, "b n heads c"]:
            left, right = jnp.split(x, 2, axis=-1)
            turned = left * cosine - right * sine, right * cosine + left * sine
            return jnp.concatenate(turned, -1)

        return self.levels_of(patches, extra, turn)

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
