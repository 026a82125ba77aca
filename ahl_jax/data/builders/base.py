"""The base of all builders: the features, the splits, the check of counts, the manifest."""

import abc
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from tqdm import tqdm

from ahl_jax.common.errors import UserError
from ahl_jax.data.records import VERSION

NORMAL = ""
"""The anomaly class of a normal image."""


@dataclass(frozen=True)
class Example:
    """One image on its way into a prepared data set.

    Attributes:
        name: What it is called in its source.
        anomaly_class: Its class, or ``NORMAL``.
        image: Reads the encoded image.
        mask: Reads its ground truth as an encoded image, where it has one.
    """

    name: str
    anomaly_class: str
    image: Callable[[], bytes]
    mask: Callable[[], bytes] | None = None


@dataclass(frozen=True)
class Contents:
    """All examples of a data set or category, split by split, in the order they are written."""

    train: Sequence[Example]
    test: Sequence[Example]


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Nothing: these data sets are not on the net, and TFDS would make a temporary folder."""


class AnomalyBuilder(tfds.core.GeneratorBasedBuilder):
    """A data set for anomaly detection.

    Its splits are ``train``, which has normal images only, and ``test``. An example has the
    encoded ``image`` (the source's own bytes, or PNG where it is cut out of a larger one), the
    ``anomaly_class`` (empty for normal), the ``name`` in the source, and the encoded
    ``ground_truth`` mask (empty where there is none).
    """

    VERSION = tfds.core.Version(VERSION)
    TITLE: ClassVar[str]
    """Its authors' name for it."""

    PAGE: ClassVar[str]
    """The official page."""

    DOWNLOAD: ClassVar[str]
    """Names of the files to download from there, as the object of a sentence."""

    ARCHIVES: ClassVar[tuple[str, ...]] = ()
    """Names of zip and tar archives with it, without their endings; ``*`` stands for anything."""

    NEEDS_FOLDER: ClassVar[bool] = True
    """Whether somebody has to download it."""

    COUNTS: ClassVar[Mapping[str, Mapping[str, int]]] = {}
    """Category ("" where there are none) -> the published number of training normals (``train``),
    test normals (``good``), anomalies of each class by its name, and all (``anomalies``)."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.NEEDS_FOLDER:
            cls.MANUAL_DOWNLOAD_INSTRUCTIONS = f"Download {cls.DOWNLOAD} from {cls.PAGE}."

    @classmethod
    @abc.abstractmethod
    def root(cls, folder: Path) -> Path | None:
        """Where the source's layout starts in a folder that a person names; None if nowhere."""

    @classmethod
    def categories(cls, root: Path) -> tuple[str, ...]:
        """The categories that are there, for data sets that have them."""
        return ()

    @abc.abstractmethod
    def contents(self, root: Path) -> Contents:
        """The examples, without reading more images than it takes to know them.

        Raises:
            UserError: if the source is not as it was published.
        """

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(
            builder=self,
            description=f"{self.TITLE}, for open-set anomaly detection.",
            homepage=self.PAGE,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Text(doc="encoded image"),
                    "anomaly_class": tfds.features.Text(doc="empty for normal"),
                    "name": tfds.features.Text(doc="in the source"),
                    "ground_truth": tfds.features.Text(doc="encoded mask; empty for none"),
                }
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        contents = self.contents(self._root(dl_manager) if self.NEEDS_FOLDER else Path())
        splits = {"train": contents.train, "test": contents.test}
        for split, examples in splits.items():
            if not examples:
                raise UserError(f"{self._where} has no {split} images; download it again")
        self._check(contents)
        return {split: self._generate_examples(split, found) for split, found in splits.items()}

    def _generate_examples(
        self, split: str, examples: Sequence[Example]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        digest = hashlib.sha256()
        images: list[list[str | int]] = []
        bar = tqdm(examples, f"{self._where}, {split}", leave=False, unit="image", disable=None)
        for index, example in enumerate(bar):
            image, mask = example.image(), example.mask() if example.mask else b""
            for part in (example.anomaly_class.encode(), image, mask):
                digest.update(hashlib.sha256(part).digest())
            images.append([example.name, example.anomaly_class, len(image)])
            features = {
                "image": image,
                "anomaly_class": example.anomaly_class,
                "name": example.name,
                "ground_truth": mask,
            }
            yield index, features
        # What a program needs to know of the records before it reads any, and what makes two
        # prepared copies comparable.
        self.info.metadata[split] = {
            "images": images,
            "counts": dict(Counter(example.anomaly_class or "good" for example in examples)),
            "sha256": digest.hexdigest(),
        }

    def _root(self, dl_manager: tfds.download.DownloadManager) -> Path:
        folder = Path(dl_manager.manual_dir)
        root = self.root(folder)
        if root is None:
            raise UserError(missing(type(self), folder))
        return root

    @property
    def _where(self) -> str:
        config = self.builder_config
        return f"{self.TITLE} ({config.name})" if config else self.TITLE

    def _check(self, contents: Contents) -> None:
        """Compare with the published counts, where there are any."""
        config = self.builder_config
        for part, published in self.COUNTS.get(config.name if config else "", {}).items():
            if part == "train":
                found = len(contents.train)
            elif part == "anomalies":
                found = sum(example.anomaly_class != NORMAL for example in contents.test)
            else:
                wanted = NORMAL if part == "good" else part
                found = sum(example.anomaly_class == wanted for example in contents.test)
            if found != published:
                kind = {"train": "training normals", "good": "test normals"}.get(part, part)
                raise UserError(
                    f"{self._where} has {found} {kind} where {published} were published; "
                    f"download it again from {self.PAGE}"
                )


def missing(builder: type[AnomalyBuilder], folder: Path) -> str:
    """The sentence for a folder that does not hold the source."""
    return (
        f"{folder} does not hold {builder.TITLE}; download {builder.DOWNLOAD} from {builder.PAGE} "
        "into a folder, and name that folder with `manual_dir`"
    )
