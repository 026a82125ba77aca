"""The images of a data set, and of a split."""

from collections.abc import Mapping
from dataclasses import dataclass

from ahl_jax.data.records import ImageSource


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
    """The images of a run: those that it trains on and those that it is tested on.

    Attributes:
        train_normals: Images of normal parts to train on.
        seen: The M labelled anomalies of the training set.
        test: The test normals, then the test anomalies class by class.
        held_out: Training normals that training does not see; a threshold is set by them.
        left_out_copies: How many images are not in the test because training has the same file.
    """

    train_normals: tuple[ImageSource, ...]
    seen: tuple[Sample, ...]
    test: tuple[Sample, ...]
    held_out: tuple[ImageSource, ...] = ()
    left_out_copies: int = 0
