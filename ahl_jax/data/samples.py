"""The images of a data set and of a split, and the data sets that have a name."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ahl_jax.config import DataConfig
from ahl_jax.data.builders import NAMES
from ahl_jax.data.records import ImageSource
from ahl_jax.errors import UserError

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
    """

    train_normals: tuple[ImageSource, ...]
    seen: tuple[Sample, ...]
    test: tuple[Sample, ...]


def load_dataset(config: DataConfig) -> Dataset:
    """Finds the images of the named data set or of the folder that ``config.data`` gives.

    Raises:
        UserError: if there is no such data set or folder, or its layout is not understood.
    """
    if config.data in NAMED:
        return importlib.import_module(NAMED[config.data]).load(config)
    if not Path(config.data).is_dir():
        known = ", ".join(sorted(NAMED))
        raise UserError(
            f"{config.data!r} is neither a folder nor a known data set; name an existing folder, "
            f"or one of: {known}"
        )
    from ahl_jax.data import folder

    return folder.load(config)
