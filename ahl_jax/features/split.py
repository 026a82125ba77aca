"""From a config to the feature maps of its training and test images."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ahl_jax.backbones import Trunk
from ahl_jax.common.errors import BadImageError, UserError
from ahl_jax.config.settings import SCALES, Config, PseudoConfig
from ahl_jax.data.copies import copy_of
from ahl_jax.data.images import image_digest
from ahl_jax.data.masks import find_masks, read_mask
from ahl_jax.data.open import load_dataset
from ahl_jax.data.records import ImageSource
from ahl_jax.data.splits import make_split, one_normal
from ahl_jax.data.types import Dataset, Sample, Split
from ahl_jax.detectors import DETECTORS, blocks_of
from ahl_jax.distributed.part import WHOLE, Part
from ahl_jax.distributed.processes import on_each, rows_of_all, together
from ahl_jax.features import FeatureMaps, PseudoFeatures, Store, extract, extract_pseudo
from ahl_jax.features.pooling import averages_of, global_averages, pooled_features
from ahl_jax.features.tiles import Tiles, marked_in, tiles_of, tiles_of_defects

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extracted:
    """A list of photographs: this process's part of their maps, and what there is in all."""

    maps: FeatureMaps
    """Of every tile of a normal one, and of one tile of a labelled anomaly."""

    paths: tuple[ImageSource, ...]
    """All photographs of the list that can be read."""

    counts: tuple[int, ...]
    """How many maps each part has."""


@dataclass(frozen=True)
class TrainingFeatures:
    """A run's training images."""

    normals: Extracted
    averages: Float[np.ndarray, "n d"]
    """``averages_of`` all normals."""

    pooled: Float[np.ndarray, "n b*d"]
    """``pooled_features`` of all normals, of the blocks that the detector reads."""

    anomalies: Extracted
    pseudo: PseudoFeatures
    """Its maps are this process's part."""

    counts: Int[np.ndarray, "p 3"]
    """How many normals, anomalies and pseudo-anomalies each part has."""

    @property
    def maps(self) -> tuple[FeatureMaps, FeatureMaps, FeatureMaps]:
        """This process's part of the normals, anomalies and pseudo-anomalies."""
        return self.normals.maps, self.anomalies.maps, self.pseudo.maps


@dataclass(frozen=True)
class FittedFeatures:
    """What ``training_features`` extracted for a run of the method ``fit``, in one process."""

    normals: FeatureMaps
    paths: Sequence[ImageSource]
    """Of the normals."""

    seen: FeatureMaps
    """The maps of the labelled anomalies."""

    marked: Int[np.ndarray, "m k"]
    """The ``marked_pixels`` of these."""

    pseudo: PseudoFeatures


@dataclass(frozen=True)
class TestFeatures:
    """The maps of a run's test images, and what they are."""

    maps: FeatureMaps
    samples: tuple[Sample, ...]


def load_split(config: Config) -> Split:
    """The split that a config describes; the same on every call while the data is the same."""
    return split_of(load_dataset(config.data), config)


def split_of(dataset: Dataset, config: Config) -> Split:
    """The split of a data set by a config; nothing is held out of it where that is done in turn."""
    return make_split(dataset, config.split_data, config.seed)


def split_digest(split: Split) -> str:
    """SHA-256 over the bytes of all images of a split and their parts in it.

    File names are left out, so a data set may move.
    """
    digest = hashlib.sha256()
    parts: list[tuple[str, Iterable[ImageSource]]] = [
        ("train", split.train_normals),
        ("held out", split.held_out),
        *((f"seen {s.anomaly_class}", [s.path]) for s in split.seen),
        *((f"test {s.anomaly_class}", [s.path]) for s in split.test),
    ]
    for part, paths in parts:
        for path in paths:
            try:
                content = image_digest(path)
            except BadImageError as error:
                content = f"unreadable: {type(error.__cause__).__name__}"
            digest.update(f"{part}\0{content}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def training_features(
    config: Config,
    split: Split,
    trunk: Trunk,
    store: Store,
    part: Part = WHOLE,
    *,
    shared: TrainingFeatures | None = None,
    progress: bool,
) -> TrainingFeatures:
    """Extract, or read from the store, this process's part of all that training needs.

    All processes call it, and it is never nested in ``ahl_jax.distributed.processes.together``.

    Args:
        config: the run's settings.
        split: its images.
        trunk: the frozen network.
        store: read first, and written to.
        part: which part of every list this process reads, extracts and keeps.
        shared: another run's features with the same training normals; their arrays are used again.
        progress: whether to show progress on stderr.

    Raises:
        UserError: for a bad image, unless the config skips them; or if too few are left.
    """

    def extracted(paths: Sequence[ImageSource], kind: str, label: str) -> Extracted:
        span = part.span(len(paths))
        found: list[FeatureMaps] = []

        def work() -> list[int]:
            """Extract the part; which of its images cannot be read."""
            maps, kept = extract(
                [paths[i] for i in span], trunk, config.features, store, label=label,
                skip_bad=config.data.skip_bad_images, progress=progress,
            )  # fmt: skip
            found.append(maps)
            return sorted(set(span) - {span[i] for i in kept})

        bad = on_each(work)[: part.of]
        left_out = {i for each in bad for i in each}
        readable = tuple(path for i, path in enumerate(paths) if i not in left_out)
        if paths and not readable:
            raise UserError(f"no {kind} of {config.data.data} can be read; replace the images")
        lengths = part.lengths(len(paths))
        counts = tuple(n - len(each) for n, each in zip(lengths, bad, strict=True))
        return Extracted(found[0], readable, counts)

    tiles = tiles_of(config.features)
    if shared is None:
        normals = extracted(split.train_normals, "training normal", "training normals")
        normals = dataclasses.replace(
            normals,
            maps=tuple(map(tiles.apart, normals.maps)),
            counts=tuple(tiles.count * n for n in normals.counts),
        )
        blocks = blocks_of(config)
        mine = pooled_features(normals.maps, blocks)
        pooled = rows_of_all(mine, part)
        averages = averages_of(pooled, blocks.total)
    else:
        normals, averages, pooled = shared.normals, shared.averages, shared.pooled
    seen = [sample.path for sample in split.seen]
    anomalies = extracted(seen, "labelled anomaly", "labelled anomalies")
    first = sum(anomalies.counts[: part.number])
    own = anomalies.paths[first : first + len(anomalies.maps[0])]
    with together():
        marked = marked_pixels(config, own)
        maps = defect_tiles(tiles, anomalies.maps, averages, marked, trunk.parts)
    anomalies = dataclasses.replace(anomalies, maps=maps)
    with together():
        pseudo = extract_pseudo(
            normals.paths, trunk, config.features, _made(config), config.seed, store, part,
            progress=progress,
        )  # fmt: skip
    counts = np.array([normals.counts, anomalies.counts, part.lengths(len(pseudo.origin))]).T
    return TrainingFeatures(normals, averages, pooled, anomalies, pseudo, counts)


