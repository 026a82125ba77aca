"""Writes the configuration reference from the dataclasses that the settings are."""

import ast
import dataclasses
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro
from sphinx.application import Sphinx

from ahl_jax.config import settings as config
from ahl_jax.config.checks import NameIn, Range
from ahl_jax.config.presets import PRESETS, differing_settings
from ahl_jax.run.checks import names_for

_HEAD = """# Configuration

Every setting of a run. The option of `ahl train` has the same name with `-` for `_`; in Python it
is the field of the dataclass that heads the section. The defaults are those of `--preset paper`.
The end of the page lists the settings in which the other presets differ.
"""


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True}


def _write(app: Sphinx) -> None:
    path = Path(app.srcdir) / "configuration.md"
    text = "\n".join(_reference())
    # Written only where it changes, so that nothing is built again for nothing.
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _reference() -> Iterator[str]:
    yield _HEAD
    parts = [f.type for f in dataclasses.fields(config.Config) if inspect.isclass(f.type)]
    for part in [config.Config, *filter(dataclasses.is_dataclass, parts)]:
        said, hints = _docstrings(part), get_type_hints(part, include_extras=True)
        yield f"## {part.__name__}\n\n{inspect.getdoc(part)}\n"
        yield "| setting | default | values | |\n|---|---|---|---|"
        for field in dataclasses.fields(part):
            hint = hints[field.name]
            if field.name not in said or tyro.conf.Suppress in _marks(hint):
                continue
            default = "" if field.default is dataclasses.MISSING else f"`{_plain(field.default)}`"
            values = _values(field.name, hint)
            yield f"| `{field.name}` | {default} | {values} | {said[field.name]} |"
        yield ""
    yield "## Presets\n"
    paper = PRESETS["paper"]("")
    for name, preset in PRESETS.items():
        settings = differing_settings(paper, preset(""))
        values = ", ".join(f"`{key}` = `{_plain(value)}`" for key, value in settings.items())
        yield f"- `{name}`: {values or 'the defaults'}"
    yield ""


def _marks(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__metadata__", ())


def _values(name: str, hint: Any) -> str:
    """The values that a setting may have: choices, names of a registry, or a range."""
    kind = getattr(hint, "__origin__", hint) if _marks(hint) else hint
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    said = [str(mark) for mark in _marks(hint) if isinstance(mark, Range)]
    for one in kinds:
        if get_origin(one) is Literal:
            said.append(_listed(get_args(one)))
    for mark in _marks(hint):
        if isinstance(mark, NameIn):
            said.append(_listed(names_for(name, mark.registry)))
    return "; ".join(said)


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _docstrings(part: type) -> dict[str, str]:
    """The string behind each field."""
    (found,) = ast.parse(inspect.getsource(part)).body
    assert isinstance(found, ast.ClassDef)
    said = {}
    for field, text in zip(found.body, found.body[1:], strict=False):
        named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if named and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            said[field.target.id] = " ".join(str(text.value.value).split()).replace("|", "\\|")
    return said


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
