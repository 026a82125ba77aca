"""Folders and files in object storage, gs:// and s3://, wherever the user names one."""

import contextlib
import functools
import logging
import os
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, cast

from ahl_jax.common import stop
from ahl_jax.common.errors import UserError
from ahl_jax.common.libraries import library
from ahl_jax.common.locks import kept
from ahl_jax.common.text import first_line

log = logging.getLogger(__name__)

_LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}
_OTHERS = ("abfs", "az", "file", "ftp", "gcs", "hdfs", "hf", "http", "https", "s3a")
_URL = re.compile(rf"({'|'.join((*_LIBRARIES, *_OTHERS))}):/+(.*)", re.DOTALL)
"""With one slash as with two, which is how pathlib keeps it."""

_PATTERN = re.compile(r"[*?\[\]]|(^|/)\.\.?(/|$)")
"""Names that the libraries take for several, and parts that lead elsewhere."""

_BEAT = 5.0
"""Seconds after which the holder of a lock renews it; Google allows one write a second."""

_PATIENCE = 6 * _BEAT
"""Seconds without renewal after which the holder is gone."""

_FAILING = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "s3fs")
"""Packages whose errors are failures of the storage."""


def any_path(given: Path | str) -> Path:
    """A path here, or in object storage where it is a URL.

    The latter is an ``etils.epath.Path``: no ``Path``, but with the methods of one that folders of
    runs and of features need. Whoever needs a file of the operating system uses a copy.

    Raises:
        UserError: if it is another URL, a name in it cannot be used, or the library for its scheme
            is missing.
    """
    url = url_of(given)
    if url is None:
        return Path(given)
    if url.endswith("://") or _PATTERN.search(url):
        raise UserError(
            f"{url} cannot be used; name a bucket and a folder in it, without any of * ? [ ] and .."
        )
    storage(url)
    from etils import epath

    return cast(Path, epath.Path(url))


def resolved(given: Path | str) -> Path:
    """As ``any_path``, absolute and without links, so that one folder has one path.

    Raises:
        UserError: as ``any_path`` does.
    """
    path = any_path(given)
    return path if url_of(path) else path.resolve()


def url_of(given: PurePath | str) -> str | None:
    """The URL of a path in object storage; None for a path here.

    Raises:
        UserError: if it is another URL.
    """
    found = _URL.fullmatch(os.fspath(given))
    if found is None:
        return None
    scheme, place = found[1], found[2].rstrip("/")
    url = f"{scheme}://{place}"
    if scheme not in _LIBRARIES:
        raise UserError(f"{url} is no path of this machine; of URLs, only gs:// and s3:// are read")
    return url


def storage(path: Path | str) -> Any:
    """The fsspec file system of a path in object storage.

    Raises:
        UserError: if its library is missing.
    """
    return _storage(os.fspath(path).partition(":")[0])


@functools.cache
def _storage(scheme: str) -> Any:
    # Imported late: paths of this machine need none of it.
    import fsspec

    # Where TensorFlow is installed, epath would leave buckets to it.
    os.environ.setdefault("EPATH_USE_TF", "false")
    # Other processes write there too.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
    # It warns of kinds of buckets that it cannot tell apart.
    logging.getLogger("gcsfs").setLevel(logging.ERROR)
    library(_LIBRARIES[scheme], f"{scheme}://", _LIBRARIES[scheme])
    return fsspec.filesystem(scheme)


def failure(what: str, error: Exception) -> UserError:
    """A sentence on what the storage says."""
    return UserError(
        f"{what} cannot be read or written ({first_line(error)}); check the bucket, and who may "
        "use it"
    )


def is_failure(error: Exception) -> bool:
    """Whether the libraries for object storage raised it."""
    return any(kind.__module__.partition(".")[0] in _FAILING for kind in type(error).__mro__)


def objects(folder: Path) -> dict[str, tuple[int, int]]:
    """The objects below a folder by their paths in it: bytes, and nanoseconds since 1970.

    Those whose names are no paths, as they may be in object storage, are left out.
    """
    system, found = storage(folder), {}
    start = f"{system._strip_protocol(str(folder))}/"
    with _told(folder):
        every = system.find(str(folder), detail=True)
    for name, about in every.items():
        inner = name.removeprefix(start)
        changed = about.get("mtime") or about["LastModified"]
        if name == inner or not inner or "//" in inner or inner[-1] == "/" or inner[0] == "/":
            continue
        if re.search(r"(^|/)\.\.?(/|$)", inner) is None:
            found[inner] = (about["size"], round(changed.timestamp() * 1e6) * 1000)
    return found


