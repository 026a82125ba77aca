"""Vision transformers: their blocks, and their levels."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ahl_jax.backbones.layers import Conv, LayerNorm, Linear, Tensor

HEAD = 64
"""Channels of an attention head."""

Turn = Callable[[Float[Array, "b n heads c"]], Float[Array, "b n heads c"]]
"""What is done to the queries and keys of all tokens, by the places of these."""


class Attention(nnx.Module):
    """Self-attention of all tokens."""

    def __init__(self, channels: int, name: str) -> None:
        self.mixed = Linear((channels, 3 * channels), (f"{name}.qkv", None))
        self.project = Linear((channels, channels), (f"{name}.proj", None))

    def __call__(self, x: Float[Array, "b n c"], turn: Turn | None = None) -> Float[Array, "b n c"]:
        """Mixes the tokens; dtypes as for ``Linear``."""
        b, n, c = x.shape
        query, key, value = jnp.moveaxis(self.mixed(x).reshape(b, n, 3, -1, HEAD), 2, 0)
        if turn is not None:
            query, key = turn(query), turn(key)
        dtype = self.mixed.kernel[...].dtype
        with jax.default_matmul_precision("highest"):
            seen = jax.nn.dot_product_attention(*(y.astype(dtype) for y in (query, key, value)))
        return self.project(seen.reshape(b, n, c))


class Block(nnx.Module):
    """Attention, then a layer of four times the channels; each is scaled and added."""

    def __init__(self, channels: int, name: str, epsilon: float) -> None:
        self.norm1 = LayerNorm(channels, f"{name}.norm1", epsilon)
        self.attention = Attention(channels, f"{name}.attn")
        self.scale1 = Tensor((channels,), f"{name}.ls1.gamma")
        self.norm2 = LayerNorm(channels, f"{name}.norm2", epsilon)
        self.expand = Linear((channels, 4 * channels), (f"{name}.mlp.fc1", None))
        self.reduce = Linear((4 * channels, channels), (f"{name}.mlp.fc2", None))
        self.scale2 = Tensor((channels,), f"{name}.ls2.gamma")

    def __call__(self, x: Float[Array, "b n c"], turn: Turn | None = None) -> Float[Array, "b n c"]:
        """Applies the block."""
        x = x + self.scale1() * self.attention(self.norm1(x), turn)
        y = jax.nn.gelu(self.expand(self.norm2(x)), approximate=False)
        return x + self.scale2() * self.reduce(y)


class VisionTransformer(nnx.Module):
    """Patch tokens after the last norm: the levels are those at the ends of the blocks' quarters.

    They are all on one grid.
    """

    width: ClassVar[int]
    """Channels of a token."""

    depth: ClassVar[int]
    """Blocks; a multiple of 4."""

    epsilon: ClassVar[float]
    """Of the layer norms."""

    stride: ClassVar[int]
    """The side of a patch."""

    channels: ClassVar[tuple[int, ...]]
    address: ClassVar[str | None] = None
    batch_norm_epsilon: ClassVar[float | None] = None

    def __init__(self) -> None:
        width, side = self.width, self.stride
        self.patches = Conv((3, width), side, side, (0, 0), ("patch_embed.proj", None))
        self.first = Tensor((1, 1, width), "cls_token")
        names = {f"{index:02}": f"blocks.{index}" for index in range(self.depth)}
        self.blocks = nnx.Dict({k: Block(width, name, self.epsilon) for k, name in names.items()})
        self.norm = LayerNorm(width, "norm", self.epsilon)

    def levels_of(
        self,
        patches: Float[Array, "b h w c"],
        extra: Float[Array, "1 k c"],
        turn: Turn | None = None,
    ) -> tuple[Float[Array, "b h w c"], ...]:
        """The feature maps of all levels, the deepest first.

        Args:
            patches: their tokens before the first block.
            extra: tokens that stand for no patch, which come first.
            turn: of the queries and keys.
        """
        b, _, _, c = patches.shape
        first = jnp.broadcast_to(extra, (b, *extra.shape[1:]))
        x = jnp.concatenate([first, patches.reshape(b, -1, c)], 1)
        levels = []
        for index, name in enumerate(sorted(self.blocks), start=1):
            x = self.blocks[name](x, turn)
            if index % (self.depth // 4) == 0:
                levels.append(self.norm(x[:, extra.shape[1] :]).reshape(patches.shape))
        return tuple(levels[::-1])


def by_official_names(
    tensors: dict[str, np.ndarray], names: Sequence[tuple[str, str]]
) -> dict[str, np.ndarray]:
    """A state dict of Hugging Face's as the official one: queries, keys and values are one there.

    Args:
        tensors: the arrays by their names.
        names: parts of these, and what is in their place there; queries are ``attn.query``.

    Raises:
        ValueError: for shapes that do not go together.
    """
    found = {}
    for name, tensor in tensors.items():
        for theirs, official in names:
            name = name.replace(theirs, official)
        found[name] = tensor
    for query in [name for name in found if ".attn.query." in name]:
        parts = [query.replace("query", part) for part in ("query", "key", "value")]
        if all(part in found for part in parts):
            found[query.replace("query", "qkv")] = np.concatenate([found.pop(p) for p in parts])
    return found
