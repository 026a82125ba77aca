"""The images of a data set and of a split, and the data sets that have a name."""

import importlib
from pathlib import Path
from typing import TypeVar

from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.builders import NAMES
from ahl_jax.data.types import Dataset

T = TypeVar("T")

NAMED = dict.fromkeys(NAMES, "ahl_jax.data.prepared") | {"elpv": "ahl_jax.data.elpv"}
"""Name -> module with ``load(config: DataConfig) -> Dataset``; imported when asked for."""


def load_dataset(config: DataConfig) -> Dataset:
    """Finds the images of the named data set, the folder or the CSV file in ``config.data``.

    Raises:
        UserError: if there is no such data set, folder or file, or it is not understood.
    """
    if config.data in NAMED:
        return importlib.import_module(NAMED[config.data]).load(config)
    path = Path(config.data)
    if path.suffix.lower() == ".csv" and path.is_file():
        from ahl_jax.data import table

        return table.load(config)
    if not path.is_dir():
        known = ", ".join(sorted(NAMED))
        raise UserError(
            f"{config.data!r} is neither a folder nor a CSV file nor a known data set; name an "
            f"existing one, or one of: {known}"
        )
    from ahl_jax.data import folder, visa

    return visa.load(config) if visa.is_visa(path) else folder.load(config)


def categories(data: str) -> list[str]:
    """The categories of the data set, folder or CSV file that ``DataConfig.data`` names, if any.

    Raises:
        UserError: if its list of categories cannot be read.
    """
    path = Path(data)
    if data in NAMED:
        from ahl_jax.data.prepared import prepared_categories

        return prepared_categories(data)
    if not path.is_dir():
        return []
    from ahl_jax.data import folder, visa

    return visa.categories(path) if visa.is_visa(path) else folder.categories(path)
