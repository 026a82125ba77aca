"""Files that are replaced in one step, and failures to write in one sentence."""

import errno
import os
from pathlib import Path

import pytest

from ahl_jax import UserError
from ahl_jax.common.files import replace_file, writing


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
