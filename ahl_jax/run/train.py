"""A training run, as an outline: data -> features -> subsets -> epochs -> checkpoint -> metrics."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ahl_jax.backbones import load_trunk
from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import SCALES, Config
from ahl_jax.data.records import ImageSource
from ahl_jax.data.types import Split
from ahl_jax.detectors.whitening import fit_whitening
from ahl_jax.distributed.memory import on_device, on_host
from ahl_jax.distributed.mesh import own_part
from ahl_jax.distributed.part import Part
from ahl_jax.distributed.processes import is_primary, on_primary, same_everywhere, together
from ahl_jax.features import Store
from ahl_jax.features.split import (
    TrainingFeatures,
    held_out_features,
    load_split,
    split_digest,
    test_features,
    training_features,
)
from ahl_jax.learning.bank import shared_bank
from ahl_jax.learning.problem import Problem, problem_on
from ahl_jax.run.checks import check_names
from ahl_jax.run.epochs import Run, run_epochs
from ahl_jax.run.evaluate import calibrate, evaluate
from ahl_jax.run.start import Source
from ahl_jax.stage_one import check_stage_one, trained_trunk
from ahl_jax.storage.checkpoints import Checkpoints
from ahl_jax.storage.workdir import Workdir, located

log = logging.getLogger(__name__)


class Options(TypedDict, total=False):
    """How runs are carried out, whatever they compute; every option may be left out."""

    overwrite: bool
    """Replace a different run in the folder."""

    cache_dir: Path | None
    """The feature store's folder; see ``ahl_jax.features.default_folder``."""

    checkpoint_every: int
    """Epochs in one call of the compiled program, after which the host saves a checkpoint and
    reports; does not change the result. By default 1."""

    data_shards: int
    """Number of parts that the images are divided into, each on devices of its own. By default
    1."""

    feature_memory: float | None
    """GiB that the features of the training images may take in memory and on each device, beyond
    which they are streamed; see ``ahl_jax.distributed.memory``."""

    tensorboard: bool
    """Whether to write event files for TensorBoard into the run's folder too."""

    progress: bool
    """Whether to show progress on stderr; by default so."""

    source: Source | None
    """What a fine-tuned run starts from, see ``ahl_jax.finetune``."""


def train(
    config: Config, workdir: Path | str, split: Split | None = None, **options: Unpack[Options]
) -> dict[str, Any]:
    """Train a detector, or finish the run that ``workdir`` holds, and test it.

    A run that was stopped in any way goes on from its last checkpoint when it is called again with
    the same arguments, to the same result.

    With several processes (``jax.distributed.initialize``) all of them call this with the same
    arguments, and each extracts its part of the training images
    (``ahl_jax.distributed.mesh.own_part``); only process 0 needs, and writes to, ``workdir``.

    Args:
        config: the settings.
        workdir: the run's folder, made if missing; see ``ahl_jax.storage.workdir.FILES``.
        split: the images, by default those that the settings name.
        options: see ``Options``.

    Returns:
        The metrics, as ``metrics.json`` has them; see ``ahl_jax.run.evaluate.evaluate``. Empty, and
        not kept, where the test of ``split`` is.

    Raises:
        UserError: if the settings do not fit the data, an image is bad, or ``workdir`` holds
            another run.
    """
    if not isinstance(config, Config):
        raise UserError(f"config is {config!r}; make one, as by preset('density', DATA)")
    found = _train([config], [Path(workdir)], [split] if split else (), **options)
    return found[0] if found else {}


def train_seeds(
    config: Config,
    workdir: Path | str,
    seeds: Sequence[int],
    **options: Unpack[Options],
) -> list[dict[str, Any]]:
    """Train one detector per seed, all of them in one program, and test each.

    With stage one they are trained one after the other.

    Every seed gets the folder ``workdir/seed-N``, which is a run like any other. Its result is the
    one that the seed has alone up to rounding (batched products add up in another order).

    Args:
        config: the settings; its own seed is not used.
        workdir: the folder for the seeds' folders.
        seeds: distinct seeds.
        options: see ``Options``.

    Returns:
        The metrics of each seed, in order.

    Raises:
        UserError: as ``train`` does; or if the seeds differ in how many images can be read.
    """
    seeds = list(dict.fromkeys(seeds))
    configs = [dataclasses.replace(config, seed=seed) for seed in seeds]
    folders = [Path(workdir) / f"seed-{seed}" for seed in seeds]
    if config.stage_one.stage_one:
        # Each has a trunk of its own, so they have no features in common.
        return [train(*one, **options) for one in zip(configs, folders, strict=True)]
    return _train(configs, folders, **options)


