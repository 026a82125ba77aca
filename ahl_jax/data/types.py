"""The images of a data set, and of a split."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ahl_jax.data.records import ImageSource

NORMAL_WORDS = ("good", "ok", "normal")
ANOMALY_WORDS = ("bad", "ng", "anomaly", "anomalous")
"""The names of normals and of anomalies, in any case: of folders, and of labels in lists."""

ANOMALY = "anomaly"
"""The class of anomalies whose kind nobody names."""

NO_METRICS = "they take normals and anomalies to test on"


@dataclass(frozen=True)
class Dataset:
    """All images of one data set, in an order that does not depend on the file system.

    Attributes:
        name: The name of the data set, or of the folder or category.
        train_normals: Images of normal parts to train on.
        test_normals: Images of normal parts to test on.
        anomalies: Anomaly class -> its images; the classes are sorted and none is empty.
        labelled: The same of the anomalies that the data set names for training. Where there are
            any, none of ``anomalies`` is drawn for it.
        parts: Category -> its images, where this is several categories joined.
        note: How the images were split, where the data set does not say it.
    """

    name: str
    train_normals: tuple[ImageSource, ...]
    test_normals: tuple[ImageSource, ...]
    anomalies: Mapping[str, tuple[ImageSource, ...]]
    labelled: Mapping[str, tuple[ImageSource, ...]] = field(default_factory=dict)
    parts: Mapping[str, "Dataset"] = field(default_factory=dict)
    note: str = ""

    def samples(self) -> Iterator["Sample"]:
        """Every image once, with its class."""
        for path in (*self.train_normals, *self.test_normals):
            yield Sample(path, None)
        for classes in (self.labelled, self.anomalies):
            for name, paths in classes.items():
                yield from (Sample(path, name) for path in paths)


@dataclass(frozen=True)
class Sample:
    """One image and its anomaly class; ``None`` stands for normal."""

    path: ImageSource
    anomaly_class: str | None


def in_order(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Normals, then class by class."""
    return tuple(sorted(samples, key=lambda sample: sample.anomaly_class or ""))


@dataclass(frozen=True)
class Split:
    """The images of a run: those that it trains on and those that it is tested on.

    Attributes:
        train_normals: Images of normal parts to train on.
        seen: The M labelled anomalies of the training set.
        test: The test normals, then the test anomalies class by class. Metrics take both kinds.
        held_out: Training normals that training does not see; a threshold is set by them.
        copies: Images that are not in the test because training has the same file.
        unused: The other images of the data set that the run leaves out.
    """

    train_normals: tuple[ImageSource, ...]
    seen: tuple[Sample, ...]
    test: tuple[Sample, ...]
    held_out: tuple[ImageSource, ...] = ()
    copies: tuple[Sample, ...] = ()
    unused: tuple[Sample, ...] = ()

    @property
    def is_tested(self) -> bool:
        """Whether the test has normals and anomalies."""
        return len({sample.anomaly_class is None for sample in self.test}) > 1