def _made(config: Config) -> PseudoConfig:
    """The pseudo-anomalies that a run looks at."""
    if config.learning.method != "fit" or DETECTORS[config.detector.detector].by_pseudo:
        return config.pseudo
    return dataclasses.replace(config.pseudo, pseudo_per_generator=0)


def check_enough(config: Config, normals: int) -> None:
    """Refuse to hold out in turn where nothing would be left to fit.

    Raises:
        UserError: if there are fewer than two training normals.
    """
    if config.in_turn and normals < 2:
        raise one_normal(config.data.data)


def fitted_features(
    config: Config, split: Split, trunk: Trunk, store: Store, *, progress: bool
) -> FittedFeatures:
    """``FittedFeatures`` from the store, or extracted anew.

    Raises:
        UserError: as by ``training_features``.
    """
    skip = config.data.skip_bad_images
    maps, kept = extract(
        split.train_normals, trunk, config.features, store, skip_bad=skip, progress=progress,
        label="training normals",
    )  # fmt: skip
    check_enough(config, len(kept))
    labelled = [sample.path for sample in split.seen]
    seen, readable = extract(
        labelled, trunk, config.features, store, skip_bad=skip, progress=progress,
        label="labelled anomalies",
    )  # fmt: skip
    marked = marked_pixels(config, [labelled[i] for i in readable])
    paths = [split.train_normals[i] for i in kept]
    pseudo = extract_pseudo(
        paths, trunk, config.features, _made(config), config.seed, store, progress=progress
    )
    return FittedFeatures(maps, paths, seen, marked, pseudo)


def marked_pixels(config: Config, paths: Sequence[ImageSource]) -> Int[np.ndarray, "m k"]:
    """``marked_in`` each tile of m labelled anomalies, by their masks; zeros without one.

    Raises:
        BadImageError: for a bad mask.
    """
    found = np.zeros((len(paths), tiles_of(config.features).count), int)
    if found.shape[1] > 1:
        for i, mask in find_masks(paths, copy_of(config.data.data)).items():
            marks = read_mask(paths[i], mask)
            if marks is not None:
                found[i] = marked_in(config.features, marks)
    return found


def defect_tiles(
    tiles: Tiles,
    anomalies: FeatureMaps,
    normals: Float[np.ndarray, "n*k d"],
    marked: Int[np.ndarray, "m k"],
    parts: Sequence[int],
) -> FeatureMaps:
    """Of labelled anomalies the maps of the tile that has the defect, see ``tiles_of_defects``.

    Args:
        tiles: the grid.
        anomalies: the maps of their photographs, [m, k h, w, c] for each scale.
        normals: ``averages_of`` the tiles of normal photographs.
        marked: ``marked_pixels`` of the anomalies.
        parts: the trunk's.
    """
    if tiles.count == 1 or not len(anomalies[0]):
        return anomalies
    maps = tuple(map(tiles.apart, anomalies))
    means = SCALES * maps[0].shape[-1] // normals.shape[1]
    averages = global_averages(maps, means)
    rows = tiles_of_defects(tiles, averages, normals, marked, parts)
    return tuple(scale[rows] for scale in maps)


def held_out_features(
    config: Config, split: Split, trunk: Trunk, store: Store, *, progress: bool
) -> tuple[FeatureMaps, list[ImageSource]]:
    """Extract, or read from the store, the normals that training does not see.

    Returns:
        The maps of those that can be read, and their paths.

    Raises:
        UserError: for a bad image, unless the config skips them; or if none is left.
    """
    maps, kept = extract(
        split.held_out,
        trunk,
        config.features,
        store,
        skip_bad=config.data.skip_bad_images,
        progress=progress,
        label="held-out normals",
    )
    if not kept:
        raise UserError(
            f"no held-out normal of {config.data.data} can be read; replace the images, or give "
            "`held_out=0`"
        )
    return maps, [split.held_out[i] for i in kept]


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
    wanted, kinds = ({s.anomaly_class is None for s in each} for each in (split.test, samples))
    if wanted - kinds:
        kind = "normal" if True in wanted - kinds else "anomaly"
        raise UserError(f"no test {kind} of {config.data.data} can be read; replace the images")
    return TestFeatures(maps, samples)
