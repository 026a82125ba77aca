"""Writes the configuration reference from the dataclasses that the settings are."""

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from ahl_jax.config import settings as config
from ahl_jax.config.presets import PRESETS, differing_settings

_HEAD = """# Configuration

Every setting of a run. The option of `ahl train` has the same name with `-` for `_`; in Python it
is the field of the dataclass that heads the section. The defaults are those of `--preset paper`;
what the other presets have otherwise is at the end.
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
    rooms = [f.type for f in dataclasses.fields(config.Config) if inspect.isclass(f.type)]
    for room in [config.Config, *rooms]:
        if not dataclasses.is_dataclass(room):
            continue
        said = _docstrings(room)
        fields = [f for f in dataclasses.fields(room) if f.name in said]
        yield f"## {room.__name__}\n\n{inspect.getdoc(room)}\n"
        yield "| setting | default | |\n|---|---|---|"
        for field in fields:
            default = "" if field.default is dataclasses.MISSING else f"`{_plain(field.default)}`"
            yield f"| `{field.name}` | {default} | {said[field.name]} |"
        yield ""
    yield "## Presets\n"
    paper = PRESETS["paper"]("")
    for name, preset in PRESETS.items():
        settings = differing_settings(paper, preset(""))
        values = ", ".join(f"`{key}` = `{_plain(value)}`" for key, value in settings.items())
        yield f"- `{name}`: {values or 'the defaults'}"
    yield ""


def _docstrings(room: type) -> dict[str, str]:
    """The string behind each field."""
    (found,) = ast.parse(inspect.getsource(room)).body
    assert isinstance(found, ast.ClassDef)
    said = {}
    for field, text in zip(found.body, found.body[1:], strict=False):
        named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if named and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            said[field.target.id] = " ".join(str(text.value.value).split()).replace("|", "\\|")
    return said


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
