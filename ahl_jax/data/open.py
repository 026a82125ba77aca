"""The images of a data set and of a split, and the data sets that have a name."""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ahl_jax.common.errors import UserError
from ahl_jax.common.remote import url_of
from ahl_jax.common.text import printable
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.builders import NAMES
from ahl_jax.data.copies import fetched
from ahl_jax.data.records import ImageSource, Record
from ahl_jax.data.types import Dataset

NAMED = dict.fromkeys(NAMES, "ahl_jax.data.prepared") | {"elpv": "ahl_jax.data.elpv"}
"""Name -> module with ``load(config: DataConfig) -> Dataset``; imported when asked for."""

ALL = "all"
"""The category that stands for each of them."""


def load_dataset(config: DataConfig) -> Dataset:
    """Finds the images of the named data set, the folder or the CSV file in ``config.data``.

    Raises:
        UserError: if there is no such data set, folder or file, or it is not understood.
    """
    if config.joint:
        return _joint(config)
    if names_all(config) and (names := categories(config.data)):
        raise UserError(
            f"{config.data} has {len(names)} categories, and a run takes one: name it by "
            "`category`, or give `joint=True`; only ahl train and ahl_jax.train_categories train "
            "each"
        )
    if config.data in NAMED:
        return importlib.import_module(NAMED[config.data]).load(config)
    config = _here(config)
    path = Path(config.data)
    if path.suffix.lower() == ".csv" and path.is_file():
        from ahl_jax.data import table

        return table.load(config)
    if not path.is_dir():
        known = ", ".join(sorted(NAMED))
        raise UserError(
            f"'{printable(config.data)}' is neither a folder nor a CSV file nor a known data set; "
            f"name an existing one, or one of: {known}"
        )
    from ahl_jax.data import folder, visa

    return visa.load(config) if visa.is_visa(path) else folder.load(config)


def _here(config: DataConfig) -> DataConfig:
    """The settings with the copy of what they name in object storage, which is made or renewed."""
    if config.data in NAMED or not url_of(config.data):
        return config
    return dataclasses.replace(config, data=str(fetched(config.data)))


def names_all(config: DataConfig) -> bool:
    """Whether the category is ``ALL``, and none is called so."""
    return config.category == ALL and ALL not in categories(config.data)


def _joint(config: DataConfig) -> Dataset:
    """All categories as one data set."""
    if config.category is not None:
        raise UserError(
            f"`joint` takes every category; leave out `category={config.category!r}`, or `joint`"
        )
    alone = dataclasses.replace(_here(config), joint=False)
    names = categories(alone.data)
    if not names:
        raise UserError(f"{load_dataset(alone).name} has no categories; leave out `joint`")
    return joined(
        {name: load_dataset(dataclasses.replace(alone, category=name)) for name in names},
        Path(config.data).name,
    )


def joined(parts: Mapping[str, Dataset], name: str) -> Dataset:
    """Categories as one data set, whose classes are called CATEGORY/CLASS.

    Args:
        parts: each category's images.
        name: what the whole is called.
    """
    parts = {category: _of_category(part, category) for category, part in parts.items()}
    each = parts.values()
    return Dataset(
        name,
        tuple(path for part in each for path in part.train_normals),
        tuple(path for part in each for path in part.test_normals),
        {kind: paths for part in each for kind, paths in part.anomalies.items()},
        {kind: paths for part in each for kind, paths in part.labelled.items()},
        parts,
    )


def _of_category(part: Dataset, category: str) -> Dataset:
    """The images of a category with its name before those of their classes, and of records."""

    def named(paths: Sequence[ImageSource]) -> tuple[ImageSource, ...]:
        return tuple(
            dataclasses.replace(path, name=f"{category}/{path.name}")
            if isinstance(path, Record)
            else path
            for path in paths
        )

    anomalies, labelled = (
        {f"{category}/{kind}": named(paths) for kind, paths in classes.items()}
        for classes in (part.anomalies, part.labelled)
    )
    normals = named(part.train_normals), named(part.test_normals)
    return Dataset(part.name, *normals, anomalies, labelled)


def categories(data: str) -> list[str]:
    """The categories of the data set, folder or CSV file that ``DataConfig.data`` names, if any.

    Raises:
        UserError: if its list of categories cannot be read.
    """
    if data in NAMED:
        from ahl_jax.data.prepared import prepared_categories

        return prepared_categories(data)
    path = fetched(data)
    if not path.is_dir():
        return []
    from ahl_jax.data import folder, visa

    return visa.categories(path) if visa.is_visa(path) else folder.categories(path)
