"""The errors that a user can mend; the command line prints one sentence."""

import contextlib
import re
from collections.abc import Iterator, Mapping

_OPTION = re.compile(r"(?<![^\s(])--([a-z][a-z-]*[a-z])")
"""An option in a sentence; not what a path may hold."""


class UserError(Exception):
    """Something the user gave is wrong; the message says what, where and what to do about it."""


class IncompleteError(Exception):
    """Everything is done that could be; the message says what could not. The exit code is 3."""


class InputError(UserError, ValueError):
    """What an estimator was given does not fit; scikit-learn's tools expect a ValueError."""


class BadImageError(UserError):
    """An image file that cannot be decoded; ``--skip-bad-images`` leaves it out."""


@contextlib.contextmanager
def said_in_python(others: Mapping[str, str]) -> Iterator[None]:
    """Errors from within name parameters (``held_out``) instead of options (``--held-out``).

    Args:
        others: what to say for options that are no parameters, by the option's name.

    Raises:
        UserError: those from within, with another message.
    """
    try:
        yield
    except UserError as error:
        message = _OPTION.sub(lambda m: others.get(m[1], m[1].replace("-", "_")), str(error))
        error.args = (message,)
        raise
