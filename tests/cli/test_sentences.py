"""Settings in messages as options."""

import logging
from pathlib import Path

import pytest

from ahl_jax.cli.mentions import with_options
from ahl_jax.cli.shell import run_command
from ahl_jax.common.errors import UserError
from ahl_jax.data.batches import iter_batches, left_out


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("raise `held_out`", "raise --held-out"),
        ("give `held_out=0.1`", "give --held-out 0.1"),
        ('add `method="fit"`', "add --method fit"),
        ("add `whiten=True`", "add --whiten"),
        ("give `whiten=False`", "give --no-whiten"),
        ('`shots=0, method="fit"`', "--shots 0 --method fit"),
        ("`method='my own'`", "--method 'my own'"),
        ("a file with `trunk_weights=FILE`", "a file with --trunk-weights FILE"),
        # What is no option stays as it is.
        ("run `ahl data list`", "run `ahl data list`"),
        ("`colour` and `colour=1`", "`colour` and `colour=1`"),
        ("`shots=0, colour=1`", "`shots=0, colour=1`"),
        ("`settings={'method': 'fit'}`", "`settings={'method': 'fit'}`"),
        ("`**shots` `)(` ``", "`**shots` `)(` ``"),
    ],
)
def test_settings_become_options(message: str, said: str) -> None:
    names = {"held_out", "method", "whiten", "shots", "trunk_weights"}
    assert with_options(message, names) == said


def test_a_name_in_a_message_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        logging.getLogger("ahl_jax").warning("left out: %s", "a\x1b[2J\r.png")
        raise UserError("no class a\x1b]0;mine\x07\nb; give `shots=1`")

    with pytest.raises(SystemExit):
        run_command(fail)
    said = capsys.readouterr().err
    assert "left out: a\\x1b[2J\\r.png\n" in said
    assert "no class a\\x1b]0;mine\\x07" in said
    assert "\x1b" not in said


def test_data_that_is_read_twice_is_spoken_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    def read_again() -> None:
        for room in ("data.folder", "data.folder", "inference.results", "inference.results"):
            logging.getLogger(f"ahl_jax.{room}").info("%s: 12 images, by %s", "screws", room)

    for _ in range(2):
        run_command(read_again)
        said = capsys.readouterr().err.splitlines()
        assert [line.count("data.folder") for line in said] == [1, 0, 0]


def test_an_image_that_is_left_out_twice_is_spoken_of_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")

    def read_again() -> None:
        for _ in range(2):
            assert list(iter_batches([bad], 16, 4, skip_bad=True, on_bad=left_out)) == []

    run_command(read_again)
    assert capsys.readouterr().err.count(str(bad)) == 1
