"""How much depends on T, the number of subsets, from none (the base detector alone) to 12.

    python -m experiments.ablate_subsets --data elpv

writes experiments/results/ablate_subsets.csv (a row per run), .md and, for each data set, .png.
"""

from dataclasses import dataclass

from ahl_jax.cli.shell import run_command
from experiments.tables.cells import Options, Table
from experiments.tables.sweep import PUBLISHED, parse, sweep


@dataclass(frozen=True)
class Subsets(Options):
    """Train and test the missing runs, then write the table and draw it."""

    of: str = PUBLISHED
    """The row of table 1 whose settings are varied."""

    subsets: tuple[int, ...] = tuple(range(1, 13))
    """Values of T."""


def main() -> None:
    """Train the missing runs, then write the table and draw it."""
    options = parse(Subsets, __doc__)
    table = Table("ablate_subsets", "subsets", "The number of subsets T")
    sweep(table, options, options.of, {"subsets": options.subsets})


if __name__ == "__main__":
    run_command(main, Subsets)
