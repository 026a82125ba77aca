"""The points of an ablation: settings varied one at a time around a config. Nothing is run here."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ahl_jax.common.errors import UserError
from ahl_jax.config.presets import with_settings
from ahl_jax.config.settings import Config
from ahl_jax.detectors import DETECTORS

SHORT = {"T": "subsets", "C": "clusters", "K": "history", "M": "shots"}
"""The paper's symbols for some settings."""


@dataclass(frozen=True)
class Point:
    """One value of one setting."""

    name: str
    """The setting, as on the command line."""

    value: str
    """As on the command line."""

    number: float | None
    """The value if it is a number."""

    config: Config
    folder: str
    """Within the work directory; points with the same config have the same one."""


@dataclass(frozen=True)
class _Setting:
    """How the text of a value is read."""

    kind: type
    """int or float, or str for a choice."""

    choices: dict[str, Any]
    """Text on the command line -> value; empty for a number."""


def plan(config: Config, over: Sequence[str], *, base: bool = False) -> list[Point]:
    """The points of sweeps around ``config``, in order.

    Args:
        config: what all settings but the varied one are.
        over: one ``NAME=V1,V2,...`` per sweep; NAME as on the command line, or T, C, K, M.
        base: whether the base detector alone is a point too, then the first one.

    Raises:
        UserError: for an unknown or repeated name, a value of a wrong type, a repeated value, or a
            value that the config refuses.
    """
    if not over:
        raise UserError("there is nothing to vary; give --over NAME=V1,V2,... such as T=1,2,4")
    sweeps: dict[str, list[Any]] = {}
    for text in over:
        name, values = _parse(text)
        if name in sweeps:
            raise UserError(f"--over {name} is given twice; put all of its values in one")
        sweeps[name] = values
    if base and config.learning.method == "base":
        raise UserError("--base adds the detector alone to AHL; leave it out with --method base")
    pairs = [("method", "base")] if base else []
    pairs += [(name, value) for name, values in sweeps.items() for value in values]
    points: list[Point] = []
    for name, value in pairs:
        shown = _text(value)
        try:
            changed = with_settings(config, {name.replace("-", "_"): value})
        except UserError as error:
            raise UserError(f"--over {name}={shown}: {error}") from error
        same = [point.folder for point in points if point.config == changed]
        number = None if isinstance(value, str | bool) else value
        points.append(Point(name, shown, number, changed, (same or [f"{name}-{shown}"])[0]))
    return points


def _settings() -> dict[str, _Setting]:
    """Every setting that can be varied, by its command-line name."""
    found = {}
    for part in get_type_hints(Config).values():
        if not dataclasses.is_dataclass(part):
            continue
        for field, hint in get_type_hints(part).items():
            kinds = get_args(hint) if get_origin(hint) is not Literal else (hint,)
            kind = next((k for k in kinds if k is not NoneType), hint)
            if get_origin(kind) is Literal:
                setting = _Setting(str, {str(choice): choice for choice in get_args(kind)})
            elif kind is bool:
                setting = _Setting(str, {"false": False, "true": True})
            elif field == "detector":
                setting = _Setting(str, {name: name for name in sorted(DETECTORS)})
            elif kind in (int, float):
                setting = _Setting(kind, {})
            else:
                continue
            found[field.replace("_", "-")] = setting
    return found


def _parse(text: str) -> tuple[str, list[Any]]:
    """``NAME=V1,V2`` -> the full name and the values."""
    name, equals, values = text.partition("=")
    if not equals:
        raise UserError(f"--over is '{text}'; it must be NAME=V1,V2,... such as T=1,2,4")
    name = SHORT.get(name, name.replace("_", "-"))
    if name == "seed":
        raise UserError("--over cannot vary the seed; give --seeds, which every value is run with")
    settings = _settings()
    if name not in settings:
        known = ", ".join([*SHORT, *sorted(settings)])
        raise UserError(f"--over cannot vary '{name}'; choose from {known}")
    parsed = [_value(name, settings[name], item.strip()) for item in values.split(",")]
    repeated = [value for i, value in enumerate(parsed) if value in parsed[:i]]
    if repeated:
        raise UserError(f"--over {name} has the value {_text(repeated[0])} twice; give it once")
    return name, parsed


def _value(name: str, setting: _Setting, text: str) -> Any:
    if setting.choices:
        if text not in setting.choices:
            choices = ", ".join(setting.choices)
            raise UserError(f"--over {name} has the value '{text}'; choose from {choices}")
        return setting.choices[text]
    try:
        value = setting.kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        wanted = "a whole number" if setting.kind is int else "a number"
        raise UserError(f"--over {name} has the value '{text}'; it must be {wanted}")
    return value


def _text(value: Any) -> str:
    """A value as on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)
