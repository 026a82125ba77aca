"""Ablations: settings varied one at a time around a config, each value a run like any other.

A value of a setting is the folder WORKDIR/NAME-VALUE with a run per seed. The tables and the figure
are made from the runs.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ahl_jax.common.commit import commit
from ahl_jax.common.files import csv_text, replace_file
from ahl_jax.common.remote import any_path
from ahl_jax.common.text import markdown_table, mean_std
from ahl_jax.config.settings import Config, data_name
from ahl_jax.detectors.names import method_name
from ahl_jax.run.checks import check_settings
from ahl_jax.run.options import RunOptions, run_options
from ahl_jax.storage.workdir import Workdir
from ahl_jax.sweeps.cells import Row, check, results
from ahl_jax.sweeps.figure import Mark, draw, png
from ahl_jax.sweeps.points import Point, plan


def ablate(
    config: Config,
    workdir: Path | str,
    over: Sequence[str],
    seeds: Sequence[int] = (),
    *,
    base: bool = False,
    command: str | None = None,
    **options: Any,
) -> list[Row]:
    """Train and test the missing runs of every point, and write the tables.

    Args:
        config: the settings to vary one at a time.
        workdir: the folder for the points, and for ``ablation.csv``, ``.md`` and ``.png``.
        over: see ``ahl_jax.sweeps.points.plan``.
        seeds: distinct seeds, trained in one program; by default the config's own.
        base: whether to compare with the base detector alone.
        command: how to repeat this, for the table.
        options: the fields of ``ahl_jax.run.options.RunOptions``.

    Returns:
        The rows of ``ablation.csv``, one per point and seed: over, value, seed, auc_roc, auc_pr,
        seconds, epoch_seconds, run. ``seconds`` is the time of the epochs alone;
        ``epoch_seconds`` is the median epoch.

    Raises:
        UserError: as ``plan`` and ``ahl_jax.train`` do. Settings, splits and folders of all points
            are checked before the first one is trained.
    """
    workdir, how = any_path(workdir), run_options(options)
    seeds = list(dict.fromkeys(seeds)) or [config.seed]
    points = plan(config, over, workdir, base=base)
    check_settings(config)
    check(points, seeds, how)
    with Workdir(workdir).held():
        return _ablated(config, points, seeds, how, workdir, command, base=base)


def _ablated(
    config: Config,
    points: Sequence[Point],
    seeds: Sequence[int],
    how: RunOptions,
    workdir: Path,
    command: str | None,
    *,
    base: bool,
) -> list[Row]:
    rows: list[Row] = []
    panels: dict[str, list[Mark]] = {}
    alone: list[float] | None = None
    for point, found in results(points, seeds, how):
        rows += [_row(point, one) for one in found]
        # After every point, so that a sweep that is stopped has its tables too.
        replace_file(workdir / "ablation.csv", csv_text(rows))
        replace_file(workdir / "ablation.md", _markdown(config, rows, command))
        scores = [one["auc_roc"] for one in found]
        if base and alone is None:
            alone = scores
        else:
            mark = Mark(point.value, point.number, scores, point.config == config)
            panels.setdefault(point.setting, []).append(mark)
    title = f"{method_name(config)} on {data_name(config)}"
    replace_file(workdir / "ablation.png", png(draw(panels, alone, title=title)))
    return rows


def _row(point: Point, figures: Row) -> Row:
    run = point.run(figures["seed"])
    epochs = run.read_history(point.config.learning.planned_epochs)
    return {
        "over": point.setting,
        "value": point.value,
        **figures,
        "epoch_seconds": statistics.median_low(float(row["seconds"]) for row in epochs),
        "run": f"{point.folder.name}/{run.path.name}",
    }


def _markdown(config: Config, rows: Sequence[Row], command: str | None) -> str:
    """A table per setting: mean and standard deviation over the seeds."""
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    over = "Mean ± standard deviation over seeds " if len(seeds) > 1 else "Seed "
    lines = [
        f"# Ablation on {data_name(config)}",
        "",
        "Each setting is varied alone.",
        f"{over}{', '.join(map(str, seeds))}; the last epoch counts.",
        "Seconds of training leave compilation out; those of an epoch are the median.",
    ]
    lines += ["", f"Command: `{command}`"] if command else []
    lines += ["", f"Commit: {version}"] if (version := commit()) else []
    columns = {"auc_roc": 4, "auc_pr": 4, "seconds": 1, "epoch_seconds": 2}
    for name in dict.fromkeys(row["over"] for row in rows):
        values: dict[str, list[Row]] = {}
        for row in rows:
            if row["over"] == name:
                values.setdefault(row["value"], []).append(row)
        head = [name, "AUC-ROC", "AUC-PR", "seconds of training", "seconds per epoch"]
        cells = [
            [value, *(mean_std([row[c] for row in mine], digits) for c, digits in columns.items())]
            for value, mine in values.items()
        ]
        lines += ["", *markdown_table(head, cells)]
    return "\n".join(lines) + "\n"
