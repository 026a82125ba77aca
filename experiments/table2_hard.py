"""Table 2 of the paper: the hard setting, each anomaly class as the only one that training sees.

    python -m experiments.table2_hard --data elpv

writes experiments/results/table2_hard.csv (a row per run) and .md (with the mean over the classes).
"""

from ahl_jax.cli.shell import run_command
from experiments.tables.cells import Options, Table
from experiments.tables.sweep import parse, run

TABLE = Table("table2_hard", "2", "Table 2: hard setting", settings=("hard",))


def main() -> None:
    """Train the missing runs, then write the table."""
    run(TABLE, parse(Options, __doc__, shots=(10, 1)))


if __name__ == "__main__":
    run_command(main, Options)
