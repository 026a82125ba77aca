"""A tiny trunk: two convolutions with the stride of the real ones."""

from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from ahl_jax import Config, backbones
from ahl_jax.backbones import Trunk, load_trunk
from ahl_jax.backbones.layers import Conv
from ahl_jax.data.types import Split
from ahl_jax.features.split import load_split, split_digest
from ahl_jax.stage_one import trained_trunk

SIZE = 192


class Tiny(nnx.Module):
    """Two convolutions, linear at the end as EfficientNet-Lite0 is; each is a level."""

    channels: ClassVar[tuple[int, ...]] = (6, 5)
    stride: ClassVar[int] = 32
    batch_norm_epsilon: ClassVar[float] = 1e-5
    unused: ClassVar[tuple[str, ...]] = ()
    address: ClassVar[None] = None
    weights: ClassVar[Path]

    def __init__(self) -> None:
        self.first = Conv((3, 5), 8, 8, (0, 0), ("first", "first_norm"))
        self.second = Conv((5, 6), 4, 4, (0, 0), ("second", "second_norm"))

    def __call__(self, images):
        first = self.first(images / 128 - 1)
        return self.second(jax.nn.relu(first)), first

    @classmethod
    def default_weights(cls) -> Path:
        return cls.weights


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Put the tiny trunk among the others, with weights in the folder."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, (outputs, inputs, side) in {"first": (5, 3, 8), "second": (6, 5, 4)}.items():
        shape = (outputs, inputs, side, side)
        values = rng.normal(size=shape) / np.sqrt(inputs * side**2)
        tensors[f"{name}.weight"] = values.astype(np.float32)
        for part, value in {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}.items():
            tensors[f"{name}_norm.{part}"] = np.full(outputs, value, np.float32)
    Tiny.weights = folder / "tiny.safetensors"
    save_file(tensors, Tiny.weights)
    monkeypatch.setitem(backbones.TRUNKS, "tiny", Tiny)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def loaded(config: Config) -> Trunk:
    return load_trunk("tiny", apart=config.stage_one.batch_norm == "trained")


def run_stage_one(config: Config, cache: Path, split: Split | None = None) -> Trunk:
    digest = split_digest(load_split(config))
    split = split or load_split(config)
    return trained_trunk(config, split, digest, loaded(config), cache, progress=False)[0]
