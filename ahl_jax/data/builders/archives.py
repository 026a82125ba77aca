"""Unpacking archives: nothing leads out of the folder, and damage is noticed."""

import bz2
import contextlib
import fnmatch
import gzip
import io
import logging
import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from ahl_jax.common.errors import UserError
from ahl_jax.data.builders.sources import regular_file

log = logging.getLogger(__name__)

_DAMAGED = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    tarfile.TarError,
    lzma.LZMAError,
    zlib.error,
)
"""Errors that damaged archives raise."""

_TAR = (".tar", ".tar.xz", ".tar.gz", ".tgz", ".tar.bz2")

_COMPRESSED = {b"\x1f\x8b": gzip, b"BZh": bz2, b"\xfd7zXZ": lzma}
"""The start of a compressed file, and the module that reads it."""

_BLOCK = 2**20
"""Bytes that are read at once, at most."""

_DENSITY, _SPARE = 100, 2**30
"""Bytes that a byte of an archive may become, and that any archive may."""

_TOO_MUCH = "it unpacks to far more than images do"


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
        needed = sum(member.file_size for member in members)
        if needed > _most(archive):
            raise zipfile.BadZipFile(_TOO_MUCH)
        _check_room(archive, target, needed)
        packed.extractall(target, members)


def _untar(archive: Path, target: Path) -> None:
    with archive.open("rb") as plain, contextlib.ExitStack() as stack:
        start = plain.read(8)
        plain.seek(0)
        module = next((each for mark, each in _COMPRESSED.items() if start.startswith(mark)), None)
        file = stack.enter_context(module.open(plain)) if module else plain
        spared = _Spared(file, _most(archive))
        packed = stack.enter_context(tarfile.open(fileobj=spared, mode="r:"))
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
        while rest := spared.read(_BLOCK):
            if rest.strip(b"\0"):
                raise tarfile.ReadError("damaged in the middle")


class _Spared(io.BufferedIOBase):
    """A tar file that a stranger may have made to unpack to any size.

    Args:
        file: its bytes, as they are without compression.
        most: how many of them may be read.
    """

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file, self._left = file, most

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        return self._file.seek(place, whence)

    def tell(self) -> int:
        """As of any file."""
        return self._file.tell()

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes.

        Raises:
            tarfile.ReadError: if it is too much at once, as headers are that claim any size, or
                too much in all.
        """
        wanted = _BLOCK + 1 if size is None or size < 0 else size
        content = self._file.read(min(wanted, _BLOCK + 1))
        self._left -= len(content)
        if len(content) > _BLOCK or self._left < 0:
            raise tarfile.ReadError(_TOO_MUCH)
        return content


def _most(archive: Path) -> int:
    """Bytes that an archive of images may have once it is unpacked."""
    return max(_SPARE, _DENSITY * archive.stat().st_size)


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
