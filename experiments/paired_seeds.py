"""AHL minus its base detector over ten seeds: the same splits, and a confidence interval.

    python -m experiments.paired_seeds --data elpv

writes experiments/results/paired_seeds.csv (a row per run) and .md. The rows are those of tables 1
and 2 that are compared with another, with those other rows.
"""

from dataclasses import dataclass
from typing import Literal

from ahl_jax.cli.shell import run_command
from experiments.tables.cells import Options, Table
from experiments.tables.methods import METHODS
from experiments.tables.sweep import parse, run

PAIRED = {other for method in METHODS.values() for other in method.against}
ROWS = {name: one for name, one in METHODS.items() if one.against or name in PAIRED}


@dataclass(frozen=True)
class Pairs(Options):
    """Train and test the missing runs, then write the table."""

    settings: tuple[Literal["general", "hard"], ...] = ("general", "hard")
    """Parts of the table."""


def main() -> None:
    """Train the missing runs, then write the table."""
    options = parse(Pairs, __doc__, seeds=tuple(range(10)), shots=(10, 1))
    title = "AHL and its base detectors, seed by seed"
    run(Table("paired_seeds", "paired", title, options.settings, ROWS), options)


if __name__ == "__main__":
    run_command(main, Pairs)