def download(folder: Path, found: Mapping[str, tuple[int, int]], into: Path) -> None:
    """Copy objects of a folder, as ``objects`` finds them, to a folder here, several at a time.

    Raises:
        UserError: if one cannot be read, or has changed.
    """
    for name in found:
        (into / name).parent.mkdir(parents=True, exist_ok=True)
    with _told(folder):
        if found:
            storage(folder).get([f"{folder}/{n}" for n in found], [str(into / n) for n in found])
        for name, (size, _) in found.items():
            if (into / name).stat().st_size != size:
                raise OSError(f"{name} came in part, or has changed")


def upload(here: Path, names: Iterable[str], folder: Path) -> None:
    """Copy files of a folder here to a folder of objects, several at a time; each appears whole."""
    names = list(names)
    with _told(folder):
        if names:
            storage(folder).put([str(here / n) for n in names], [f"{folder}/{n}" for n in names])


def remove(path: Path) -> None:
    """Remove an object, or all below a folder; nothing where there is none."""
    system = storage(path)
    with _told(path):
        found = system.find(str(path))
        # Of several at once, names are taken for patterns.
        for name in filter(_PATTERN.search, found):
            system.rm_file(name)
        if plain := [name for name in found if not _PATTERN.search(name)]:
            system.rm(plain)


def read(path: Path, most: int) -> bytes:
    """The content of an object.

    Raises:
        OSError: if it is not there, or cannot be read.
        ValueError: if it has more than ``most`` bytes.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return content


def write(path: Path, content: bytes) -> None:
    """Write an object in one step."""
    with _told(path):
        storage(path).pipe_file(url_of(path), content)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Whatever the storage says becomes a sentence."""
    try:
        yield
    except Exception as error:
        if not (isinstance(error, OSError) or is_failure(error)):
            raise
        raise failure(str(path), error) from error


@contextlib.contextmanager
def held(lock: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Keep other processes out, by an object that its holder renews and removes.

    Of those that find no object, one creates it; an object that is not renewed is replaced. A
    holder that finds another's name in it, as after it was suspended, is interrupted.

    Args:
        lock: the object.
        busy: called where another process is there already, before waiting until it is gone.
    """
    mine = f"{os.getpid()} {socket.gethostname()} {uuid.uuid4().hex}"
    beat, release = (functools.partial(each, lock, mine) for each in (_beat, _release))
    with kept(lambda: _taken(lock, mine), busy, beat, release):
        yield


def _taken(lock: Path, mine: str) -> bool:
    """Whether the lock is ours now."""
    system = storage(lock)
    with _told(lock):
        before = _content(lock)
        if before is not None:
            log.info("waiting %.0f seconds for a sign of who has %s", _PATIENCE, lock)
            end = time.monotonic() + _PATIENCE
            while time.monotonic() < end:
                stop.check()
                time.sleep(_BEAT / 5)
                if _content(lock) != before:
                    return False
            with contextlib.suppress(FileNotFoundError):
                system.rm_file(str(lock))
        try:
            system.pipe_file(str(lock), mine.encode(), mode="create")
        except FileExistsError:
            return False
        if before is not None:
            # Another one may have been about to remove what it took for the old one.
            time.sleep(_BEAT / 2)
        return _is_mine(lock, mine)


def _release(lock: Path, mine: str) -> None:
    with contextlib.suppress(Exception):
        if _is_mine(lock, mine):
            storage(lock).rm_file(str(lock))


def _content(lock: Path) -> bytes | None:
    try:
        return cast(bytes, storage(lock).cat_file(str(lock)))
    except FileNotFoundError:
        return None


def _is_mine(lock: Path, mine: str) -> bool:
    return (_content(lock) or b"").startswith(mine.encode())


def _beat(lock: Path, mine: str, done: threading.Event) -> None:
    count = 0
    while not done.wait(_BEAT):
        count += 1
        try:
            if not _is_mine(lock, mine):
                log.error("another process has taken over %s; stopping", lock.parent)
                os.kill(os.getpid(), signal.SIGINT)
                return
            write(lock, f"{mine} {count}".encode())
        except Exception as error:  # Of networks and their libraries; they may come back.
            log.debug("%s is not renewed: %s", lock, error)
