"""Settings in messages as options."""

import pytest

from ahl_jax.cli.sentences import with_options


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
