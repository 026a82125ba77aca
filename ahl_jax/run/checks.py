"""Checks of a run's settings that take the registries, before any work is done."""

from collections.abc import Mapping
from typing import Any

from ahl_jax.backbones import TRUNKS
from ahl_jax.common.errors import UserError
from ahl_jax.config.checks import NameIn, settings_of
from ahl_jax.config.settings import Config
from ahl_jax.data.types import Split
from ahl_jax.detectors import DETECTORS
from ahl_jax.features.split import check_enough
from ahl_jax.learning.hadg import check_clusters
from ahl_jax.pseudo import GENERATORS

REGISTRIES: Mapping[str, Mapping[str, Any]] = {
    "detectors": DETECTORS,
    "trunks": TRUNKS,
    "generators": GENERATORS,
}
"""The registries that the mark ``ahl_jax.config.checks.NameIn`` names."""


def names_for(setting: str, registry: str) -> list[str]:
    """The names that a setting takes, sorted.

    Args:
        setting: such as ``detector``; stage one takes those detectors that train on features as
            they are.
        registry: a key of ``REGISTRIES``.
    """
    known = REGISTRIES[registry].items()
    if setting == "stage_one_detector":
        return sorted(name for name, kind in known if kind.trained and not kind.whitened)
    return sorted(name for name, _ in known)


def check_settings(config: Config) -> None:
    """Find names that no registry has, and settings that a detector does not go with.

    Raises:
        UserError: naming the setting and the choices.
    """
    for setting in settings_of(config):
        marks = [mark for mark in setting.marks if isinstance(mark, NameIn)]
        unused = setting.name == "stage_one_detector" and not config.stage_one.stage_one
        if not marks or unused:
            continue
        known = names_for(setting.name, marks[0].registry)
        for name in [setting.value] if isinstance(setting.value, str) else setting.value:
            if name not in known:
                raise UserError(f"`{setting.name}` has no '{name}'; choose from {', '.join(known)}")
    _check_detector(config)
    if config.stage_one.stage_one_heads:
        _check_heads(config)


def check_split(config: Config, split: Split) -> None:
    """Find out before any image is read whether its normals are enough.

    Raises:
        UserError: if they are not.
    """
    if config.learning.method == "ahl":
        check_clusters(config.subsets.clusters, len(split.train_normals))
    if not split.held_out:
        check_enough(config, len(split.train_normals))


def _check_detector(config: Config) -> None:
    """Refuse a detector that the method or the features leave without sense."""
    name, method = config.detector.detector, config.learning.method
    kind = DETECTORS[name]
    if kind.whitened and not config.features.whiten:
        raise UserError(f"the detector {name} needs `whiten=True`; turn it on")
    if not kind.trained and method != "fit":
        raise UserError(f'the detector {name} has nothing to train; add `method="fit"`')
    begun = config.start or (config.stage_one.stage_one and config.stage_one.stage_one_heads)
    if method == "fit" and kind.trained and not kind.has_closed_form() and not begun:
        able = [
            other + " (with `whiten=True`)" * one.whitened
            for other, one in sorted(DETECTORS.items())
            if one.has_closed_form() or not one.trained
        ]
        raise UserError(
            f'the detector {name} has no closed form, so `method="fit"` would leave its random '
            f"weights; choose another `method`, or as `detector` {', '.join(able)}"
        )


def _check_heads(config: Config) -> None:
    """Refuse to start with the detector of stage one where it cannot be the start."""
    one = config.stage_one
    if not one.stage_one:
        raise UserError("`stage_one_heads=True` needs `stage_one=True`; add it, or leave both out")
    if config.detector.detector != one.stage_one_detector:
        raise UserError(
            "`stage_one_heads` needs the same detector in both stages, and `stage_one_detector` "
            f"is {one.stage_one_detector} where `detector` is {config.detector.detector}; name one "
            "with both"
        )
    if config.features.whiten:
        raise UserError(
            "stage one sees features that are not whitened; leave out `stage_one_heads`, or give "
            "`whiten=False`"
        )
    if config.features.views == "2+8":
        raise UserError(
            "stage one sees one view at a time, and `views` 2+8 have twice its channels; leave out "
            "`stage_one_heads`, or give `views=8`"
        )
    if config.learning.method == "ensemble":
        raise UserError(
            "an ensemble starts from different weights; leave out `stage_one_heads`, or choose "
            "another `method`"
        )
