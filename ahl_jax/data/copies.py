"""Copies of folders in object storage, so that images are read from files of this machine.

They are in ``copies`` of the folder of prepared data sets. A command that begins with a folder
copies what is new or has changed in it, and removes what is gone.
"""

import logging
import os
from pathlib import Path

from ahl_jax.common import remote
from ahl_jax.common.errors import UserError
from ahl_jax.common.files import alone, holder, writing
from ahl_jax.common.text import counted
from ahl_jax.data.formats import may_be_image
from ahl_jax.data.records import data_folder

log = logging.getLogger(__name__)

_OTHERS = (".csv", "predict.json")
"""Endings of what is copied beside images: tables, and what tells results from photographs."""


def copy_of(given: Path | str) -> Path:
    """Where the copy of a folder or file is, or will be; a path of this machine stays as it is.

    Raises:
        UserError: as ``ahl_jax.common.remote.url_of`` does.
    """
    url = remote.url_of(given)
    return Path(given) if url is None else _home().joinpath(*url.split("://"))


def origin(path: Path) -> str:
    """The URL that a file is the copy of; the path itself where it is none."""
    try:
        scheme, *parts = path.relative_to(_home()).parts
    except (UserError, ValueError):  # There are no copies, or this is none.
        return path.as_posix()
    return f"{scheme}://{'/'.join(parts)}"


def fetched(given: Path | str) -> Path:
    """A folder or file on this machine, copied from object storage where it is there.

    Of a folder all that may be an image is copied, and tables; with a table, all of its folder.

    Raises:
        UserError: if the storage cannot be read, or copies cannot be written.
    """
    here = copy_of(given)
    if remote.url_of(given) is None:
        return here
    there = remote.any_path(given)
    with (
        writing(_home(), "make room there, or set AHL_DATA to another folder", "copies"),
        alone(_home(), _wait),
    ):
        if not there.is_file():
            _update(there, here, remote.objects(there))
        elif there.suffix.lower() == ".csv":
            _update(there.parent, here.parent, remote.objects(there.parent))
        else:
            about = remote.objects(there.parent).get(there.name)
            _update(there.parent, here.parent, {there.name: about} if about else {}, whole=False)
    return here


def _update(
    there: Path, here: Path, found: dict[str, tuple[int, int]], *, whole: bool = True
) -> None:
    """Make files what the objects are.

    Args:
        there: the folder in object storage.
        here: the folder of its copy.
        found: objects in it, as by ``ahl_jax.common.remote.objects``.
        whole: whether these are all, and other files here are to go.
    """
    found = {name: about for name, about in found.items() if _is_wanted(name)}
    files = {path.relative_to(here).as_posix(): path for path in here.rglob("*") if path.is_file()}
    known = {name: (path.stat().st_size, path.stat().st_mtime_ns) for name, path in files.items()}
    if whole:
        for name in files.keys() - found.keys():
            files[name].unlink()
    new = {name: about for name, about in found.items() if known.get(name) != about}
    if not new:
        return
    size = sum(size for size, _ in new.values()) / 2**20
    log.info("copying %s of %s, %.0f MiB, to %s", counted(len(new), "file"), there, size, here)
    remote.download(there, new, here)
    # What a kill leaves unfinished has the time of now.
    for name, (_, changed) in new.items():
        os.utime(here / name, ns=(changed, changed))


def _is_wanted(name: str) -> bool:
    return may_be_image(Path(name)) or name.endswith(_OTHERS)


def _home() -> Path:
    return data_folder() / "copies"


def _wait() -> None:
    log.info("another process copies files to %s%s; waiting for it", _home(), holder(_home()))
