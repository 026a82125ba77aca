"""Base detectors: feature maps -> scores and losses, one file per detector."""

import dataclasses
from typing import Any, cast

import jax
from flax import nnx
from jaxtyping import Array, Key

from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import Config, DetectorConfig, averaged
from ahl_jax.detectors.density import Density
from ahl_jax.detectors.devnet import DevNet
from ahl_jax.detectors.dra import DRA
from ahl_jax.detectors.flos import FLOS
from ahl_jax.detectors.gaussian import Gaussian
from ahl_jax.detectors.inputs import Blocks, Inputs, make_inputs
from ahl_jax.detectors.mlep import MLEP
from ahl_jax.detectors.patchcore import PatchCore
from ahl_jax.detectors.protocol import Detector, Functional, Model, functional
from ahl_jax.detectors.saoe import SAOE

DETECTORS: dict[str, type[Detector]] = {
    "density": Density,
    "devnet": DevNet,
    "dra": DRA,
    "flos": FLOS,
    "gaussian": Gaussian,
    "mlep": MLEP,
    "patchcore": PatchCore,
    "saoe": SAOE,
}


def blocks_of(config: Config) -> Blocks:
    """The blocks of pooled features that a run's detector reads; averages alone, if not whitened.

    Raises:
        UserError: if there is no detector of that name.
    """
    if not _class_of(config.detector).whitened:
        return Blocks(1, 1)
    assert config.detector.poolings != "auto"
    return Blocks(config.detector.poolings, len(averaged(config.features.views)))


def make_detector(
    config: DetectorConfig, channels: int, key: Key[Array, ""], blocks: int | None = None
) -> tuple[Functional, Model]:
    """A fresh detector by name, split into pure functions and its arrays.

    Args:
        config: its settings.
        channels: of the features at a location.
        key: decides its weights.
        blocks: how many blocks of pooled features it reads; to it, each is a pooling. By default
            those of one mean over views.

    Raises:
        UserError: if there is no detector of that name.
    """
    # Rngs takes a seed or a key; a typed key keeps the whole run on one key tree.
    rngs = nnx.Rngs(params=jax.random.fold_in(key, 0))
    if blocks is not None:
        config = dataclasses.replace(config, poolings=cast(Any, blocks))
    return functional(_class_of(config)(channels, config, rngs=rngs))


def _class_of(config: DetectorConfig) -> type[Detector]:
    if config.detector not in DETECTORS:
        raise UserError(
            f"there is no detector '{config.detector}'; choose from {', '.join(sorted(DETECTORS))}"
        )
    return DETECTORS[config.detector]


__all__ = [
    "DETECTORS",
    "Blocks",
    "Detector",
    "Functional",
    "Inputs",
    "Model",
    "blocks_of",
    "functional",
    "make_detector",
    "make_inputs",
]
