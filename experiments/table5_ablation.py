"""Table 5 of the paper: the gain of each component of AHL over DRA, general and hard setting.

    python -m experiments.table5_ablation --data elpv

writes experiments/results/table5_ablation.csv (a row per run) and .md. The rows are:

- DRA alone; +Ensemble, the mean score of T of them;
- +CDL, on subsets of random normals, w_i = 1/T;
- +HADG+CDL, on the heterogeneous subsets, w_i = 1/T;
- +HADG+CDL-, with w_i from each base model's accuracy outside of its support set;
- +HADG+CDL+, the whole of AHL.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from ahl_jax.cli.shell import run_command
from experiments.tables.cells import Options, Table
from experiments.tables.methods import COMPONENTS, Method
from experiments.tables.sweep import parse, run


@dataclass(frozen=True)
class Ablation(Options):
    """Train and test the missing runs, then write the table."""

    settings: tuple[Literal["general", "hard"], ...] = ("general", "hard")
    """Parts of the table."""

    updates_per_epoch: int = 1
    """How often an epoch updates the unified detector, in the rows that have one."""


def main() -> None:
    """Train the missing runs, then write the table."""
    options = parse(Ablation, __doc__)
    table = Table("table5_ablation", "5", "Table 5: components of AHL", settings=options.settings)
    rows = dict(COMPONENTS)
    if (updates := options.updates_per_epoch) != 1:
        title = f"{table.title}, {updates} updates per epoch"
        table = dataclasses.replace(table, variant=f"_{updates}updates", title=title)
        for row, method in COMPONENTS.items():
            if "method" not in method.settings:
                settings = {**method.settings, "updates_per_epoch": updates}
                rows[row] = Method(settings, method.against)
    run(dataclasses.replace(table, methods=rows), options)


if __name__ == "__main__":
    run_command(main, Ablation)
