"""Named settings for ``--preset``; single options override a preset's."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import (
    Config,
    DataConfig,
    DetectorConfig,
    FeatureConfig,
    ImportanceConfig,
    LearningConfig,
    PseudoConfig,
    StageOneConfig,
    SubsetConfig,
)

FINETUNE_EPOCHS = 10
"""As in the paper's cross-domain setting."""


def _paper(data: str) -> Config:
    """The published hyper-parameters: the defaults of every field."""
    return Config(DataConfig(data))


def _paper_appendix(data: str) -> Config:
    """The other published hyper-parameters: T = 7 with the holistic subset, faster g and psi."""
    return Config(
        DataConfig(data),
        subsets=SubsetConfig(holistic=True),
        learning=LearningConfig(lr=0.005),
        importance=ImportanceConfig(psi_lr=0.02),
    )


def _density(data: str) -> Config:
    """The default: the closed form of the density detector on whitened features of four levels."""
    return Config(
        DataConfig(data, held_out=0.1, in_turn=True),
        features=FeatureConfig(levels=4, views="2+8", whiten=True, fine_heat=True),
        pseudo=PseudoConfig(("cutmix", "cutpaste"), pseudo_per_generator=64),
        detector=DetectorConfig(detector="density", groups=3, poolings="auto", local_head=True),
        learning=LearningConfig(method="fit", updates_per_epoch=20, lr=0.0005),
    )


def _debug(data: str) -> Config:
    """A slice of the data and a few short epochs, to see that all parts work."""
    return Config(
        DataConfig(data, limit=24, shots=3, held_out=0.1, in_turn=True),
        features=FeatureConfig(image_size=192),
        stage_one=StageOneConfig(stage_one_epochs=2, stage_one_steps=2, stage_one_batch=6),
        pseudo=PseudoConfig(pseudo_per_generator=16),
        subsets=SubsetConfig(subsets=2, clusters=2),
        detector=DetectorConfig(references=3, coreset=200),
        learning=LearningConfig(epochs=4, steps=4, batch=12, passes=2),
        importance=ImportanceConfig(history=2),
    )


PRESETS = {
    "density": _density,
    "paper": _paper,
    "paper-appendix": _paper_appendix,
    "debug": _debug,
}


def preset(name: str, data: str, **settings: Any) -> Config:
    """A preset's config for a data set.

    Args:
        name: ``density``, ``paper``, ``paper-appendix`` or ``debug``.
        data: the data set's name or folder.
        settings: other settings than the preset's, each by the name of its field in ``Config`` or
            one of its parts, such as ``shots=5`` or ``detector="devnet"``.

    Raises:
        UserError: if there is no such preset or setting, or a value is out of range.
    """
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}; choose from {', '.join(PRESETS)}")
    return with_settings(PRESETS[name](data), settings)


def differing_settings(config: Config, other: Config) -> dict[str, Any]:
    """The settings of ``other`` that ``config`` has otherwise, by name."""
    found = {}
    for name, ours in vars(config).items():
        if dataclasses.is_dataclass(ours):
            for field in dataclasses.fields(ours):
                value = getattr(getattr(other, name), field.name)
                if value != getattr(ours, field.name):
                    found[field.name] = value
    return found


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """The config with these settings replaced, each in the part that has it.

    Raises:
        UserError: if there is no such setting, or a value is out of range.
    """
    values = dict(settings)
    changed: dict[str, Any] = {}
    for name, part in vars(config).items():
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            mine = {f.name for f in dataclasses.fields(part)} & values.keys()
            if mine:
                changed[name] = dataclasses.replace(part, **{own: values.pop(own) for own in mine})
        elif name in values:
            changed[name] = values.pop(name)
    if values:
        raise UserError(f"no such settings: {', '.join(values)}; see ahl_jax.Config for all")
    return dataclasses.replace(config, **changed)
