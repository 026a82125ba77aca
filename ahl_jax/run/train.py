"""A training, as an outline: hold -> claim -> extract -> problems -> epochs -> test."""

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ahl_jax.common.errors import UserError
from ahl_jax.common.remote import any_path, url_of
from ahl_jax.config.settings import Config
from ahl_jax.data.types import Split
from ahl_jax.distributed.processes import is_primary, on_primary
from ahl_jax.run.checks import check_settings, check_split
from ahl_jax.run.choices import alike, with_choices
from ahl_jax.run.claim import Run, agree, claim, hold
from ahl_jax.run.epochs import Training, run_epochs
from ahl_jax.run.evaluate import test_run
from ahl_jax.run.extract import extract, make_problems
from ahl_jax.run.options import RunOptions, run_options
from ahl_jax.run.start import Start

log = logging.getLogger(__name__)


def train(
    config: Config, workdir: Path | str, split: Split | None = None, **options: Any
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
        options: the fields of ``RunOptions``.

    Returns:
        The metrics, as ``metrics.json`` has them; see ``ahl_jax.run.evaluate.evaluate``. Empty, and
        not kept, where the test of ``split`` is.

    Raises:
        UserError: if the settings do not fit the data, an image is bad, or ``workdir`` holds
            another run.
    """
    if not isinstance(config, Config):
        raise UserError(f"config is {config!r}; make one, as by preset('density', DATA)")
    splits = [split] if split else []
    metrics = train_runs([config], [any_path(workdir)], run_options(options), splits)
    return metrics[0] if metrics else {}


def train_seeds(
    config: Config, workdir: Path | str, seeds: Sequence[int], **options: Any
) -> list[dict[str, Any]]:
    """Train one detector per seed, in one program, and test each.

    With stage one they are trained one after the other; where the data choose different settings
    for them, those with the same ones together.

    Every seed gets the folder ``workdir/seed-N``, which is a run like any other. Its result is the
    one that the seed has alone up to rounding (batched products add up in another order).

    Args:
        config: the settings; its own seed is not used.
        workdir: the folder for the seeds' folders.
        seeds: distinct seeds.
        options: the fields of ``RunOptions``.

    Returns:
        The metrics of each seed, in order.

    Raises:
        UserError: as ``train`` does; or if the seeds differ in how many images can be read.
    """
    seeds = list(dict.fromkeys(seeds))
    if not seeds:
        raise UserError("there is no seed; give one or more as `seeds`")
    configs = [dataclasses.replace(config, seed=seed) for seed in seeds]
    folders = [any_path(workdir) / f"seed-{seed}" for seed in seeds]
    if config.stage_one.stage_one:
        # Each has a trunk of its own, so they have no features in common.
        return [train(*one, **options) for one in zip(configs, folders, strict=True)]
    return train_runs(configs, folders, run_options(options))


def train_runs(
    configs: Sequence[Config],
    workdirs: Sequence[Path],
    options: RunOptions,
    splits: Sequence[Split] = (),
    start: Start | None = None,
) -> list[dict[str, Any]]:
    """Train runs that differ in nothing but their seeds, and test each that has a test.

    Args:
        configs: each run's settings.
        workdirs: each run's folder.
        options: how they are carried out.
        splits: each run's images; by default those that its settings name.
        start: the run that a fine-tuned one starts from.

    Returns:
        The metrics of each run that has a test, in order.

    Raises:
        UserError: as ``train`` does.
    """
    check_settings(configs[0])
    for name in ("tensorboard", "profile"):
        if getattr(options, name) and url_of(workdirs[0]):
            raise UserError(f"`{name}` cannot write to {workdirs[0]}; leave it out")
    options = dataclasses.replace(options, progress=options.progress and is_primary())
    runs = agree(configs, workdirs, splits, options)
    for run in runs:
        check_split(run.config, run.split)
    with contextlib.ExitStack() as held:
        hold(runs, held, overwrite=options.overwrite)
        runs = with_choices(runs, options)
        with contextlib.ExitStack() as stack:
            unfinished = claim(runs, stack, overwrite=options.overwrite)
            for group in alike(unfinished):
                _train(group, options, start)
            # A save in the background may fail as late as here.
            on_primary(stack.close)
        if options.progress:
            trained = {run.workdir.path for run in unfinished}
            for run in runs:
                if run.workdir.path not in trained:
                    log.info("all epochs of %s are done already", run.workdir.path)
        return on_primary(lambda: _test(runs, options))


def _train(runs: Sequence[Run], options: RunOptions, start: Start | None) -> None:
    extracted = extract(runs, options, start)
    problems, whitening = make_problems(runs, extracted, options)
    trainings = [
        Training(
            run,
            len(each.normals.paths),
            len(each.anomalies.paths),
            whitening,
            localizer,
            local_head,
        )
        for run, each, localizer, local_head in zip(
            runs, extracted.features, extracted.localizers, extracted.local_heads, strict=True
        )
    ]
    # The host's copy of the features can go once the devices have it.
    del extracted
    run_epochs(trainings, problems, options)


def _test(runs: Sequence[Run], options: RunOptions) -> list[dict[str, Any]]:
    metrics = [test_run(run, options) for run in runs]
    return [each for each in metrics if each]
