"""The options of a command: the fields of its dataclass, and of the dataclasses in it."""

import dataclasses
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from ahl_jax.common.errors import UserError
from ahl_jax.common.remote import any_path, url_of
from ahl_jax.common.text import counted, nearest
from ahl_jax.config.checks import ANYWHERE


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
    def metavar(self) -> str:
        """The word for its value that a mark gives it; empty if none does."""
        named = (getattr(mark, "metavar", None) for mark in self.marks)
        return next(filter(None, named), None) or ""

    @property
    def counts(self) -> tuple[int, int]:
        """How many words its value takes, at the least and at the most."""
        if self.kind is bool:
            return 0, 0
        kind = _given(self.kind)
        if get_origin(kind) is not tuple or tyro.conf.UseAppendAction in self.marks:
            return 1, 1
        kinds = get_args(kind)
        return (1, sys.maxsize) if Ellipsis in kinds else (len(kinds), len(kinds))

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


def check_words(
    command: str, words: Sequence[str], options: Sequence[Option], commands: Mapping[str, Command]
) -> None:
    """Find an option that the command has not, and values that are missing or of another type.

    Args:
        command: its name.
        words: what follows the name.
        options: those that it has.
        commands: all commands by their names.

    Raises:
        UserError: for the first one; for an unknown option it names the commands that have it, or
            the nearest that there is.
    """
    of_word = {word: each for each in options if not each.positional for word in each.words}
    places: list[str] = []
    given: set[str] = set()
    rest = list(words)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        if not word.startswith("--"):
            places.append(word)
            continue
        written = word.replace("_", "-")
        option = of_word.get(written)
        if option is None:
            having = [f"`ahl {name}`" for name, each in commands.items() if _has(each, written)]
            advice = nearest(word, of_word) or f"`ahl {command} --help` lists them"
            if having:
                advice = f"{', '.join(having)} {'has' if len(having) == 1 else 'have'} it"
            raise UserError(f"there is no option {word}; {advice}")
        given.add(option.name)
        values = [value] if equals else []
        least, most = option.counts
        while rest and not rest[0].startswith("--") and len(values) < most:
            values.append(rest.pop(0))
        if len(values) < least:
            found = counted(len(values), "value") if values else "no value"
            raise UserError(f"{word} has {found}; give it {'one' if least == 1 else least}")
        for value in values:
            _check_value(word, value, option.kind)
    _check_complete(command, options, given, places)


PATHS = tyro.constructors.ConstructorRegistry()
"""Within it, a word that is a path becomes one by ``any_path``."""


@PATHS.primitive_rule
def _path(found: tyro.constructors.PrimitiveTypeInfo) -> Any:
    if found.type is not Path:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: any_path(words[0]),
        is_instance=lambda value: isinstance(value, PurePath),
        str_from_instance=lambda path: [str(path)],
    )


def check_places(options: Iterable[Option]) -> None:
    """Find a path in object storage where only one of this machine will do.

    Args:
        options: those that are set, with their values as the defaults.

    Raises:
        UserError: for the first one.
    """
    for option in options:
        values = option.default if isinstance(option.default, tuple) else (option.default,)
        for value in values:
            if not isinstance(value, PurePath) or ANYWHERE in option.marks:
                continue
            if url := url_of(value):
                name = option.metavar if option.positional else option.words[0]
                raise UserError(f"{name} is {url}; it has to be a path of this machine")


def _check_complete(
    command: str, options: Sequence[Option], given: Collection[str], places: Sequence[str]
) -> None:
    """Refuse words that lack an option without a default, or have a value too many.

    Args:
        command: its name.
        options: those that it has.
        given: those that the words name.
        places: the words that are given by their place.

    Raises:
        UserError: for the first one.
    """
    positional = [option for option in options if option.positional]
    named = [option for option in options if not option.positional]
    missing = [each.metavar for each in positional[len(places) :]]
    missing += [each.words[0] for each in named if each.name not in given]
    required = {
        each.metavar if each.positional else each.words[0]
        for each in options
        if each.default is tyro.MISSING_NONPROP
    }
    for word in missing:
        if word in required:
            raise UserError(f"{word} is missing; `ahl {command} --help` explains it")
    if len(places) > sum(each.counts[1] for each in positional):
        raise UserError(
            f"there is no place for '{places[-1]}'; `ahl {command} --help` has them all"
        )


def _has(command: Command, word: str) -> bool:
    """Whether a command has an option that is written so."""
    return any(word in each.words for each in options_of(command.kind) if not each.positional)


def _given(kind: Any) -> Any:
    """The type of a value that is given, where the type allows None too."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return next(each for each in kinds if each is not NoneType)


def _check_value(word: str, value: str, kind: Any) -> None:
    """Refuse a word that is no value of the type.

    Raises:
        UserError: saying which it may be.
    """
    kind = _given(kind)
    if get_origin(kind) is tuple:
        kind = _given(get_args(kind)[0])
    if get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        if value not in choices:
            raise UserError(f"{word} is '{value}'; choose from {', '.join(choices)}")
    elif kind in (int, float):
        try:
            kind(value)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise UserError(f"{word} is '{value}'; it must be {wanted}") from None
