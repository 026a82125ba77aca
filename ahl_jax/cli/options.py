"""The options of a command: the fields of its dataclass, and of the dataclasses in it."""

import dataclasses
import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from ahl_jax.common.errors import UserError


@dataclass(frozen=True)
class Command:
    """A command, and how the command line treats it."""

    kind: type
    """The dataclass that its options are read into."""

    run: Callable[[Any], None]
    common: tuple[str, ...] = ()
    """The fields that the short help shows, in this order; all of them if empty."""


@dataclass(frozen=True)
class Option:
    """A field that the command line sets."""

    name: str
    """As in Python."""

    kind: Any
    """Its type, without marks."""

    marks: tuple[Any, ...]
    """The marks of ``Annotated`` beside the type."""

    default: Any
    """``tyro.MISSING_NONPROP`` where there is none."""

    owner: type
    """The dataclass that has the field."""

    @property
    def positional(self) -> bool:
        """Whether it is given by its place, without a name."""
        return tyro.conf.Positional in self.marks

    @property
    def words(self) -> tuple[str, ...]:
        """How it is written; the one that turns on comes before the one that turns off."""
        word = self.name.replace("_", "-")
        return (f"--{word}", f"--no-{word}") if self.kind is bool else (f"--{word}",)


def options_of(command: type, values: Any = tyro.MISSING_NONPROP) -> Iterator[Option]:
    """Every option of a command, those of a dataclass within it where that one stands.

    Args:
        command: a dataclass.
        values: one of these that holds the defaults, where they are not those of the fields.
    """
    hints = get_type_hints(command, include_extras=True)
    for field in dataclasses.fields(command):
        kind, *marks = [hints[field.name]]
        if get_origin(kind) is Annotated:
            kind, *marks = get_args(kind)
        default = _default(field, values)
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            yield from options_of(kind, default)
        elif tyro.conf.Suppress not in marks:
            yield Option(field.name, kind, tuple(marks), default, command)


def names_of(commands: Iterable[type]) -> set[str]:
    """The fields of commands that are options, as Python names them."""
    return {each.name for kind in commands for each in options_of(kind) if not each.positional}


def _default(field: dataclasses.Field[Any], values: Any) -> Any:
    if values is not tyro.MISSING_NONPROP:
        default = getattr(values, field.name)
    elif field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    else:
        default = field.default
    return tyro.MISSING_NONPROP if default in (dataclasses.MISSING, tyro.MISSING) else default


def check_words(command: str, words: Sequence[str], options: Iterable[Option]) -> None:
    """Find an option that the command has not.

    Args:
        command: its name.
        words: what follows the name.
        options: those that it has.

    Raises:
        UserError: for the first one; it names the nearest that there is.
    """
    known = [word for option in options if not option.positional for word in option.words]
    for word in words:
        given = word.partition("=")[0]
        if given.startswith("--") and given.replace("_", "-") not in known:
            advice = nearest(given, known) or f"`ahl {command} --help-all` lists those there are"
            raise UserError(f"there is no option {given}; {advice}")


def nearest(given: str, known: Collection[str]) -> str | None:
    """A question whether the nearest of the names is meant, if there is a near one."""
    near = difflib.get_close_matches(given, known, 1)
    return f"did you mean {near[0]}?" if near else None
