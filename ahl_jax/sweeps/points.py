"""The points of an ablation: settings varied one at a time around a config. Nothing is run here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from ahl_jax.common.errors import UserError
from ahl_jax.config.checks import settings_of
from ahl_jax.config.presets import with_settings
from ahl_jax.config.settings import Config
from ahl_jax.detectors import DETECTORS
from ahl_jax.sweeps.cells import Cell

SHORT = {"T": "subsets", "C": "clusters", "K": "history", "M": "shots"}
"""The paper's symbols for some settings."""


@dataclass(frozen=True)
class Point(Cell):
    """One value of one setting."""

    setting: str
    """As on the command line."""

    value: str
    """As on the command line."""

    number: float | None
    """The value if it is a number."""

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.setting} = {self.value}"


@dataclass(frozen=True)
class _Setting:
    """How the text of a value is read."""

    kind: type
    """int or float, or str for a choice."""

    choices: dict[str, Any]
    """Text on the command line -> value; empty for a number."""


def plan(
    config: Config, over: Sequence[str], workdir: Path = Path(), *, base: bool = False
) -> list[Point]:
    """The points of sweeps around ``config``, in order; those with the same config share a folder.

    Args:
        config: the settings that all points have, the varied one aside.
        over: one ``NAME=V1,V2,...`` per sweep; NAME as on the command line, or T, C, K, M.
        workdir: the folder for the points' folders.
        base: whether the base detector alone is a point too, then the first one.

    Raises:
        UserError: for an unknown or repeated name, a value of a wrong type, a repeated value, or a
            value that the config refuses.
    """
    if not over:
        raise UserError("there is nothing to vary; give `over` NAME=V1,V2,... such as T=1,2,4")
    settings, sweeps = _settings(config), dict[str, list[Any]]()
    for text in over:
        name, values = _parse(text, settings)
        if name in sweeps:
            raise UserError(f"`over` has {name} twice; put all of its values in one")
        sweeps[name] = values
    if base and config.learning.method == "base":
        raise UserError('`base` adds the detector alone to AHL; leave it out with `method="base"`')
    pairs = [("method", "base")] if base else []
    pairs += [(name, value) for name, values in sweeps.items() for value in values]
    points: list[Point] = []
    for name, value in pairs:
        shown = _text(value)
        try:
            changed = with_settings(config, {name.replace("-", "_"): value})
            if name == "history":
                check_history(changed)
        except UserError as error:
            raise UserError(f"{name} = {shown}: {error}") from error
        same = [point.folder for point in points if point.config == changed]
        folder = same[0] if same else workdir / f"{name}-{shown}"
        number = None if isinstance(value, str | bool) else value
        points.append(Point(changed, folder, name, shown, number))
    return points


def check_history(config: Config) -> None:
    """Refuse to compare a K that has no effect.

    Raises:
        UserError: if psi would wait for more epochs than a run has.
    """
    history, epochs = config.importance.history, config.learning.epochs
    if history >= epochs:
        raise UserError(
            f"`history` is {history}, so psi would wait for the end of all {epochs} epochs; "
            "give fewer, or raise `epochs`"
        )


def _settings(config: Config) -> dict[str, _Setting]:
    """Every setting that can be varied, by its command-line name."""
    found = {}
    for name, _, kinds, _ in settings_of(config):
        kind = next(k for k in kinds if k is not NoneType)
        if get_origin(kind) is Literal:
            setting = _Setting(str, {str(choice): choice for choice in get_args(kind)})
        elif kind is bool:
            setting = _Setting(str, {"false": False, "true": True})
        elif name == "detector":
            setting = _Setting(str, {name: name for name in sorted(DETECTORS)})
        elif kind in (int, float) and name != "seed":
            setting = _Setting(kind, {})
        else:
            continue
        found[name.replace("_", "-")] = setting
    return found


def _parse(text: str, settings: Mapping[str, _Setting]) -> tuple[str, list[Any]]:
    """``NAME=V1,V2`` -> the full name and the values."""
    name, equals, values = text.partition("=")
    if not equals:
        raise UserError(f"`over` is '{text}'; it must be NAME=V1,V2,... such as T=1,2,4")
    name = SHORT.get(name, name.replace("_", "-"))
    if name == "seed":
        raise UserError("`over` cannot vary the seed; give `seeds`, which every value is run with")
    if name not in settings:
        known = ", ".join([*SHORT, *sorted(settings)])
        raise UserError(f"`over` cannot vary '{name}'; choose from {known}")
    parsed = [_value(name, settings[name], item.strip()) for item in values.split(",")]
    repeated = [value for i, value in enumerate(parsed) if value in parsed[:i]]
    if repeated:
        raise UserError(f"`over` {name} has the value {_text(repeated[0])} twice; give it once")
    return name, parsed


def _value(name: str, setting: _Setting, text: str) -> Any:
    if setting.choices:
        if text not in setting.choices:
            choices = ", ".join(setting.choices)
            raise UserError(f"`over` {name} has the value '{text}'; choose from {choices}")
        return setting.choices[text]
    try:
        value = setting.kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        wanted = "a whole number" if setting.kind is int else "a number"
        raise UserError(f"`over` {name} has the value '{text}'; it must be {wanted}")
    return value


def _text(value: Any) -> str:
    """A value as on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)
