"""From a config to the feature maps of its training and test images."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ahl_jax.backbones import Trunk
from ahl_jax.config import Config
from ahl_jax.data.images import image_digest
from ahl_jax.data.samples import Sample, Split, load_dataset
from ahl_jax.data.splits import make_split
from ahl_jax.errors import BadImageError, UserError
from ahl_jax.features import FeatureMaps, PseudoFeatures, Store, extract, extract_pseudo

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingFeatures:
    """The maps of a run's training images."""

    normals: FeatureMaps
    normal_paths: tuple[Path, ...]
    anomalies: FeatureMaps
    pseudo: PseudoFeatures


@dataclass(frozen=True)
class TestFeatures:
    """The maps of a run's test images, and what they are."""

    maps: FeatureMaps
    samples: tuple[Sample, ...]


def load_split(config: Config) -> Split:
    """The split that a config describes; the same on every call while the data is the same."""
    return make_split(load_dataset(config.data), config.data, config.seed)


def split_digest(split: Split) -> str:
    """SHA-256 over the bytes of all images of a split and their parts in it.

    File names are left out, so a data set may move.
    """
    digest = hashlib.sha256()
    parts: list[tuple[str, Iterable[Path]]] = [
        ("train", split.train_normals),
        *((f"seen {s.anomaly_class}", [s.path]) for s in split.seen),
        *((f"test {s.anomaly_class}", [s.path]) for s in split.test),
    ]
    for part, paths in parts:
        for path in paths:
            try:
                content = image_digest(path)
            except BadImageError as error:
                content = f"unreadable: {type(error.__cause__).__name__}"
            digest.update(f"{part}\0{content}\n".encode())
    return digest.hexdigest()


def training_features(
    config: Config,
    split: Split,
    trunk: Trunk,
    store: Store,
    *,
    shared: "TrainingFeatures | None" = None,
    progress: bool,
) -> TrainingFeatures:
    """Extract, or read from the store, all that training needs.

    ``shared`` is another run's features with the same training normals; their arrays are used
    again.

    Raises:
        UserError: for a bad image, unless the config skips them; or if too few are left.
    """
    skip = config.data.skip_bad_images

    def maps_of(paths: Sequence[Path], label: str) -> tuple[FeatureMaps, list[Path]]:
        maps, kept = extract(
            paths, trunk, config.features, store, skip_bad=skip, progress=progress, label=label
        )
        return maps, [paths[i] for i in kept]

    if shared is None:
        normals, kept_normals = maps_of(split.train_normals, "training normals")
    else:
        normals, kept_normals = shared.normals, list(shared.normal_paths)
    anomalies, kept_anomalies = maps_of(
        [sample.path for sample in split.seen], "labelled anomalies"
    )
    for kind, kept in (("training normal", kept_normals), ("labelled anomaly", kept_anomalies)):
        if not kept:
            raise UserError(f"no {kind} of {config.data.data} can be read; replace the images")
    pseudo = extract_pseudo(
        kept_normals,
        trunk,
        config.features,
        config.pseudo,
        config.seed,
        store,
        progress=progress,
    )
    return TrainingFeatures(normals, tuple(kept_normals), anomalies, pseudo)


def test_features(
    config: Config, split: Split, trunk: Trunk, store: Store, *, progress: bool
) -> TestFeatures:
    """Extract, or read from the store, the test images.

    Raises:
        UserError: for a bad image, unless the config skips them; or if too few are left.
    """
    maps, kept = extract(
        [sample.path for sample in split.test],
        trunk,
        config.features,
        store,
        skip_bad=config.data.skip_bad_images,
        progress=progress,
        label="test images",
    )
    samples = tuple(split.test[i] for i in kept)
    kinds = {sample.anomaly_class is None for sample in samples}
    if len(kinds) < 2:
        kind = "anomaly" if True in kinds else "normal"
        raise UserError(f"no test {kind} of {config.data.data} can be read; replace the images")
    return TestFeatures(maps, samples)
