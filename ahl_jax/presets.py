"""Named settings for ``--preset``; single options override a preset's."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ahl_jax.config import (
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


def _paper(data: str) -> Config:
    """The published hyper-parameters: the defaults of every field."""
    return Config(DataConfig(data))


def _density(data: str) -> Config:
    """The most accurate: the density detector on whitened features, averaged over eight views."""
    return Config(
        DataConfig(data, held_out=0.1),
        features=FeatureConfig(views=8, whiten=True),
        detector=DetectorConfig(detector="density", groups=3),
        learning=LearningConfig(updates_per_epoch=20, lr=0.0005),
    )


def _debug(data: str) -> Config:
    """A slice of the data and a few short epochs: shows in under a minute that all parts work."""
    return Config(
        DataConfig(data, limit=24, shots=3, held_out=0.1),
        features=FeatureConfig(image_size=192),
        stage_one=StageOneConfig(stage_one_epochs=2, stage_one_steps=2, stage_one_batch=6),
        pseudo=PseudoConfig(pseudo_per_generator=16),
        subsets=SubsetConfig(subsets=2, clusters=2),
        detector=DetectorConfig(references=3, coreset=200),
        learning=LearningConfig(epochs=4, steps=4, batch=12, passes=2),
        importance=ImportanceConfig(history=2),
    )


PRESETS = {"density": _density, "paper": _paper, "debug": _debug}


def preset(name: str, data: str, **data_options: Any) -> Config:
    """A preset's config for a data set.

    Args:
        name: ``density``, ``paper`` or ``debug``.
        data: the data set's name or folder.
        data_options: other fields of ``DataConfig``, such as ``category``.
    """
    config = PRESETS[name](data)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data_options))


def differing_settings(config: Config, other: Config) -> dict[str, Any]:
    """The settings of ``other`` that ``config`` has otherwise, by name."""
    found = {}
    for room in dataclasses.fields(config):
        ours, theirs = getattr(config, room.name), getattr(other, room.name)
        if dataclasses.is_dataclass(ours):
            for field in dataclasses.fields(ours):
                value = getattr(theirs, field.name)
                if value != getattr(ours, field.name):
                    found[field.name] = value
    return found


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """The config with these fields replaced, each in the room that has it.

    Raises:
        KeyError: if no room has such a field.
    """
    values = dict(settings)
    rooms: dict[str, Any] = {}
    for room in dataclasses.fields(config):
        part = getattr(config, room.name)
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            mine = {f.name for f in dataclasses.fields(part)} & values.keys()
            rooms[room.name] = dataclasses.replace(
                part, **{name: values.pop(name) for name in mine}
            )
    if values:
        raise KeyError(f"no such settings: {', '.join(values)}")
    return dataclasses.replace(config, **rooms)
