"""Table 3 of the paper: trained on one texture, fine-tuned on the normals of another one.

    python -m experiments.table3_cross_domain --data mvtec_ad

writes experiments/results/table3_cross_domain.csv (a row per run) and .md. By default the five
textures of MVTec AD, where the data has them, else all categories; or name several data sets.
The runs on the sources are those of table 1, and stand for themselves where source and target are
the same.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ahl_jax import finetune
from ahl_jax.cli.shell import run_command
from ahl_jax.common.errors import UserError
from ahl_jax.common.text import markdown_table, mean_std
from ahl_jax.config.presets import FINETUNE_EPOCHS, with_settings
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.open import categories
from ahl_jax.run.options import RunOptions
from ahl_jax.sweeps.cells import Row, results
from experiments.tables.cells import Cell, Options, Table, plan
from experiments.tables.methods import METHODS
from experiments.tables.published import published
from experiments.tables.report import Section, heading, per_seed
from experiments.tables.sweep import parse, run

SETTING = "cross-domain"
TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
TABLE = Table(
    "table3_cross_domain",
    "3",
    "Table 3: cross-domain",
    methods={name: method for name, method in METHODS.items() if method.trained},
)


@dataclass(frozen=True)
class CrossDomain(Options):
    """Train and fine-tune the missing runs, then write the table."""

    data: tuple[str, ...] = ("mvtec_ad",)
    """A data set or folder with categories; or several data sets or folders."""

    methods: tuple[str, ...] = ("DRA", "AHL(DRA)")
    """Rows for every source; those of table 1 that train."""

    epochs: int = FINETUNE_EPOCHS
    """Epochs of fine-tuning."""


@dataclass(frozen=True)
class FineTuned(Cell):
    """The runs of another cell, trained on with the normals of this one's data."""

    start: Cell

    @property
    def data(self) -> DataConfig:
        """Which images it trains on."""
        return dataclasses.replace(self.config.data, shots=0)

    def train(self, seeds: Sequence[int], options: RunOptions) -> list[dict[str, Any]]:
        """Train the missing runs of the other cell, and fine-tune those of this one."""
        list(results([self.start], seeds, options))
        how = {"epochs": self.config.learning.epochs, **vars(options)}
        return [
            finetune(self.start.run(seed).path, self.data, self.run(seed).path, **how)
            for seed in seeds
        ]


def main() -> None:
    """Train and fine-tune the missing runs, then write the table."""
    options = parse(CrossDomain, __doc__)
    run(TABLE, options, pairs(options), markdown)


def pairs(options: CrossDomain) -> list[Cell]:
    """A cell for every target, source and method, in this order.

    Raises:
        UserError: as ``experiments.tables.cells.plan`` does; or if there are not two domains.
    """
    if options.epochs < 1:
        raise UserError(f"`epochs` is {options.epochs}; it must be 1 or more")
    if not options.category and len(options.data) == 1:
        there = categories(options.data[0])
        textures = tuple(name for name in TEXTURES if name in there)
        chosen = textures if len(textures) > 1 else tuple(there)
        options = dataclasses.replace(options, category=chosen)
    cells = plan(TABLE, options)
    domains = dict.fromkeys(cell.dataset for cell in cells)
    if len(domains) < 2:
        raise UserError(
            "one domain makes no pair of source and target; give `category` or `data` two or more"
        )
    of = {(cell.dataset, cell.shots, cell.method): cell for cell in cells}
    return [
        _pair(of[source, target.shots, target.method], target, options)
        for shots in dict.fromkeys(options.shots)
        for domain in domains
        for source in domains
        for target in cells
        if (target.dataset, target.shots) == (domain, shots)
    ]


def markdown(table: Table, cells: Sequence[Cell], rows: Sequence[Row], command: str) -> str:
    """A section for every target; cells that are not trained yet are left out."""
    lines = heading(table, cells, rows, command)
    head = ["source", "method", "AUC-ROC", "AUC-PR", "published AUC-ROC"]
    for target, shots in dict.fromkeys((_target(cell), cell.shots) for cell in cells):
        body = []
        for cell in cells:
            part = Section("", SETTING, shots, (cell.dataset,), (None,), cell.dataset)
            scores = per_seed(part, rows, cell.method, "auc_roc")
            if (_target(cell), cell.shots) != (target, shots) or not scores:
                continue
            source = cell.dataset.split("->")[0]
            values = [scores, per_seed(part, rows, cell.method, "auc_pr")]
            known = published(table.label, SETTING, shots, cell.dataset, cell.method)
            means = [mean_std(list(one.values()), 3) for one in values]
            body.append([source, cell.method, *means, known or ""])
        if body:
            anomalies = f"{shots} labelled anomal{'y' if shots == 1 else 'ies'} of the source"
            lines += ["", f"## Target {target}, {anomalies}", ""]
            shown = head if any(row[-1] for row in body) else head[:-1]
            lines += markdown_table(shown, [row[: len(shown)] for row in body])
    return "\n".join(lines) + "\n"


def _pair(source: Cell, target: Cell, options: CrossDomain) -> Cell:
    """The target's cell where the source's runs are tested: fine-tuned, unless it is the same."""
    ends = [cell.dataset for cell in (source, target)]
    if len(options.data) == 1:
        ends = [name.split("/")[-1] for name in ends]
    pair = dataclasses.replace(target, dataset="->".join(ends), setting=SETTING)
    if source is target:
        return pair
    part = target.folder.parent
    origin = f"from-{quote(source.dataset, safe='')}-{part.name}-{options.epochs}-epochs"
    own = {
        "config": with_settings(target.config, {"epochs": options.epochs}),
        "folder": part.with_name(origin) / target.folder.name,
    }
    return FineTuned(**vars(pair) | own, start=source)


def _target(cell: Cell) -> str:
    return cell.dataset.split("->")[1]


if __name__ == "__main__":
    run_command(main, CrossDomain)