def _train(
    configs: Sequence[Config],
    workdirs: Sequence[Path],
    splits: Sequence[Split] = (),
    *,
    overwrite: bool = False,
    cache_dir: Path | None = None,
    checkpoint_every: int = 1,
    data_shards: int = 1,
    feature_memory: float | None = None,
    tensorboard: bool = False,
    progress: bool = True,
    source: Source | None = None,
) -> list[dict[str, Any]]:
    """Train runs that differ in nothing but their seeds, by default on what the settings name."""
    check_names(configs[0])
    check_stage_one(configs[0])
    if data_shards < 1:
        raise UserError(f"--data-shards is {data_shards}; it must be 1 or more")
    settings = [config.to_dict() for config in configs], checkpoint_every, data_shards
    if not same_everywhere(json.dumps(settings)):
        raise UserError("the processes differ in their settings; give all the same command")
    progress = progress and is_primary()
    with together():
        splits = splits or [load_split(config) for config in configs]
        digests = [split_digest(split) for split in splits]
    if not same_everywhere(json.dumps(digests)):
        raise UserError(
            f"the images of {configs[0].data.data} are not the same for all processes; give every "
            "machine the same files"
        )
    configs = [located(config) for config in configs]
    folders = [Workdir(path, tensorboard=tensorboard) for path in workdirs]
    opened: list[Checkpoints] = []
    with contextlib.ExitStack() as stack:

        def claim() -> list[int]:
            for config, digest, folder in zip(configs, digests, folders, strict=True):
                folder.claim(config, overwrite=overwrite)
                folder.bind_data(digest)
            opened.extend(stack.enter_context(Checkpoints(folder.path)) for folder in folders)
            return [
                i
                for i, (config, checkpoints) in enumerate(zip(configs, opened, strict=True))
                if (checkpoints.latest_epoch() or 0) < config.learning.planned_epochs
            ]

        missing = on_primary(claim)
        if missing:
            with together():
                store = Store(cache_dir, on_host(feature_memory))
            runs, problems = _gather(
                {i: (configs[i], splits[i]) for i in missing},
                digests,
                folders,
                opened,
                store,
                on_device(feature_memory) * data_shards,
                own_part(data_shards),
                source,
                progress=progress,
            )
            run_epochs(runs, problems, checkpoint_every, data_shards=data_shards, progress=progress)
        # A save in the background may fail as late as here.
        on_primary(stack.close)
        for i in set(range(len(configs))) - set(missing):
            if progress:
                log.info("%s is finished: all epochs are done", folders[i].path)

    def test() -> list[dict[str, Any]]:
        results = []
        for folder, split in zip(folders, splits, strict=True):
            calibrate(folder.path, split, cache_dir=cache_dir, progress=progress)
            if split.test:
                found = evaluate(folder.path, split=split, cache_dir=cache_dir, progress=progress)
                results.append(found)
                folder.write_metrics(found)
        return results

    return on_primary(test)


def _gather(
    missing: dict[int, tuple[Config, Split]],
    digests: Sequence[str],
    folders: Sequence[Workdir],
    opened: Sequence[Checkpoints],
    store: Store,
    budget: float,
    part: Part,
    source: Source | None,
    *,
    progress: bool,
) -> tuple[list[Run], list[Problem]]:
    """The runs that are not finished, and their training problems on one bank of features."""
    (first, _), *_ = missing.values()
    options, one = first.features, first.stage_one
    if first.source != (source and source.digest):
        raise UserError(
            "this run starts from another one; use ahl finetune, and name the folder of that one"
        )
    apart = one.stage_one and one.batch_norm == "trained"
    with together():
        trunk = (
            source.trunk
            if source
            else load_trunk(options.trunk, options.trunk_weights, store.folder, apart=apart)
        )
        if is_primary():
            for i in missing:
                folders[i].bind_trunk(trunk.digest)
    model = source.model if source else None
    if one.stage_one:
        ((number, (config, split)),) = missing.items()
        own = opened[number] if is_primary() else None
        trunk, model = trained_trunk(
            config, split, digests[number], trunk, store.folder, own, progress=progress
        )
    with together():
        if is_primary():
            # Extracted now, so that a bad test image stops the run before hours of training.
            for i, (config, split) in missing.items():
                if split.test:
                    test_features(config, split, trunk, store, progress=progress)
                if split.held_out:
                    held_out_features(config, split, trunk, store, progress=progress)
                detector = model.arrays() if one.stage_one and model else None
                opened[i].save_trunk(trunk.name, trunk.params, detector)
    gathered: list[TrainingFeatures] = []
    of_normals: dict[tuple[ImageSource, ...], TrainingFeatures] = {}
    for config, split in missing.values():
        shared = of_normals.get(split.train_normals)
        features = training_features(
            config, split, trunk, store, part, shared=shared, progress=progress
        )
        of_normals[split.train_normals] = features
        gathered.append(features)
    with together():
        # Every seed of a data set has the same training normals.
        whitening = fit_whitening(gathered[0].averages, SCALES) if options.whiten else None
        banks = shared_bank(
            [features.maps for features in gathered],
            options.precision,
            budget,
            part=part,
            counts=[features.counts for features in gathered],
            whitening=whitening,
        )
        runs = [
            Run(
                config,
                len(features.normals.paths),
                len(features.anomalies.paths),
                folders[i],
                opened[i] if is_primary() else None,
                whitening,
            )
            for (i, (config, _)), features in zip(missing.items(), gathered, strict=True)
        ]
        problems = [
            problem_on(run.config, bank, f.averages, f.pseudo.generator, f.pseudo.source)
            for run, f, bank in zip(runs, gathered, banks, strict=True)
        ]
    if model and (source or one.stage_one_heads):
        problems = [dataclasses.replace(problem, model=model) for problem in problems]
    return runs, problems
