"""Options in messages and help."""

import ast
import re
import shlex
from collections.abc import Collection


def with_options(text: str, names: Collection[str]) -> str:
    """A text that has options where it writes settings as Python does, in backticks.

    ``held_out`` becomes --held-out, ``shots=0, method="fit"`` becomes --shots 0 --method fit, and
    ``whiten=False`` becomes --no-whiten. Whatever else is in backticks stays.

    Args:
        text: a message, or help.
        names: the settings that are options, by their names in Python.
    """
    return re.sub("`([^`]+)`", lambda found: _options(found[1], names) or found[0], text)


def _options(code: str, names: Collection[str]) -> str | None:
    """A name, or the named arguments of a call, as options; None where it is something else."""
    if code in names:
        return _option(code)
    try:
        call = ast.parse(f"call({code})", mode="eval").body
    except (SyntaxError, ValueError):
        return None
    if not isinstance(call, ast.Call) or call.args:
        return None
    given = {each.arg or "": each.value for each in call.keywords}
    if not given or not given.keys() <= set(names):
        return None
    return " ".join(_with_value(name, value) for name, value in given.items())


def _with_value(name: str, value: ast.expr) -> str:
    said = value.value if isinstance(value, ast.Constant) else ast.unparse(value)
    if isinstance(said, bool):
        return _option(name if said else f"no_{name}")
    return f"{_option(name)} {shlex.quote(str(said))}"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
