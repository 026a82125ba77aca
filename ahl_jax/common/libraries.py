"""Libraries that not every installation has."""

import importlib
from types import ModuleType

from ahl_jax.common.errors import UserError
from ahl_jax.common.text import first_line


def library(name: str, user: str, packages: str, otherwise: str = "") -> ModuleType:
    """Import a library, or say why it cannot be had.

    Args:
        name: what it is imported as.
        user: what needs it, as messages call that.
        packages: what pip installs it by.
        otherwise: another way out, after a comma.

    Raises:
        UserError: if it is missing, or its installation is broken.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:  # A broken one may raise anything.
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            why = f"is not installed; run `pip install {packages}`"
        else:
            why = f"cannot be imported ({first_line(error)}); mend its installation"
        raise UserError(f"{user} needs {name}, which {why}{otherwise}") from error
