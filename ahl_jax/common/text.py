"""Numbers and names in words."""

import difflib
import re
import statistics
from collections.abc import Collection, Iterable, Sequence

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Steers a terminal, or the direction of what follows."""


def mean_std(values: Sequence[float], digits: int) -> str:
    """``mean ± standard deviation`` in words; one value has no deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def printable(name: object) -> str:
    """A name in one line of UTF-8: what else a file's name may hold becomes escapes."""
    text = str(name).encode(errors="backslashreplace").decode()
    return _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)


def counted(number: int, what: str, one: str = "", more: str = "s") -> str:
    """A number of things, in words."""
    return f"{number} {what}{one if number == 1 else more}"


def first_line(error: Exception) -> str:
    """The beginning of an error's message; its name where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def nearest(given: str, known: Collection[str]) -> str | None:
    """A question whether the nearest of the names is meant, if there is a near one."""
    near = difflib.get_close_matches(given, known, 1)
    return f"did you mean {near[0]}?" if near else None


def pace(seconds: float, epochs: int) -> str:
    """In words: what an epoch takes, and how long so many more will."""
    left = round(seconds * epochs)
    return f"{seconds:.1f} s  {left // 60}:{left % 60:02d} left"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""

    def line(cells: Sequence[str]) -> str:
        # A bar in a name would end its cell.
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(head), "|---" * len(head) + "|", *map(line, rows)]
