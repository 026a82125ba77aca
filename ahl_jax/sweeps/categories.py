"""A run for each category of a data set, and beside these the run of all of them together."""

import logging
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ahl_jax.common.errors import UserError
from ahl_jax.common.files import csv_text, replace_file
from ahl_jax.common.remote import any_path
from ahl_jax.common.text import markdown_table, mean_std
from ahl_jax.config.presets import with_settings
from ahl_jax.config.settings import Config
from ahl_jax.data.open import categories, load_dataset
from ahl_jax.run.checks import check_settings
from ahl_jax.run.options import RunOptions, run_options
from ahl_jax.run.train import train
from ahl_jax.storage.workdir import Workdir
from ahl_jax.sweeps.cells import FIGURES, Cell, Row, metrics_of

log = logging.getLogger(__name__)

JOINT = "joint"
"""The folder of the run of all categories."""

_HEADS = {
    "auc_roc": "AUC-ROC",
    "auc_pr": "AUC-PR",
    "joint_auc_roc": "AUC-ROC, joint",
    "joint_auc_pr": "AUC-PR, joint",
}


@dataclass(frozen=True)
class Categories:
    """The outcome of ``train_categories``."""

    rows: list[Row] = field(default_factory=list)
    """Those of ``categories.csv``, for each category that has metrics and each seed: category,
    seed, auc_roc, auc_pr, seconds, and where there is a joint run joint_auc_roc and joint_auc_pr,
    which are of the category's own test images; empty until they are there."""

    failed: dict[str, UserError] = field(default_factory=dict)
    """The reasons by the names of the categories that failed, ``JOINT`` among them."""

    def table(self) -> list[str]:
        """The lines of a table in Markdown; the last one is the mean over these categories."""
        columns = [name for name in _HEADS if any(name in row for row in self.rows)]
        names = dict.fromkeys(row["category"] for row in self.rows)
        of_category = {name: self._where("category", name) for name in names}
        seeds = [self._where("seed", seed) for seed in {row["seed"]: None for row in self.rows}]
        body = [
            [name, *(_in_words([row[column] for row in rows]) for column in columns)]
            for name, rows in of_category.items()
        ]
        means = (_in_words([_mean([row[c] for row in rows]) for rows in seeds]) for c in columns)
        head = ["category", *(_HEADS[column] for column in columns)]
        return markdown_table(head, [*body, [f"mean of {len(names)}", *means]])

    def _where(self, column: str, value: Any) -> list[Row]:
        return [row for row in self.rows if row[column] == value]


@dataclass(frozen=True)
class _Category(Cell):
    """A category, or all of them together; without ``several`` seeds its folder is the run."""

    several: bool

    @property
    def is_joint(self) -> bool:
        """Whether it is of all categories together."""
        return self.config.data.joint

    def run(self, seed: int) -> Workdir:
        return super().run(seed) if self.several else Workdir(self.folder)

    def check(self, seeds: Sequence[int], options: RunOptions) -> None:
        """Refuse folders with runs of other settings, whose metrics would be read as these.

        Raises:
            UserError: for the first one.
        """
        for seed in () if options.overwrite else seeds:
            self.run(seed).check(with_settings(self.config, {"seed": seed}))

    def train(self, seeds: Sequence[int], options: RunOptions) -> list[dict[str, Any]]:
        if self.several:
            return super().train(seeds, options)
        metrics = train(self.config, self.folder, **vars(options))
        return [metrics] if metrics else []


