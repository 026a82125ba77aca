"""The user's folders: where this project keeps what later commands use again."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


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
