"""The density detector's settings, compared on training data alone.

    python -m experiments.cross_validate --data elpv headct --levels 1 2 4

The figure is Density's ``left_out_auc``: how well it tells labelled anomalies that it was not given
from the training normals. No test image is read. Writes experiments/results/cross_validate.md
(cross_validate_TRUNK.md where another trunk than the default is named).
"""

import functools
import itertools
import shlex
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from tqdm import tqdm

from ahl_jax import UserError, preset
from ahl_jax.backbones import load_trunk
from ahl_jax.cli.shell import keep_compiled_programs, run_command
from ahl_jax.common.commit import commit
from ahl_jax.common.files import replace_file
from ahl_jax.common.text import markdown_table
from ahl_jax.config.presets import with_settings
from ahl_jax.config.settings import SCALES, Views, averaged
from ahl_jax.data.open import categories
from ahl_jax.data.records import ImageSource
from ahl_jax.data.types import Split
from ahl_jax.detectors import Blocks
from ahl_jax.detectors.whitening import fit_whitening
from ahl_jax.features import Store, extract
from ahl_jax.features.pooling import pooled_features
from ahl_jax.features.split import load_split
from ahl_jax.run.choices import left_out_auc
from experiments.tables.cells import dataset_name
from experiments.tables.report import labelled_anomalies

DEFAULT = preset("density", "")
_FEATURES = DEFAULT.features
DEFAULT_ROW = (_FEATURES.trunk, _FEATURES.levels, DEFAULT.detector.groups, _FEATURES.views)

Row = tuple[str, int, int, Views, int]
"""Trunk, levels, groups, views and poolings."""


@dataclass(frozen=True)
class Options:
    """Compare every combination of trunks, levels, groups, views and poolings."""

    data: tuple[str, ...] = ("elpv",)
    """Data sets or folders in MVTec layout; one with categories has a column for each."""

    seeds: tuple[int, ...] = tuple(range(10))
    """Seeds of the split; every figure is the mean over them."""

    shots: tuple[int, ...] = (10,)
    """M, the number of labelled anomalies; several make a part of the table each. One alone tests
    the density head only."""

    trunk: tuple[str, ...] = (DEFAULT.features.trunk,)
    """Trunks."""

    levels: tuple[int, ...] = (1, 4)
    """Numbers of the trunk's levels."""

    groups: tuple[int, ...] = (1, 3)
    """Numbers of groups of similar normals."""

    views: tuple[Views, ...] = (2, 8, "2+8")
    """Numbers of views."""

    poolings: tuple[Literal[1, 2, 3], ...] = (1, 3)
    """Numbers of poolings."""

    quick: bool = False
    """At most 24 images of a kind, 192 pixels wide, to see in minutes that everything runs."""

    out: Path = Path("experiments/results")
    """The folder for the table."""


def main() -> None:
    """Measure every combination, then write the table."""
    options = tyro.cli(Options, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    keep_compiled_programs()
    others = [name for name in options.trunk if name != DEFAULT.features.trunk]
    name = "_".join(["cross_validate", *others, *["quick"] * options.quick])
    options.out.mkdir(parents=True, exist_ok=True)
    text = _markdown(measured(options))
    replace_file(options.out / f"{name}.md", text)
    print(text)


def measured(options: Options) -> dict[int, dict[Row, dict[str, float]]]:
    """Of each M and row, the figure of every data set.

    Raises:
        UserError: if an option has no value or a bad one, or the data have too few anomalies.
    """
    if () in vars(options).values() or min(options.shots) < 1:
        raise UserError("every option needs a value, and `shots` 1 or more")
    limits = {"limit": 24, "image_size": 192} if options.quick else {}
    configs = {
        dataset_name(name, part): preset("density", name, category=part, held_out=0.0, **limits)
        for name in options.data
        for part in categories(name) or (None,)
    }
    runs = [{"shots": m, "seed": s} for m in options.shots for s in options.seeds]
    # Before anything is extracted, as this refuses what does not fit.
    splits = {
        name: [load_split(with_settings(config, run)) for run in runs]
        for name, config in configs.items()
    }
    trunk_of = functools.cache(load_trunk)
    choices = (options.trunk, options.levels, options.groups, options.views, options.poolings)
    found: dict[int, dict[Row, dict[str, float]]] = {
        shots: {row: {} for row in itertools.product(*choices)} for shots in options.shots
    }
    features = itertools.product(configs, options.trunk, options.levels, options.views)
    for name, trunk_name, levels, views in tqdm(list(features), unit="features"):
        trunk = trunk_of(trunk_name, levels=levels)
        own = {"trunk": trunk_name, "levels": levels, "views": views}
        config = with_settings(configs[name], own)
        paths = list(dict.fromkeys(path for one in splits[name] for path in _training(one)))
        maps, _ = extract(paths, trunk, config.features, Store(), progress=False)
        means, block = len(averaged(views)), SCALES * trunk.channels
        most = Blocks(max(options.poolings), means)
        pooled = dict(zip(paths, pooled_features(maps, most), strict=True))
        # No normals are held out, so all seeds have the same.
        normals = np.stack([pooled[path] for path in splits[name][0].train_normals])
        whitening = fit_whitening(normals, SCALES, trunk.parts, most.total)
        for groups, poolings in itertools.product(options.groups, options.poolings):
            part, width = whitening.of_first(poolings * means), poolings * means * block
            aucs: dict[int, list[float]] = {}
            for run, split in zip(runs, splits[name], strict=True):
                seen = np.stack([pooled[sample.path][:width] for sample in split.seen])
                settings = with_settings(config, {"groups": groups, **run})
                auc = left_out_auc(settings, part, normals[:, :width], seen)
                aucs.setdefault(run["shots"], []).append(auc)
            for shots, values in aucs.items():
                row = trunk_name, levels, groups, views, poolings
                found[shots][row][name] = statistics.mean(values)
    return found


def _training(split: Split) -> list[ImageSource]:
    """The training normals, then the labelled anomalies."""
    return [*split.train_normals, *(sample.path for sample in split.seen)]


def _markdown(found: dict[int, dict[Row, dict[str, float]]]) -> str:
    lines = [
        "# The density detector's settings on training data alone",
        "",
        "AUC-ROC of labelled anomalies that are left out, against the training normals. \\* marks "
        "the default; it takes one pooling where that is clearly better, data set by data set.",
        "",
        f"Command: `{shlex.join(['python', '-m', 'experiments.cross_validate', *sys.argv[1:]])}`",
        "",
        f"Commit: {commit() or 'unknown'}",
    ]
    for shots, rows in found.items():
        head, body = ["trunk", "levels", "groups", "views", "poolings"], []
        for row, aucs in rows.items():
            mark = " \\*" if row[:4] == DEFAULT_ROW else ""
            figures = [*aucs.values(), statistics.mean(aucs.values())]
            body.append([row[0] + mark, *map(str, row[1:]), *(f"{auc:.4f}" for auc in figures)])
        head += [*next(iter(rows.values())), "mean"]
        lines += ["", f"## {labelled_anomalies(shots)}", "", *markdown_table(head, body)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_command(main, Options)
