"""The errors that a user can mend.

Messages write settings as Python does, in backticks: ``held_out`` names one, ``held_out=0.1`` gives
it a value. The command line prints options for them; see ``ahl_jax.cli.sentences.with_options``.
"""


class UserError(Exception):
    """Something the user gave is wrong; the message says what, where and what to do about it."""


class IncompleteError(Exception):
    """Everything is done that could be; the message says what could not. The exit code is 3."""


class InputError(UserError, ValueError):
    """An estimator's input does not fit; scikit-learn's tools expect a ValueError."""


class BadImageError(UserError):
    """An image file that cannot be decoded; ``skip_bad_images`` leaves it out."""
