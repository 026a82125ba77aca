"""The second and third step of a training: a trunk, features by it, and problems to train on."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ahl_jax.backbones import Trunk, load_trunk
from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import FeatureConfig, averaged
from ahl_jax.data.copies import copy_of
from ahl_jax.data.masks import masks_of, read_mask, warn_of_unused
from ahl_jax.data.records import ImageSource
from ahl_jax.data.splits import hold_out
from ahl_jax.data.types import Sample
from ahl_jax.detectors import DETECTORS, Model
from ahl_jax.detectors.local_head import LocalHead
from ahl_jax.detectors.localizer import Localizer, fit_localizer, pointed
from ahl_jax.detectors.whitening import Whitening
from ahl_jax.distributed.memory import on_device, on_host
from ahl_jax.distributed.mesh import own_part
from ahl_jax.distributed.part import Part
from ahl_jax.distributed.processes import is_primary, together
from ahl_jax.features import Store
from ahl_jax.features.images import fine_maps
from ahl_jax.features.split import (
    TrainingFeatures,
    held_out_features,
    test_features,
    training_features,
)
from ahl_jax.features.tiles import tiles_of, warn_of_shrinking
from ahl_jax.learning.bank import shared_bank
from ahl_jax.learning.problem import Problem, colouring_of, problem_on, whitening_of
from ahl_jax.run.claim import Run
from ahl_jax.run.local_heads import FittedLocalizers, fit_local_head, fit_localizers
from ahl_jax.run.options import RunOptions
from ahl_jax.run.start import Start
from ahl_jax.stage_one import trained_trunk

_FEWEST = 20
"""Photographs that a localizer takes of either kind, of however many tiles."""

_MOST = 400
"""The most of them, or of their tiles: normals of several kinds take more than those of one."""

_LOOKS = 800
"""Views of them that go through the trunk, for their time."""


@dataclass(frozen=True)
class Extracted:
    """The features that runs train on, of one trunk."""

    features: tuple[TrainingFeatures, ...]
    """Each run's."""

    part: Part
    """This process's part of every list of images."""

    model: Model | None
    """The detector to start from; None for a new one."""

    parts: tuple[int, ...]
    """Channels of the trunk's levels."""

    localizers: tuple[Localizer | None, ...]
    """Each run's, on process 0, where heat maps are to be finer."""

    local_heads: tuple[LocalHead | None, ...]
    """Each run's, where its detector is to have one."""


def extract(runs: Sequence[Run], options: RunOptions, start: Start | None) -> Extracted:
    """Everything that the runs read of their images; what the store has already is not computed.

    Test images come first, so that a bad one stops the run before hours of training.

    Args:
        runs: runs that differ in their seeds alone.
        options: how they are carried out.
        start: the run that a fine-tuned one starts from.

    Raises:
        UserError: for a bad image, unless the settings skip those, or weights that do not fit.
    """
    with together():
        store = Store(options.cache_dir, on_host(options.feature_memory))
    trunk, model = _trunk(runs, store, start, progress=options.progress)
    with together():
        if is_primary():
            # Those of other seeds have the same folders.
            split = runs[0].split
            labelled = [sample.path for sample in (*split.seen, *split.test)]
            warn_of_unused(labelled, copy_of(runs[0].config.data.data))
            warn_of_shrinking(split.train_normals, runs[0].config.features)
            tested: dict[Sample, None] = {}
            for run in runs:
                samples = _extract_test(run, trunk, store, progress=options.progress)
                tested |= dict.fromkeys(samples)
            _check_masks(list(tested), copy_of(runs[0].config.data.data))
            for run in runs:
                heads = model.arrays() if run.config.stage_one.stage_one and model else None
                run.writer.save_trunk(trunk.name, trunk.params, heads)
    part = own_part(options.data_shards)
    features: list[TrainingFeatures] = []
    localizers: list[Localizer | None] = []
    of_normals: dict[tuple[ImageSource, ...], TrainingFeatures] = {}
    local_heads: list[LocalHead | None] = []
    fitted: dict[tuple[ImageSource, ...], Localizer] = {}
    of_places: dict[tuple[ImageSource, ...], FittedLocalizers | None] = {}
    for run in runs:
        normals = run.split.train_normals
        of_normals[normals] = training_features(
            run.config, run.split, trunk, store, part,
            shared=of_normals.get(normals), progress=options.progress,
        )  # fmt: skip
        features.append(of_normals[normals])
        head = None
        detector = run.config.detector
        if detector.local_head and DETECTORS[detector.detector].takes_local:
            if normals not in of_places:
                tiles = tiles_of(run.config.features).count
                of_places[normals] = fit_localizers(
                    features[-1], trunk.parts, tiles, part, progress=options.progress
                )
            if (places := of_places[normals]) is not None:
                head = fit_local_head(places, features[-1], trunk.parts, part)
        local_heads.append(head)
        with together():
            if run.config.features.fine_heat and is_primary():
                given = run, features[-1], trunk
                if normals not in fitted:
                    fitted[normals] = _localizer(*given, progress=options.progress)
                localizers.append(_pointed(fitted[normals], *given, progress=options.progress))
            else:
                localizers.append(None)
    keeps_model = start or runs[0].config.stage_one.stage_one_heads
    model = model if keeps_model else None
    return Extracted(
        tuple(features), part, model, trunk.parts, tuple(localizers), tuple(local_heads)
    )


