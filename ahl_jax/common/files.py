"""The user's folders: where this project keeps what later commands use again."""

import atexit
import contextlib
import csv
import errno
import fcntl
import functools
import hashlib
import io
import json
import logging
import os
import re
import shutil
import socket
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ahl_jax.common import remote, stop
from ahl_jax.common.errors import UserError
from ahl_jax.common.locks import kept
from ahl_jax.common.text import first_line

log = logging.getLogger(__name__)
_LOCK = ".lock"

_LONGEST = 200
"""Bytes of a file's name; most file systems allow 255, and some fewer."""

_BEAT = 2.0
"""Seconds after which the holder of a lock renews its time."""

_PATIENCE = 4 * _BEAT
"""Seconds without renewal after which the holder is gone."""

_LONGEST_LOCK = 1024
"""Bytes of a lock file."""

_LARGEST, _LARGEST_JSON = 2**28, 2**25
"""Bytes of a text, and letters of JSON: a list of a million images, and scores of as many."""

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan)", re.IGNORECASE)


def user_folder(variable: str | None, *inside: str) -> Path:
    """The folder that an environment variable names, else one in the user's cache.

    Args:
        variable: the environment variable; None for none.
        inside: folders below ``ahl_jax`` in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        UserError: if the user has no home.
    """
    if chosen := variable and os.environ.get(variable):
        return remote.any_path(chosen)
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise UserError(
            "this user has no home folder to keep files in; set "
            f"{variable or 'XDG_CACHE_HOME'} to a folder"
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

    A process that is killed keeps nobody out. Where the file system has no locks, or those of each
    machine apart, a process is there as long as it renews the time of its lock file.

    Args:
        folder: made if missing; the lock is its file ``.lock``, which stays.
        busy: called where another process is there already, before waiting until it is gone.

    Raises:
        OSError: if the folder cannot be written to.
    """
    path = folder / _LOCK
    if remote.url_of(folder):
        with remote.held(path, busy):
            yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0, opener=_plain) as file:
        beat, release = functools.partial(_beat, file), functools.partial(_release, file)
        with kept(lambda: _taken(file, path), busy, beat, release):
            yield


def holder(folder: Path) -> str:
    """Who keeps others out of a folder, in brackets after a blank; empty if it is not known."""
    try:
        process, host, *_ = read_file(folder / _LOCK, _LONGEST_LOCK).decode().split()
    except (OSError, ValueError):
        return ""
    return f" (process {process} on {host})"


def _taken(file: BinaryIO, path: Path) -> bool:
    """Whether the lock is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locks = True
    except BlockingIOError:
        return False
    except OSError:
        locks = False
    host = socket.gethostname()
    found, _ = before = _seen(path)
    # One machine's locks may mean nothing to another.
    if found and not (locks and found.decode(errors="replace").split()[1:] == [host]):
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            stop.check()
            time.sleep(0.1)
            if _seen(path) != before:
                if locks:
                    fcntl.flock(file, fcntl.LOCK_UN)
                return False
    mine = f"{os.getpid()} {host}\n".encode()
    file.truncate(0)
    file.write(mine)
    if not locks:
        # Of two that came at once, the one whose name stays.
        time.sleep(_BEAT / 2)
        return _seen(path)[0] == mine
    return True


def _seen(path: Path) -> tuple[bytes, int]:
    """What a lock file says and when it was renewed, opened anew as NFS looks only then."""
    with path.open("rb", buffering=0) as file:
        return file.read(_LONGEST_LOCK), os.fstat(file.fileno()).st_mtime_ns


def _beat(file: BinaryIO, done: threading.Event) -> None:
    while not done.wait(_BEAT):
        with contextlib.suppress(OSError):
            os.utime(file.fileno())


def _release(file: BinaryIO) -> None:
    """Nobody has to wait and see whether we are alive."""
    with contextlib.suppress(OSError):
        file.truncate(0)


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys as CSV, the keys as the header; values as by ``csv_line``."""
    names = list(rows[0])
    return csv_line(names) + "".join(csv_line(map(row.get, names)) for row in rows)


def csv_line(values: Iterable[Any]) -> str:
    """Values as a line of CSV, in which a spreadsheet finds no formula.

    Text that one would take for a formula gets an apostrophe before it, see ``as_written``.
    """
    text = io.StringIO()
    # Those letters of a line's end are quoted that this one has.
    csv.writer(text, lineterminator="\r\n").writerow(map(_cell, values))
    return text.getvalue().removesuffix("\r\n") + "\n"


def as_written(cell: str) -> str:
    """The text that ``csv_line`` made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _cell(value: Any) -> Any:
    formula = isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return f"'{value}" if formula else value


def read_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: if it is none, too long or too deeply nested.
    """
    if len(text) > _LARGEST_JSON:
        raise ValueError(f"it has more than {_LARGEST_JSON:,} letters")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_file(path: Path, most: int = _LARGEST) -> bytes:
    """The content of a file in a folder that may be a stranger's.

    Args:
        path: the file, or an object in object storage.
        most: bytes that it may have.

    Raises:
        OSError: if it cannot be read, or is a link or a device, which may lead anywhere.
        ValueError: if it is larger.
    """
    if remote.url_of(path):
        return remote.read(path, most)
    with open(path, "rb", opener=_plain) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise ValueError(f"it has more than {most:,} bytes")
        return file.read()


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is in a folder or is the folder, wherever links lead."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # Links in a circle, names that are none.
        return False


def _plain(path: str, flags: int) -> int:
    """As ``os.open``, of what is no link, pipe or device; it waits for nobody to write to it."""
    name = Path(path).name
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, f"{name} is a link", path) from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, f"{name} is not a file", path)
    return file


def replace_file(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Replace a file in one step, so that a kill leaves the old one or the new one.

    Others may write the same file at the same time. A kill may leave a hidden file beside it.

    Args:
        path: the file, or an object in object storage.
        content: text becomes UTF-8.
        durable: whether the new file outlasts a power failure, too, which takes a moment.

    Raises:
        OSError: if it cannot be written; nothing unfinished is left then.
    """
    content = utf_8(content) if isinstance(content, str) else content
    if remote.url_of(path):
        remote.write(path, content)
        return
    # Short enough where the file's own name is as long as a name can be.
    name = path.name
    if len(os.fsencode(name)) > _LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    # A new file, as one that is there may be a link to another place.
    temporary = path.with_name(f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def make_folder(folder: Path) -> None:
    """Make a folder and those that it is in, unless it is there; object storage needs none."""
    if not remote.url_of(folder):
        folder.mkdir(parents=True, exist_ok=True)


def check_no_file(path: Path, option: str) -> None:
    """Refuse a file in the place of a folder, which need not exist.

    Args:
        path: the folder.
        option: the setting that names it.

    Raises:
        UserError: saying so.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; give `{option}` a folder")


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it; nothing where there is none."""
    if remote.url_of(path):
        remote.remove(path)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def utf_8(text: str) -> bytes:
    """Text as UTF-8; a name that is not has escapes, which JSON reads back as they were."""
    return text.encode(errors="backslashreplace")


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
    if "File too large" in str(error):
        return "files may not be that large here, see ulimit -f"
    if said := getattr(error, "strerror", None):
        return said.lower()
    return first_line(error)
