"""The help of the command line, made of docstrings, fields and registries."""

import ast
import dataclasses
import inspect
import itertools
import shutil
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

import tyro

from ahl_jax.cli.mentions import with_options
from ahl_jax.cli.options import Command, Option, options_of
from ahl_jax.config.checks import NameIn
from ahl_jax.config.settings import StageOneConfig

_COLUMN = 20
"""Where explanations start."""

_KINDS = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}


def overview(title: str, commands: Mapping[str, Command]) -> str:
    """The help that lists commands.

    Args:
        title: what they are for.
        commands: the commands by their names.
    """
    rows = ((name, _paragraphs(command.kind)[0]) for name, command in commands.items())
    lines = ["usage: ahl COMMAND ...", "", *_wrapped(title), "", *_table(rows), ""]
    return "\n".join([*lines, "`ahl COMMAND --help` explains a command."])


def explained(
    name: str, command: Command, values: Any, names: Collection[str], *, whole: bool
) -> str:
    """The help of one command.

    Args:
        name: its name.
        command: the command.
        values: its defaults, see ``ahl_jax.cli.options.options_of``.
        names: the settings that are options somewhere, for mentions of them.
        whole: whether to show what is not common, too.
    """
    options = sorted(options_of(command.kind, values), key=lambda one: not one.positional)
    needed = [_term(one) for one in options if one.default is tyro.MISSING_NONPROP]
    more = ["[options]"] if len(needed) < len(options) else []
    lines = _wrapped(" ".join(["usage: ahl", name, *needed, *more]))
    for paragraph in _paragraphs(command.kind):
        lines += ["", *_wrapped(paragraph)]
    if command.common and not whole:
        by_name = {one.name: one for one in options}
        lines += ["", *_table(_row(by_name[each], names) for each in command.common), ""]
        left = len(options) - len(command.common)
        return "\n".join([*lines, f"`ahl {name} --help-all` shows {left} more options."])
    # The command's own options stand first, under no title.
    owners = dict.fromkeys(one.owner for one in options)
    for owner in sorted(owners, key=lambda each: each is not command.kind):
        title = [] if owner is command.kind else _wrapped(_paragraphs(owner)[0])
        rows = (_row(one, names) for one in options if one.owner is owner)
        lines += ["", *title, *_table(rows)]
    return "\n".join(lines)


def _row(option: Option, names: Collection[str]) -> tuple[str, str]:
    """An option's form, and what it does."""
    text = with_options(" ".join([_docs(option.owner)[option.name], *_choices(option)]), names)
    default = option.default
    if default is tyro.MISSING_NONPROP:
        text += " (required)"
    elif default is True:
        text += f" (default: {option.words[0]})"
    elif default is not None and default is not False and default != ():
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text += f" (default: {shown})"
    return _term(option), text


def _term(option: Option) -> str:
    """How an option is written, with a word for its value."""
    if option.kind is bool:
        return ", ".join(option.words if option.default is True else option.words[:1])
    if option.positional:
        return option.metavar
    return f"{option.words[0]} {option.metavar or _value(option.kind)}"


def _value(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return " ".join("..." if each is Ellipsis else _value(each) for each in kinds)
    if isinstance(kind, UnionType):
        return _value(next(each for each in get_args(kind) if each is not NoneType))
    return _KINDS[kind]


def _choices(option: Option) -> Iterator[str]:
    """The names that a registry has for it."""
    for mark in option.marks:
        if isinstance(mark, NameIn):
            from ahl_jax.backbones import TRUNKS
            from ahl_jax.pseudo import GENERATORS

            known = {"trunks": TRUNKS, "generators": GENERATORS}.get(mark.registry)
            names = _detectors(option) if known is None else ", ".join(sorted(known))
            yield f"Choose from {names}."


def _detectors(option: Option) -> str:
    from ahl_jax.detectors import DETECTORS

    kinds = sorted(DETECTORS.items())
    if option.owner is StageOneConfig:
        # Stage one trains from images, whose features nothing whitens.
        return ", ".join(name for name, kind in kinds if kind.trained and not kind.whitened)
    said = {name: name + " (with `whiten`)" * kind.whitened for name, kind in kinds}
    trained = ", ".join(said[name] for name, kind in kinds if kind.trained)
    fitted = ", ".join(said[name] for name, kind in kinds if not kind.trained)
    return f'{trained}; with `method="fit"` also {fitted}'


def _docs(owner: type) -> dict[str, str]:
    """The docstrings of the fields, those of base classes too, each on one line."""
    found: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, reversed(owner.__mro__)):
        (node,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(node, ast.ClassDef)
        for field, doc in itertools.pairwise(node.body):
            match field, doc:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = " ".join(text.split())
    return found


def _paragraphs(kind: type) -> list[str]:
    """The docstring of a dataclass, each paragraph on one line."""
    return [" ".join(each.split()) for each in inspect.cleandoc(kind.__doc__ or "").split("\n\n")]


def _table(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, text in rows:
        lines = _wrapped(text, _COLUMN)
        if len(term) + 4 > _COLUMN:
            yield f"  {term}"
        else:
            lines[0] = f"  {term}".ljust(_COLUMN) + lines[0].lstrip()
        yield from lines


def _wrapped(text: str, indent: int = 0) -> list[str]:
    width = min(shutil.get_terminal_size().columns, 100)
    return textwrap.wrap(
        text, width, initial_indent=" " * indent, subsequent_indent=" " * indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
