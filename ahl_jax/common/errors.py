"""The errors that a user can mend; the command line prints one sentence."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

_OPTION = re.compile(r"`[^`]*`|(?<![^\s(])--([a-z][a-z-]*[a-z])")
"""An option in a sentence, not what a path may hold; or a whole command."""


class UserError(Exception):
    """Something the user gave is wrong; the message says what, where and what to do about it."""


class IncompleteError(Exception):
    """Everything is done that could be; the message says what could not. The exit code is 3."""


class InputError(UserError, ValueError):
    """An estimator's input does not fit; scikit-learn's tools expect a ValueError."""


class BadImageError(UserError):
    """An image file that cannot be decoded; ``--skip-bad-images`` leaves it out."""


def in_python(message: str, others: Mapping[str, str] = MappingProxyType({})) -> str:
    """A message with parameters (``held_out``) for options (``--held-out``).

    Args:
        message: for the command line.
        others: what to say for options that are no parameters, by the option's name.
    """

    def parameter(found: re.Match[str]) -> str:
        option = found[1]
        return others.get(option, option.replace("-", "_")) if option else found[0]

    return _OPTION.sub(parameter, message)


@contextlib.contextmanager
def said_in_python(others: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Errors from within, see ``in_python``.

    Args:
        others: see ``in_python``.

    Raises:
        UserError: those from within, with another message.
    """
    try:
        yield
    except UserError as error:
        error.args = (in_python(str(error), others),)
        raise
