"""Files replaced in one step, folders of one process or user, failures to write in one sentence."""

import contextlib
import csv
import errno
import fcntl
import io
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ahl_jax import UserError
from ahl_jax.common import stop
from ahl_jax.common.files import (
    _temporary_folder,
    alone,
    as_written,
    csv_line,
    csv_text,
    default_folder,
    holder,
    replace_file,
    writing,
)
from ahl_jax.data.records import data_folder
from ahl_jax.features import Store


@pytest.mark.parametrize("durable", [False, True])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    path = tmp_path / "file.txt"
    replace_file(path, "old", durable=durable)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new", durable=durable)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_failure_to_write_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError) as error,
        writing(tmp_path / "file", "name another folder", "features"),
    ):
        (tmp_path / "file" / "below").mkdir()
    assert str(error.value) == (
        f"cannot write features to {tmp_path}/file (not a directory); name another folder"
    )


def test_a_closed_pipe_is_no_failure_to_write(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError), writing(tmp_path, "name another folder"):
        raise BrokenPipeError


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user without $HOME and without an entry in the system's list."""

    def nobody(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_CACHE_HOME", "AHL_CACHE", "AHL_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    _temporary_folder.cache_clear()
    yield
    _temporary_folder.cache_clear()


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_goes_on_without_a_cache(
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = default_folder()
    assert folder.is_dir()
    assert default_folder() == Store().folder == folder
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "kept" in line] == [
        "features and compiled programs are not kept, as this user has no home folder to keep "
        "files in; set AHL_CACHE to a folder"
    ]
    with pytest.raises(UserError, match=r"no home folder .* set AHL_DATA to a folder"):
        data_folder()


@pytest.mark.usefixtures("homeless")
def test_without_a_temporary_folder_either_it_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(UserError, match="set AHL_CACHE to a folder"):
        default_folder()


HOLDER = """
    import sys, time
    from pathlib import Path
    from ahl_jax.common import files
    if sys.argv[2:]:
        files.socket.gethostname = lambda: sys.argv[2]
    with files.alone(Path(sys.argv[1]), lambda: None):
        print("held", flush=True)
        time.sleep(60)
"""


@contextlib.contextmanager
def _held(folder: Path, *host: str) -> Iterator[subprocess.Popen]:
    """Another process keeps the folder until it is killed."""
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder), *host]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _refuse() -> None:
    raise UserError("busy")


def _no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def _locks_of_one_machine(*_: object) -> None:
    """As a network share's may be: they succeed, whatever other machines hold."""


def test_a_folder_is_one_processs_until_it_is_killed(tmp_path: Path) -> None:
    with _held(tmp_path) as other:
        assert holder(tmp_path) == f" (process {other.pid} on {socket.gethostname()})"
        with pytest.raises(UserError, match="busy"), alone(tmp_path, _refuse):
            pass
    began = time.monotonic()
    with alone(tmp_path, _refuse):
        assert holder(tmp_path) == f" (process {os.getpid()} on {socket.gethostname()})"
    assert time.monotonic() - began < 1
    assert holder(tmp_path) == ""


@pytest.mark.parametrize("flock", [_no_locks, _locks_of_one_machine])
def test_a_folder_is_one_processs_where_locks_do_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: Callable[..., None]
) -> None:
    monkeypatch.setattr(fcntl, "flock", flock)
    with _held(tmp_path, "elsewhere"):
        with pytest.raises(UserError, match="busy"), alone(tmp_path, _refuse):
            pass
        assert holder(tmp_path).endswith(" on elsewhere)")
    # Whoever was killed writes no more.
    monkeypatch.setattr("ahl_jax.common.files._PATIENCE", 0.5)
    with alone(tmp_path, _refuse):
        assert holder(tmp_path).startswith(f" (process {os.getpid()} ")


def test_who_waits_for_a_folder_hears_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop._state, "asked", signal.SIGTERM)
    with (
        _held(tmp_path),
        pytest.raises(KeyboardInterrupt),
        alone(tmp_path, lambda: None),
    ):
        pass


@pytest.mark.parametrize("length", [246, 247, 255])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path, length: int) -> None:
    replace_file(tmp_path / ("n" * length), "text")
    assert os.listdir(tmp_path) == ["n" * length]


def test_text_with_a_name_that_is_no_utf_8_can_be_written(tmp_path: Path) -> None:
    replace_file(tmp_path / "run.json", json.dumps("caf\udce9", ensure_ascii=False))
    assert json.loads((tmp_path / "run.json").read_text("utf-8")) == "caf\udce9"


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+x", "-x", "@x", "\tx", "\rx", "'=x", "''=x", "'tis", "-1.5e-3", "+1", "-inf", "-",
     "", "a\n=1", '"', "-1_0", "'", "1,5", ";=x"],
)  # fmt: skip
def test_no_cell_is_a_formula_and_each_is_read_back(text: str) -> None:
    written = csv_line([text, "next"])
    (cell, _), *more = csv.reader(io.StringIO(written, newline=""))
    assert not more
    assert as_written(cell) == text
    assert csv_text([{"name": text, "other": "next"}]) == f"name,other\n{written}"
    try:
        float(text.replace("_", "x"))
        assert cell == text
    except ValueError:
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))


def test_numbers_stay_as_they_are_in_cells() -> None:
    assert csv_line([-1.5, np.float32(-2), -3, None, "-1.5"]) == "-1.5,-2.0,-3,,-1.5\n"


def test_of_many_writers_at_once_one_whole_file_is_left(tmp_path: Path) -> None:
    path, texts = tmp_path / "model.bin", [f"{i}" * 200_000 for i in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda text: replace_file(path, text), texts * 4))
    assert path.read_text() in texts
    assert os.listdir(tmp_path) == ["model.bin"]