def train_categories(
    config: Config, workdir: Path | str, seeds: Sequence[int] = (), **options: Any
) -> Categories:
    """Train and test a detector for each category of a data set, one after the other.

    A category that fails is left out, with a warning, and the others go on. The same call goes on
    with one that was stopped, and trains again what failed; finished runs are only read.

    Args:
        config: the settings; their category is not used. With ``joint`` one more detector is
            trained for all categories, in the folder ``JOINT``.
        workdir: the folder for a run per category, each under its name, and for
            ``categories.csv`` and ``categories.md``.
        seeds: distinct seeds, each a run ``CATEGORY/seed-N``; by default the config's own, whose
            run is ``CATEGORY``.
        options: the fields of ``RunOptions``.

    Raises:
        UserError: if the data has no categories, a name is no folder's, the settings do not fit, or
            the folder cannot be written to.
    """
    workdir, how = any_path(workdir), run_options(options)
    check_settings(config)
    cells = _cells(config, workdir, several=bool(seeds))
    seeds = list(dict.fromkeys(seeds)) or [config.seed]
    with Workdir(workdir).held():
        return _trained(cells, seeds, how, workdir)


def _cells(config: Config, workdir: Path, *, several: bool) -> list[_Category]:
    """The categories' cells, then that of the joint run if there is to be one."""
    alone = with_settings(config, {"joint": False, "category": None})
    names = categories(config.data.data)
    if not names:
        raise UserError(f"{load_dataset(alone.data).name} has no categories; leave out `category`")
    home, taken = Path(os.path.normpath(workdir)), [JOINT] if config.data.joint else []
    for name in names:
        if Path(os.path.normpath(home / name)).parent != home or name in taken:
            raise UserError(
                f"the category {name!r} cannot have a folder of its name in {workdir}; train each "
                "by itself, with `category` and a `workdir` of its own"
            )
    settings: dict[str, dict[str, Any]] = {name: {"category": name} for name in names}
    settings |= {name: {"joint": True} for name in taken}
    return [
        _Category(with_settings(alone, values), workdir / name, several)
        for name, values in settings.items()
    ]


def _trained(
    cells: Sequence[_Category], seeds: Sequence[int], how: RunOptions, workdir: Path
) -> Categories:
    found: list[tuple[_Category, list[dict[str, Any]]]] = []
    rows: list[Row] = []
    failed: dict[str, UserError] = {}
    for number, cell in enumerate(cells, 1):
        try:
            cell.check(seeds, how)
            found.append((cell, metrics_of(cell, seeds, how, f"{number} of {len(cells)}")))
        except UserError as error:
            log.warning("%s failed: %s", cell.name, error)
            failed[cell.name] = error
            continue
        rows = _rows(found, joint=cells[-1].is_joint)
        if rows:
            # After every category, so that what is stopped has its table too.
            replace_file(workdir / "categories.csv", csv_text(rows))
            replace_file(workdir / "categories.md", "\n".join([*Categories(rows).table(), ""]))
    return Categories(rows, failed)


def _rows(found: Sequence[tuple[_Category, Sequence[dict[str, Any]]]], *, joint: bool) -> list[Row]:
    """The rows by the metrics of each seed of each cell; ``joint`` is whether one is joint."""
    of_seed = {
        metrics["seed"]: metrics["per_category"]
        for cell, runs in found
        if cell.is_joint
        for metrics in runs
    }
    rows: list[Row] = []
    for cell, runs in found:
        for metrics in () if cell.is_joint else runs:
            row: Row = {"category": cell.name}
            row |= {key: metrics[key] for key in FIGURES}
            if joint:
                both = of_seed.get(metrics["seed"], {}).get(cell.name, {})
                row |= {f"joint_{key}": both.get(key, "") for key in ("auc_roc", "auc_pr")}
            rows.append(row)
    return rows


def _mean(values: Sequence[float | str]) -> float | str:
    """The mean; empty where one of the values is."""
    return statistics.mean(numbers) if (numbers := _numbers(values)) else ""


def _in_words(values: Sequence[float | str]) -> str:
    return mean_std(numbers, 4) if (numbers := _numbers(values)) else ""


def _numbers(values: Sequence[float | str]) -> list[float]:
    """The values; none where one of them is empty."""
    numbers = [value for value in values if not isinstance(value, str)]
    return numbers if len(numbers) == len(values) else []
