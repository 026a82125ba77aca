"""Files that are replaced in one step, failures to write in one sentence, the user's folders."""

import errno
import os
import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ahl_jax import UserError
from ahl_jax.common.files import _temporary_folder, default_folder, replace_file, writing
from ahl_jax.data.records import data_folder
from ahl_jax.features import Store


@pytest.mark.parametrize("several_writers", [False, True])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several_writers: bool
) -> None:
    path = tmp_path / "file.txt"
    replace_file(path, "old", several_writers=several_writers)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new", several_writers=several_writers)
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