def make_problems(
    runs: Sequence[Run], extracted: Extracted, options: RunOptions
) -> tuple[list[Problem], Whitening | None]:
    """The training problems of runs on one bank of features, and the bank's whitening.

    Raises:
        UserError: if the settings do not fit the data, such as too few normals for the clusters.
    """
    features, config = extracted.features, runs[0].config.features
    with together():
        # Every seed of a data set has the same training normals.
        whitening = whitening_of(runs[0].config, features[0].pooled, extracted.parts)
        banks = shared_bank(
            [each.maps for each in features],
            config.precision,
            on_device(options.feature_memory) * options.data_shards,
            part=extracted.part,
            counts=[each.counts for each in features],
            whitening=whitening,
        )
        colouring = colouring_of(runs[0].config, whitening)
        problems = [
            problem_on(
                run.config,
                bank,
                each.averages,
                each.pseudo.generator,
                each.pseudo.origin,
                colouring,
            )
            for run, each, bank in zip(runs, features, banks, strict=True)
        ]
    if (model := extracted.model) is not None:
        problems = [dataclasses.replace(problem, model=model) for problem in problems]
    return problems, whitening


def _trunk(
    runs: Sequence[Run], store: Store, start: Start | None, *, progress: bool
) -> tuple[Trunk, Model | None]:
    """The trunk of the runs, trained by stage one where that is asked for, and its detector."""
    config = runs[0].config
    if config.start != (start and start.digest):
        raise UserError(
            "this run starts from another one; use ahl finetune, and name the folder of that one"
        )
    one = config.stage_one
    with together():
        if start:
            trunk = start.trunk
        else:
            apart = one.stage_one and one.batch_norm == "trained"
            named = config.features
            trunk = load_trunk(
                named.trunk, named.trunk_weights, store.folder, levels=named.levels, apart=apart
            )
        if is_primary():
            for run in runs:
                run.workdir.bind_trunk(trunk.digest)
    if not one.stage_one:
        return trunk, start.model if start else None
    (run,) = runs
    return trained_trunk(
        run.config, run.split, run.digest, trunk, store.folder, run.checkpoints, progress=progress
    )


def _localizer(run: Run, features: TrainingFeatures, trunk: Trunk, *, progress: bool) -> Localizer:
    """The localizer of a run's training normals.

    Where normals are held out in turn, those that another run holds out set its scale of colours.
    """
    paths = features.normals.paths
    # One alone is refused later, in a sentence.
    if run.config.in_turn and not run.split.held_out and len(paths) > 1:
        paths, _ = hold_out(paths, run.config.data.held_out)
    config = run.config.features
    fine = _fine_maps_of_some("training normals", paths, trunk, config, progress=progress)
    return fit_localizer(fine)


def _pointed(
    localizer: Localizer, run: Run, features: TrainingFeatures, trunk: Trunk, *, progress: bool
) -> Localizer:
    """The localizer with the direction of a run's labelled anomalies, if it has any."""
    paths = features.anomalies.paths
    if not paths:
        return localizer
    config = run.config.features
    fine = _fine_maps_of_some("labelled anomalies", paths, trunk, config, progress=progress)
    return pointed(localizer, fine)


def _fine_maps_of_some(
    kind: str, paths: Sequence[ImageSource], trunk: Trunk, config: FeatureConfig, *, progress: bool
) -> Float[np.ndarray, "n h w c"]:
    """``fine_maps`` of as many photographs as a localizer takes, evenly spread."""
    looks = averaged(config.views)[0]
    enough = max(_FEWEST, min(_MOST, _LOOKS // looks) // tiles_of(config).count)
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), enough)).astype(int)
    label = f"fine features of some {kind}" if progress else None
    return fine_maps([paths[i] for i in chosen], trunk, config, label)


def _extract_test(run: Run, trunk: Trunk, store: Store, *, progress: bool) -> Sequence[Sample]:
    """Put the features of the test images and of the held-out normals into the store.

    Returns:
        The test images that can be read.

    Raises:
        UserError: for a bad image, unless the settings skip those.
    """
    samples: Sequence[Sample] = ()
    if run.split.test:
        samples = test_features(run.config, run.split, trunk, store, progress=progress).samples
    if run.split.held_out:
        held_out_features(run.config, run.split, trunk, store, progress=progress)
    return samples


def _check_masks(samples: Sequence[Sample], root: Path) -> None:
    """Find a bad mask before hours of training; each is read once, however many seeds test it.

    Raises:
        BadImageError: for a bad mask.
    """
    for i, mask in masks_of(samples, root).items():
        read_mask(samples[i].path, mask)
