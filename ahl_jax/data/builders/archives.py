"""Unpacking archives: nothing leads out of the folder, and damage is noticed."""

import fnmatch
import logging
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ahl_jax.common.errors import UserError
from ahl_jax.data.builders.sources import regular_file

log = logging.getLogger(__name__)

_DAMAGED = (
    OSError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    tarfile.TarError,
    lzma.LZMAError,
    zlib.error,
)
"""Errors that damaged archives raise."""

_TAR = (".tar", ".tar.xz", ".tar.gz", ".tgz", ".tar.bz2")


def unpack(folder: Path, names: Sequence[str], into: Path) -> bool:
    """Unpacks the zip and tar archives with certain names, each into a folder of its own.

    Lists beside them (CSV files) are copied.

    Args:
        folder: The archives are right in it.
        names: Their names without the endings, in any case; ``*`` stands for anything.
        into: A new folder.

    Returns:
        Whether there were any.

    Raises:
        UserError: if an archive is damaged, leads out of the folder, or does not fit on the disk.
    """
    found = False
    for archive in sorted(folder.iterdir()):
        name = archive.name.lower()
        if name.endswith(".csv"):
            into.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(regular_file(archive), into / archive.name)
        stem, _, ending = name.partition(".")
        if f".{ending}" not in (".zip", *_TAR) or not archive.is_file():
            continue
        if not any(fnmatch.fnmatchcase(stem, wanted.lower()) for wanted in names):
            continue
        found = True
        target = into / stem
        while target.exists():
            target = target.with_name(target.name + "_")
        target.mkdir(parents=True)
        log.info("unpacking %s", archive)
        try:
            (_unzip if name.endswith(".zip") else _untar)(archive, target)
        except _DAMAGED as error:
            if isinstance(error, OSError) and error.errno:
                raise  # the disk's fault, not the archive's
            raise UserError(
                f"{archive} cannot be unpacked ({str(error) or type(error).__name__}); download "
                "it again"
            ) from error
    return found


def _unzip(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        members = [m for m in packed.infolist() if not m.is_dir()]
        for member in members:
            _check_member(archive, member.filename)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise UserError(f"{archive} has a link in it, {member.filename}; download it again")
        _check_room(archive, target, sum(member.file_size for member in members))
        packed.extractall(target, members)


def _untar(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as packed:
        # One member after the other: a compressed archive would have to be read twice to know
        # all names first.
        for member in packed:
            _check_member(archive, member.name)
            if member.isfile():
                _check_room(archive, target, member.size)
                packed.extract(member, target, filter="data")
            elif not member.isdir():
                raise UserError(f"{archive} has a link in it, {member.name}; download it again")
        # tarfile takes a damaged header for the end. What is left must be nothing but padding, and
        # reading it checks the checksum that the compression keeps.
        while rest := packed.fileobj.read(2**20) if packed.fileobj else b"":
            if rest.strip(b"\0"):
                raise tarfile.ReadError("damaged in the middle")


def _check_member(archive: Path, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]):
        raise UserError(f"{archive} has a member that leads out of it, {name!r}; download it again")


def _check_room(archive: Path, target: Path, needed: int) -> None:
    if needed > shutil.disk_usage(target).free:
        raise UserError(
            f"{archive} does not fit on the disk of {target}; make room, or set AHL_DATA to "
            "another folder"
        )
