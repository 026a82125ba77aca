"""The images of a data set and of a split, and the data sets that have a name."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ahl_jax.config import DataConfig
from ahl_jax.data.builders import NAMES
from ahl_jax.data.records import ImageSource
from ahl_jax.errors import UserError

T = TypeVar("T")

NAMED = dict.fromkeys(NAMES, "ahl_jax.data.prepared") | {"elpv": "ahl_jax.data.elpv"}
"""Name -> module with ``load(config: DataConfig) -> Dataset``; imported when asked for."""


@dataclass(frozen=True)
class Dataset:
    """All images of one data set, in an order that does not depend on the file system.

    Attributes:
        name: The name of the data set, or of the folder or category.
        train_normals: Images of normal parts to train on.
        test_normals: Images of normal parts to test on.
        anomalies: Anomaly class -> its images; the classes are sorted and none is empty.
    """

    name: str
    train_normals: tuple[ImageSource, ...]
    test_normals: tuple[ImageSource, ...]
    anomalies: Mapping[str, tuple[ImageSource, ...]]


@dataclass(frozen=True)
class Sample:
    """One image and its anomaly class; ``None`` stands for normal."""

    path: ImageSource
    anomaly_class: str | None


@dataclass(frozen=True)
class Split:
    """What a run trains on and what it tests on.

    Attributes:
        train_normals: Images of normal parts to train on.
        seen: The M labelled anomalies of the training set.
        test: The test normals, then the test anomalies class by class.
        held_out: Training normals that training does not see; a threshold is set by them.
    """

    train_normals: tuple[ImageSource, ...]
    seen: tuple[Sample, ...]
    test: tuple[Sample, ...]
    held_out: tuple[ImageSource, ...] = ()


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


def split_normals(normals: Sequence[T]) -> tuple[list[T], list[T]]:
    """Training and test normals of a source without a split: 75/25, as in the literature.

    Args:
        normals: The images of normal parts, in the source's own order.

    Raises:
        UserError: if there are fewer than two.
    """
    if len(normals) < 2:
        raise UserError("there are fewer than two normal images to split; add images")
    # Imported late: scikit-learn takes a second, and only data sets without a split need it.
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(list(normals), test_size=0.25, random_state=42)
    return train, test
