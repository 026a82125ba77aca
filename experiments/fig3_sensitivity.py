"""Figure 3 of the paper: how much depends on C, the clusters, and on K, the epochs that psi sees.

    python -m experiments.fig3_sensitivity --data elpv

writes experiments/results/fig3_sensitivity.csv (a row per run), .md and, for each data set, .png.
"""

from dataclasses import dataclass

from ahl_jax.cli.shell import run_command
from experiments.tables.cells import Options, Table
from experiments.tables.sweep import PUBLISHED, parse, sweep


@dataclass(frozen=True)
class Sensitivity(Options):
    """Train and test the missing runs, then write the table and draw it."""

    of: str = PUBLISHED
    """The row of table 1 whose settings are varied."""

    clusters: tuple[int, ...] = (2, 3, 4, 5, 6)
    """Values of C."""

    history: tuple[int, ...] = (2, 3, 5, 7, 10)
    """Values of K."""


def main() -> None:
    """Train the missing runs, then write the table and draw it."""
    options = parse(Sensitivity, __doc__)
    table = Table("fig3_sensitivity", "figure 3", "Figure 3: C and K")
    values = {"clusters": options.clusters, "history": options.history}
    sweep(table, options, options.of, values)


if __name__ == "__main__":
    run_command(main, Sensitivity)
