"""Ablations: settings varied one at a time around a config, each value a run like any other.

A value of a setting is the folder WORKDIR/NAME-VALUE with a run per seed, so a sweep that was
stopped goes on where it was. The tables and the figure are made from the runs.
"""

import dataclasses
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from ahl_jax.common.errors import UserError
from ahl_jax.common.files import csv_text, replace_file
from ahl_jax.config.settings import Config, data_name
from ahl_jax.features.split import load_split
from ahl_jax.learning.hadg import check_clusters
from ahl_jax.run.checks import check_names
from ahl_jax.run.train import Options, train_seeds
from ahl_jax.storage.workdir import Workdir
from ahl_jax.sweeps import figure as report
from ahl_jax.sweeps.points import Point, plan

log = logging.getLogger(__name__)


def ablate(
    config: Config,
    workdir: Path | str,
    over: Sequence[str],
    seeds: Sequence[int] = (),
    *,
    base: bool = False,
    command: str | None = None,
    **options: Unpack[Options],
) -> list[report.Row]:
    """Train and test every point, or what a stopped call left of them, and write the tables.

    Args:
        config: the settings to vary one at a time.
        workdir: the folder for the points, and for ``ablation.csv``, ``.md`` and ``.png``.
        over: see ``ahl_jax.sweeps.points.plan``.
        seeds: distinct seeds, trained in one program; by default the config's own.
        base: whether to compare with the base detector alone.
        command: how to repeat this, for the table.
        options: see ``ahl_jax.run.train.Options``.

    Returns:
        The rows of ``ablation.csv``: one per point and seed. ``seconds`` is what training took,
        compilation left out; ``epoch_seconds`` is the median epoch.

    Raises:
        UserError: as ``plan`` and ``ahl_jax.train`` do. Settings, splits and folders of all points
            are checked before the first one is trained.
    """
    workdir = Path(workdir)
    seeds = list(dict.fromkeys(seeds)) or [config.seed]
    points = plan(config, over, base=base)
    check_names(config)
    for point in points:
        _check(point, workdir, seeds, overwrite=options.get("overwrite", False))
    done: dict[str, list[report.Row]] = {}
    rows: list[report.Row] = []
    for number, point in enumerate(points, 1):
        if point.folder not in done:
            if options.get("progress", True):
                log.info("%s = %s (%d of %d)", point.name, point.value, number, len(points))
            metrics = train_seeds(point.config, workdir / point.folder, seeds, **options)
            if not metrics:
                raise UserError("a sweep compares tests, and the data has no anomalies for one")
            done[point.folder] = [_row(workdir, point.folder, one) for one in metrics]
        rows += [{"over": point.name, "value": point.value} | row for row in done[point.folder]]
        # After every point, so that a sweep that is stopped has its tables too.
        replace_file(workdir / "ablation.csv", csv_text(rows))
        replace_file(workdir / "ablation.md", report.table_markdown(config, rows, command))

    def scores(point: Point) -> list[float]:
        return [row["auc_roc"] for row in done[point.folder]]

    swept = points[1:] if base else points
    figure = report.draw(
        [(point, scores(point)) for point in swept],
        scores(points[0]) if base else None,
        title=data_name(config),
    )
    replace_file(workdir / "ablation.png", report.png(figure))
    return rows


def _check(point: Point, workdir: Path, seeds: Sequence[int], *, overwrite: bool) -> None:
    """Find what would stop a point before any is trained."""
    try:
        for seed in seeds:
            config = dataclasses.replace(point.config, seed=seed)
            check_clusters(config.subsets.clusters, len(load_split(config).train_normals))
            if not overwrite:
                Workdir(workdir / point.folder / f"seed-{seed}").check(config)
    except UserError as error:
        raise UserError(f"--over {point.name}={point.value}: {error}") from error


def _row(workdir: Path, folder: str, metrics: dict[str, Any]) -> report.Row:
    run = Path(folder) / f"seed-{metrics['seed']}"
    epochs = Workdir(workdir / run).read_history(metrics["epochs"])
    seconds = statistics.median_low(float(row["seconds"]) for row in epochs)
    columns = {name: metrics[name] for name in ("seed", "auc_roc", "auc_pr", "seconds")}
    return columns | {"epoch_seconds": seconds, "run": run.as_posix()}
