"""The words of `ahl serve`."""

import sys
from pathlib import Path

import pytest

from ahl_jax.cli.serve import named
from ahl_jax.common.errors import UserError
from tests.cli.test_cli import Capture, refused
from tests.runs import FinishedRun


def test_detectors_are_called_as_their_folders_or_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path)
    found = named(["runs/screw", "a=b", "other=runs/screw", "x=y=z"])
    assert found == {
        "screw": Path("runs/screw"), "a=b": Path("a=b"), "other": Path("runs/screw"),
        "x": Path("y=z"),
    }  # fmt: skip
    assert list(named(["."])) == [tmp_path.name]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["x/a", "y/a"], "two detectors are called a; name one of them with NAME=RUN"),
        (["/"], "'/' gives no name to its detector"),
        (["a/b=c"], "'a/b=c' gives no name to its detector; write it as NAME=RUN"),
    ],
)
def test_a_name_is_part_of_an_address_and_no_others(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        named(words)


def test_a_missing_library_is_named_with_the_way_to_it(
    finished: FinishedRun, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    said = refused(capsys, "serve", finished.workdir)
    assert "needs python_multipart, which is not installed; run `pip install prometheus" in said
