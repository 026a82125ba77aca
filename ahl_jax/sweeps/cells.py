"""Cells of a sweep: settings that are trained and tested with the same seeds, each in its folder.

Finished runs are only read, so a sweep that was stopped goes on where it was.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ahl_jax.backbones import load_trunk
from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import Config, DataConfig
from ahl_jax.data.open import load_dataset
from ahl_jax.data.splits import make_split
from ahl_jax.data.types import Split
from ahl_jax.features.split import split_digest
from ahl_jax.learning.hadg import check_clusters
from ahl_jax.run.checks import check_settings
from ahl_jax.run.options import RunOptions
from ahl_jax.run.train import train_seeds
from ahl_jax.storage.workdir import Workdir

log = logging.getLogger(__name__)

Row = dict[str, Any]
"""A run in a table; it has ``FIGURES``, and the columns that the table adds."""

FIGURES = ("seed", "auc_roc", "auc_pr", "seconds")
"""Columns of every table; ``seconds`` is the time of the epochs alone."""


@dataclass(frozen=True)
class Cell:
    """Settings, and the folder of their runs."""

    config: Config
    folder: Path
    """It has a run ``seed-N`` per seed. Cells with the same settings have the same folder."""

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.folder.name

    @property
    def data(self) -> DataConfig:
        """Which images it trains on."""
        return self.config.split_data

    def run(self, seed: int) -> Workdir:
        """The run of a seed."""
        return Workdir(self.folder / f"seed-{seed}")

    def train(self, seeds: Sequence[int], options: RunOptions) -> list[dict[str, Any]]:
        """Train and test the missing runs in one program, and give the metrics of each seed."""
        return train_seeds(self.config, self.folder, seeds, **vars(options))


C = TypeVar("C", bound=Cell)

DEFAULTS = RunOptions()


def check(cells: Sequence[Cell], seeds: Sequence[int], options: RunOptions = DEFAULTS) -> None:
    """Refuse cells that cannot be trained, before any is.

    Raises:
        UserError: for settings that do not fit the data, or a folder with another run. The weights
            of the trunk have to be those of the runs that are there too.
    """
    split_of, digest_of = functools.cache(_split), functools.cache(_trunk_digest)
    for cell in cells:
        try:
            check_settings(cell.config)
            for seed in seeds:
                config, run = dataclasses.replace(cell.config, seed=seed), cell.run(seed)
                normals = split_of(config.split_data, seed).train_normals
                check_clusters(config.subsets.clusters, len(normals))
                if options.overwrite:
                    continue
                run.check(config)
                named = config.features
                trunk = named.trunk, named.trunk_weights, options.cache_dir, named.levels
                if run.path.exists() and (digest := digest_of(*trunk)):
                    run.check_trunk(digest)
        except UserError as error:
            raise UserError(f"{cell.name}: {error}") from error


def results(
    cells: Sequence[C], seeds: Sequence[int], options: RunOptions = DEFAULTS
) -> Iterator[tuple[C, list[Row]]]:
    """Train and test the missing runs, cell by cell.

    Args:
        cells: in order; those with the same folder are trained once.
        seeds: distinct seeds.
        options: how runs are carried out.

    Yields:
        Each cell with the figures of its seeds, as soon as they are there.

    Raises:
        UserError: as ``ahl_jax.train`` does, or if there is nothing to test on.
    """
    digest_of = functools.cache(_digest)
    done: dict[Path, list[Row]] = {}
    for number, cell in enumerate(cells, 1):
        if cell.folder not in done:
            place = f"{number} of {len(cells)}"
            found = metrics_of(cell, seeds, options, place, digest_of)
            if not found:
                raise UserError("a sweep compares tests, and the data has no anomalies for one")
            done[cell.folder] = [{name: one[name] for name in FIGURES} for one in found]
        yield cell, done[cell.folder]


def _digest(data: DataConfig, seed: int) -> str:
    return split_digest(_split(data, seed))


def metrics_of(
    cell: Cell,
    seeds: Sequence[int],
    options: RunOptions,
    place: str,
    digest_of: Callable[[DataConfig, int], str] = _digest,
) -> list[dict[str, Any]]:
    """The metrics of each seed of a cell, whose missing runs are trained and tested.

    Args:
        cell: the cell.
        seeds: as for ``results``.
        options: as for ``results``.
        place: of the cell among all, for the progress.
        digest_of: that of the images on which a seed of the settings trains.

    Raises:
        UserError: as ``ahl_jax.train`` does.
    """
    # Event files for TensorBoard are written for finished runs as well.
    again = options.overwrite or options.tensorboard
    found = [] if again else _finished(cell, seeds, digest_of)
    if found:
        return found
    if options.progress:
        log.info("%s (%s)", cell.name, place)
    return cell.train(seeds, options)


def _finished(
    cell: Cell, seeds: Sequence[int], digest_of: Callable[[DataConfig, int], str]
) -> list[dict[str, Any]]:
    """The metrics of all seeds, if they are there and of the same images."""
    found = [
        metrics
        for seed in seeds
        if (metrics := cell.run(seed).metrics())
        and cell.run(seed).data_digest() == digest_of(cell.data, seed)
    ]
    return found if len(found) == len(seeds) else []


def _split(data: DataConfig, seed: int) -> Split:
    """The images, which all cells on the same data have in common."""
    return make_split(load_dataset(data), data, seed)


def _trunk_digest(
    name: str, weights: Path | None, cache_dir: Path | None, levels: int
) -> str | None:
    """That of the weights; None without any, where finished runs can still be read."""
    with contextlib.suppress(UserError):
        return load_trunk(name, weights, cache_dir, levels=levels).digest
    return None
