"""The errors that a user can mend; the command line prints one sentence and exits with 2."""


class UserError(Exception):
    """Something the user gave is wrong; the message says what, where and what to do about it."""


class BadImageError(UserError):
    """An image file that cannot be decoded; ``--skip-bad-images`` leaves it out."""
