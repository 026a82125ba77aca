"""The first step of a training: agree on the images, and make the folders the runs' own."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ahl_jax.common.errors import UserError
from ahl_jax.common.text import counted
from ahl_jax.config.settings import Config
from ahl_jax.data.open import load_dataset
from ahl_jax.data.remembered import listed
from ahl_jax.data.types import NO_METRICS, Split
from ahl_jax.distributed.processes import on_primary, same_everywhere, together
from ahl_jax.features.split import split_digest, split_of
from ahl_jax.run.options import RunOptions
from ahl_jax.storage.checkpoints import Checkpoints
from ahl_jax.storage.workdir import Workdir, located

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One seed's run: its settings, its images, its files."""

    config: Config
    """With absolute paths, see ``ahl_jax.storage.workdir.located``."""

    split: Split
    digest: str
    """Of the split, see ``ahl_jax.features.split.split_digest``."""

    workdir: Workdir

    checkpoints: Checkpoints | None = None
    """Process 0 alone has them, and only while it trains."""

    data: str = ""
    """``config.data.data`` as it was given, with which the files of the split begin."""

    @property
    def writer(self) -> Checkpoints:
        """The checkpoints, on process 0."""
        assert self.checkpoints is not None
        return self.checkpoints


def agree(
    configs: Sequence[Config],
    folders: Sequence[Path],
    splits: Sequence[Split],
    options: RunOptions,
) -> list[Run]:
    """The runs, once all processes have been seen to have the same settings and images.

    Args:
        configs: settings that differ in their seeds alone.
        folders: each run's folder.
        splits: each run's images; by default those that its settings name.
        options: how the runs are carried out.

    Raises:
        UserError: if the processes differ, or the data cannot be read.
    """
    settings = [c.to_dict() for c in configs], options.checkpoint_every, options.data_shards
    if not same_everywhere(json.dumps(settings)):
        raise UserError("the processes differ in their settings; give all the same command")
    with together():
        splits = splits or _splits(configs, options)
        digests = [split_digest(split) for split in splits]
    if not same_everywhere(json.dumps(digests)):
        raise UserError(
            f"the images of {configs[0].data.data} are not the same for all processes; give every "
            "machine the same files"
        )
    return [
        Run(
            located(config), split, digest, Workdir(folder, tensorboard=options.tensorboard),
            data=config.data.data,
        )
        for config, split, digest, folder in zip(configs, splits, digests, folders, strict=True)
    ]  # fmt: skip


def _splits(configs: Sequence[Config], options: RunOptions) -> list[Split]:
    """The splits that settings name, which differ in their seeds alone."""
    data = configs[0].data
    dataset = load_dataset(data)
    if options.progress and dataset.note:
        log.info("%s", dataset.note)
    splits = [split_of(dataset, config) for config in configs]
    if options.progress and dataset.labelled and data.shots:
        log.info(
            "%s labels %s itself: training has all of those that the setting sees, and `shots` "
            "draws none",
            data.data,
            counted(sum(map(len, dataset.labelled.values())), "anomal", "y", "ies"),
        )
    if options.progress and not all(split.is_tested for split in splits):
        log.warning("there will be no metrics: %s", NO_METRICS)
    return splits


def hold(runs: Sequence[Run], stack: ExitStack, *, overwrite: bool) -> None:
    """Keep other processes from writing to the runs' folders.

    Args:
        runs: the runs.
        stack: lets go of the folders, on process 0.
        overwrite: as for ``claim``.

    Raises:
        UserError: if another process writes to one of them, or ``claim`` would refuse it.
    """

    def take() -> None:
        for run in runs:
            if not overwrite:
                run.workdir.check(run.config)
            stack.enter_context(run.workdir.held())

    on_primary(take)


def claim(runs: Sequence[Run], stack: ExitStack, *, overwrite: bool) -> list[Run]:
    """Take hold of every run's folder; give those that still have epochs to train.

    Args:
        runs: the runs.
        stack: closes the checkpoints, on process 0.
        overwrite: replace a different run that a folder holds.

    Raises:
        UserError: if a folder holds another run, or the images changed since its run began.
    """
    opened: list[Checkpoints] = []

    def take() -> list[int]:
        for run in runs:
            run.workdir.claim(run.config, overwrite=overwrite)
            run.workdir.bind_data(run.digest)
            if run.workdir.images() is None:
                run.workdir.write_images(listed(run.split, run.data))
        opened.extend(stack.enter_context(Checkpoints(run.workdir.path)) for run in runs)
        return [
            i
            for i, (run, checkpoints) in enumerate(zip(runs, opened, strict=True))
            if (checkpoints.latest_epoch() or 0) < run.config.learning.planned_epochs
        ]

    unfinished = on_primary(take)
    mine: Sequence[Checkpoints | None] = opened or [None] * len(runs)
    return [dataclasses.replace(runs[i], checkpoints=mine[i]) for i in unfinished]
