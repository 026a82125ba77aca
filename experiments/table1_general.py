"""Table 1 of the paper: the general setting, with 10 labelled anomalies and with one.

    python -m experiments.table1_general --data elpv

writes experiments/results/table1_general.csv (a row per run) and .md.
"""

from ahl_jax.cli.shell import run_command
from experiments.tables.cells import Options, Table
from experiments.tables.sweep import parse, run

TABLE = Table("table1_general", "1", "Table 1: general setting")


def main() -> None:
    """Train the missing runs, then write the table."""
    run(TABLE, parse(Options, __doc__, shots=(10, 1)))


if __name__ == "__main__":
    run_command(main, Options)
