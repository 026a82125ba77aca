"""What `ahl` says of itself, and of words that it does not know."""

import re
from importlib import metadata

import pytest

from ahl_jax.backbones import TRUNKS
from ahl_jax.cli.main import COMMANDS, main
from ahl_jax.detectors import DETECTORS
from ahl_jax.pseudo import GENERATORS
from tests.cli.test_cli import Capture, refused


def _help(capsys: Capture, *words: str) -> str:
    main([*words])
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_without_the_traces_of_python(name: str, capsys: Capture) -> None:
    text = _help(capsys, *name.split(), "--help-all")
    assert f"usage: ahl {name}" in text
    assert not re.search(r"None|\(default: \)|default: (True|False)|WORKDIR", text)


def test_the_short_help_leaves_options_to_the_long_one(capsys: Capture) -> None:
    short, whole = _help(capsys, "train", "--help"), _help(capsys, "train", "--help-all")
    assert short.startswith("usage: ahl train DATA --workdir RUN [options]")
    assert "--shots INT" in short
    assert "--subsets" not in short
    left = len(set(re.findall(r" --[a-z-]+ ", whole)) - set(re.findall(r" --[a-z-]+ ", short)))
    assert left > 40
    assert re.search(r"`ahl train --help-all` shows \d+ more options.$", short)
    assert "--subsets INT T, the number" in whole


def test_help_has_the_defaults_of_the_preset(capsys: Capture) -> None:
    assert "--limit INT" in _help(capsys, "train", "--help-all")
    assert "(default: 24)" in _help(capsys, "train", "--preset", "debug", "--help-all")
    assert "(default: --whiten)" in _help(capsys, "train", "--help-all")
    assert "(default: --whiten)" not in _help(capsys, "train", "--preset", "paper", "--help-all")


def test_help_has_the_names_that_the_registries_have(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for registry in (DETECTORS, TRUNKS, GENERATORS):
        monkeypatch.setitem(registry, "brand_new", next(iter(registry.values())))  # type: ignore[arg-type]
    text = _help(capsys, "train", "--help-all")
    # Density is whitened, so that the new one is nothing for stage one.
    assert text.count("brand_new") == 3


def test_the_list_of_commands_can_be_of_one_group(capsys: Capture) -> None:
    assert "weights import Keep" in _help(capsys, "--help")
    text = _help(capsys, "data", "--help")
    assert "data prepare Turn" in text
    assert "train Train" not in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "x", "--shot", "3"], "there is no option --shot; did you mean --shots?"),
        (
            ["train", "x", "--held_outs=0"],
            "there is no option --held_outs; did you mean --held-out?",
        ),
        (["evaluate", "x", "--qqq"], "there is no option --qqq; `ahl evaluate --help` lists them"),
        (["--verion"], "there is no option --verion; did you mean --version?"),
        (["ablate", "x", "--distributed"], "there is no option --distributed; `ahl train` has it"),
        (
            ["train", "x", "--fpr=0.05"],
            "there is no option --fpr; `ahl evaluate`, `ahl predict`, `ahl report`, `ahl compare`, "
            "`ahl export`, `ahl serve` have it",
        ),
        (["trian", "x"], "there is no command trian; did you mean train?"),
        (["data", "prepair", "x"], "there is no command data prepair; did you mean data prepare?"),
        (["data"], "a command is missing; choose from data list, data prepare, data show"),
        (["qqq"], "there is no command qqq; `ahl --help` lists them"),
    ],
)
def test_an_unknown_word_is_answered_with_the_nearest(
    words: list[str], sentence: str, capsys: Capture
) -> None:
    assert refused(capsys, *words).startswith(f"ahl: {sentence}")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train x --workdir r --epochs abc", "--epochs is 'abc'; it must be a whole number"),
        ("train x --workdir r --held-out=q", "--held-out is 'q'; it must be a number"),
        ("train x --workdir r --views 3", "--views is '3'; choose from 1, 2, 4, 8, 2+8"),
        ("train x --workdir r --seeds 1 b", "--seeds is 'b'; it must be a whole number"),
        ("train x --workdir r --seeds", "--seeds has no value; give it one"),
        ("train x --epochs --workdir r", "--epochs has no value; give it one"),
        ("train x --workdir r --limit x", "--limit is 'x'; it must be a whole number"),
        ("train x --workdir r --crop 4 0 20 q", "--crop is 'q'; it must be a whole number"),
        ("train x --workdir r --crop 4 0 20", "--crop has 3 values; give it 4"),
        ("train x --workdir r --tiles", "--tiles has no value; give it 2"),
        (
            "train x --workdir r --tiles 1 2 3",
            "there is no place for '3'; `ahl train --help` has them all",
        ),
        ("train x", "--workdir is missing; `ahl train --help` explains it"),
        ("train --workdir r", "DATA is missing; `ahl train --help` explains it"),
        ("export r", "FILE is missing; `ahl export --help` explains it"),
        ("evaluate r extra", "there is no place for 'extra'; `ahl evaluate --help` has them all"),
    ],
)
def test_words_that_fit_no_option_are_refused_in_one_sentence(
    words: str, sentence: str, capsys: Capture
) -> None:
    assert refused(capsys, *words.split()).strip() == f"ahl: {sentence}"


def test_the_version_is_said(capsys: Capture) -> None:
    main(["--version"])
    assert capsys.readouterr().out.strip() == metadata.version("ahl_jax")
