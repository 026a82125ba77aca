"""Marks beside a setting's type that say which values it may have, and the checks by them."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from tyro import MISSING

from ahl_jax.common.errors import UserError


@dataclass(frozen=True)
class AtLeast:
    """A number that is ``low`` or more."""

    low: float

    def allows(self, value: Any) -> bool:
        """Whether the value is in range."""
        return value >= self.low

    def __str__(self) -> str:
        return f"{self.low} or more"


@dataclass(frozen=True)
class Above:
    """A number that is more than ``low``, and at most ``high`` if that is given."""

    low: float
    high: float | None = None

    def allows(self, value: Any) -> bool:
        """Whether the value is in range."""
        return value > self.low and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        return f"above {self.low}" + ("" if self.high is None else f" and at most {self.high}")


@dataclass(frozen=True)
class Between:
    """A number from ``low`` to ``high``, both included."""

    low: float
    high: float

    def allows(self, value: Any) -> bool:
        """Whether the value is in range."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"from {self.low} to {self.high}"


@dataclass(frozen=True)
class MultipleOf:
    """A whole number that ``factor`` divides."""

    factor: int

    def allows(self, value: Any) -> bool:
        """Whether the value is in range."""
        return value % self.factor == 0

    def __str__(self) -> str:
        return f"a multiple of {self.factor}"


@dataclass(frozen=True)
class NameIn:
    """A name, or names, that a registry has; ``ahl_jax.run.checks`` looks it up."""

    registry: Literal["detectors", "trunks", "generators"]


@dataclass(frozen=True)
class _Anywhere:
    pass


ANYWHERE = _Anywhere()
"""Marks a path that may be in object storage; others are of this machine."""

Range = AtLeast | Above | Between | MultipleOf


class Setting(NamedTuple):
    """A field of a config's part, with its value there."""

    name: str
    value: Any
    kinds: tuple[Any, ...]
    """The types that it may have, without marks."""

    marks: tuple[Any, ...]


def settings_of(config: Any) -> Iterator[Setting]:
    """Every setting of a config and of its parts, those that are not known yet aside.

    Args:
        config: a dataclass; its fields that are dataclasses are its parts.
    """
    for owner in (config, *vars(config).values()):
        if not dataclasses.is_dataclass(owner):
            continue
        for name, hint in get_type_hints(type(owner), include_extras=True).items():
            value = getattr(owner, name)
            marks: tuple[Any, ...] = ()
            if get_origin(hint) is Annotated:
                hint, marks = hint.__origin__, hint.__metadata__
            if value is not MISSING and not dataclasses.is_dataclass(value):
                kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
                yield Setting(name, value, kinds, marks)


def check_values(config: Any) -> None:
    """Refuse values of another type, choice or range than a setting's.

    Raises:
        UserError: for the first one, by its name. Types are looked at before ranges.
    """
    settings = list(settings_of(config))
    for setting in settings:
        _check_type(setting)
    for name, value, _, marks in settings:
        each = value if isinstance(value, tuple) else (value,)
        for mark in marks:
            if isinstance(mark, Range) and value is not None and not all(map(mark.allows, each)):
                raise UserError(f"`{name}` is {value}; it must be {mark}")


def _check_type(setting: Setting) -> None:
    name, value, kinds, _ = setting
    if value is None and NoneType in kinds:
        return
    kind = next(k for k in kinds if k is not NoneType)
    if get_origin(kind) is Literal:
        if not any(value == one and type(value) is type(one) for one in get_args(kind)):
            choices = ", ".join(map(str, get_args(kind)))
            raise UserError(f"`{name}` is {value!r}; choose from {choices}")
    elif not _is(value, kind):
        raise UserError(f"`{name}` is {value!r}; it must be {_IN_WORDS[kind]}")


_IN_WORDS: dict[Any, str] = {
    bool: "a bool",
    int: "an int",
    float: "a float",
    str: "a str",
    Path: "a pathlib.Path",
    tuple[str, ...]: "a tuple of str",
    tuple[int, int]: "a tuple of two ints",
    tuple[int, int, int, int]: "a tuple of four ints",
}


def _is(value: Any, kind: Any) -> bool:
    """Whether the value is of a setting's type, which is one that JSON keeps."""
    if get_origin(kind) is tuple:
        of, *others = get_args(kind)
        fits = isinstance(value, tuple) and all(_is(one, of) for one in value)
        return fits and (others == [...] or len(value) == 1 + len(others))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def left_to_data(config: Any) -> list[str]:
    """The settings of a ``Config`` whose value the training data are to choose."""
    return [
        setting.name
        for setting in settings_of(config)
        if setting.value == "auto" and any("auto" in get_args(kind) for kind in setting.kinds)
    ]
