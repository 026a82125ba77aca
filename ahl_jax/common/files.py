"""The user's folders: where this project keeps what later commands use again."""

import contextlib
import csv
import fcntl
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


def user_folder(variable: str, *inside: str) -> Path:
    """The folder that an environment variable names, else one in the user's cache.

    Args:
        variable: the environment variable.
        inside: folders below ``ahl_jax`` in $XDG_CACHE_HOME or ~/.cache.
    """
    if chosen := os.environ.get(variable):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").joinpath("ahl_jax", *inside)


def default_folder() -> Path:
    """$AHL_CACHE, else ahl_jax in $XDG_CACHE_HOME, else ~/.cache/ahl_jax."""
    return user_folder("AHL_CACHE")


@contextlib.contextmanager
def alone(folder: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Keep other processes out of a folder.

    Args:
        folder: made if missing; the lock is its file ``.lock``, which stays.
        busy: called where another process is there already, before waiting until it is gone.

    Raises:
        OSError: if the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys as CSV, the keys as the header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def replace_file(path: Path, content: str | bytes) -> None:
    """Replace a file in one step, so that a kill leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
