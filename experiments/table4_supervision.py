"""Table 4 of the paper: from no anomaly to labelled anomalies of every class.

    python -m experiments.table4_supervision --data elpv

writes experiments/results/table4_supervision.csv (a row per run) and .md. PatchCore and the
Gaussian look at no anomaly, the rows with AHL and the closed form at M labelled anomalies, and the
fully supervised ones, FS-DRA and FS-Density, at M of every class. Those are left out of their
tests, so these two rows have slightly fewer test images.
"""

from ahl_jax.cli.shell import run_command
from experiments.tables.cells import Options, Table
from experiments.tables.methods import SUPERVISION
from experiments.tables.sweep import parse, run

TABLE = Table("table4_supervision", "4", "Table 4: how much supervision helps", methods=SUPERVISION)


def main() -> None:
    """Score and train the missing runs, then write the table."""
    run(TABLE, parse(Options, __doc__))


if __name__ == "__main__":
    run_command(main, Options)
