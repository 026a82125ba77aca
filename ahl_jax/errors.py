"""The errors that a user can mend; the command line prints one sentence."""


class UserError(Exception):
    """Something the user gave is wrong; the message says what, where and what to do about it."""


class IncompleteError(Exception):
    """Everything is done that could be; the message says what could not. The exit code is 3."""


class InputError(UserError, ValueError):
    """What an estimator was given does not fit; scikit-learn's tools expect a ValueError."""


class BadImageError(UserError):
    """An image file that cannot be decoded; ``--skip-bad-images`` leaves it out."""
