"""The user's folders: where this project keeps what later commands use again."""

import atexit
import contextlib
import csv
import fcntl
import functools
import io
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ahl_jax.common.errors import UserError

log = logging.getLogger(__name__)


def user_folder(variable: str, *inside: str) -> Path:
    """The folder that an environment variable names, else one in the user's cache.

    Args:
        variable: the environment variable.
        inside: folders below ``ahl_jax`` in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        UserError: if the user has no home.
    """
    if chosen := os.environ.get(variable):
        return Path(chosen)
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise UserError(
            f"this user has no home folder to keep files in; set {variable} to a folder"
        ) from error
    return base.joinpath("ahl_jax", *inside)


def default_folder() -> Path:
    """$AHL_CACHE, else ahl_jax in $XDG_CACHE_HOME, else ~/.cache/ahl_jax.

    For a user who has no home, one that is gone when the process ends.

    Raises:
        UserError: if there is no place for that one either.
    """
    try:
        return user_folder("AHL_CACHE")
    except UserError as error:
        return _temporary_folder(str(error))


@functools.cache
def _temporary_folder(why: str) -> Path:
    """A folder for as long as the process lasts, always the same one."""
    try:
        folder = tempfile.mkdtemp(prefix="ahl_jax-")
    except OSError as error:
        raise UserError(why) from error
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    log.warning("features and compiled programs are not kept, as %s", why)
    return Path(folder)


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


def replace_file(path: Path, content: str | bytes, *, several_writers: bool = False) -> None:
    """Replace a file in one step, so that a kill leaves the old one or the new one.

    Args:
        path: the file.
        content: text becomes UTF-8.
        several_writers: whether others may write the same file at the same time; then what a kill
            leaves unfinished stays beside it, and a power failure may cost the file.

    Raises:
        OSError: if it cannot be written; nothing unfinished is left then.
    """
    name = f".{path.name}.{uuid.uuid4().hex}.tmp" if several_writers else f".{path.name}.tmp"
    temporary = path.with_name(name)
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if not several_writers:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def writing(
    target: Path,
    advice: str,
    what: str = "",
    errors: tuple[type[Exception], ...] = (OSError,),
) -> Iterator[None]:
    """Turn a failure to write into one sentence.

    Args:
        target: the file or folder.
        advice: the way out.
        what: the things that are written, if it says more than the target does.
        errors: what stands for a failure to write; some libraries raise others than OSError.

    Raises:
        UserError: saying so.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # Of stdout.
    except errors as error:
        things = f"{what} " if what else ""
        raise UserError(f"cannot write {things}to {target} ({reason(error)}); {advice}") from error


def reason(error: Exception) -> str:
    """The reason of a failure, in a few words."""
    if "No space left" in str(error):
        return "the disk is full"
    if said := getattr(error, "strerror", None):
        return said.lower()
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
