"""Table 8 of the paper, in its appendix: the hard setting, class by class.

    python -m experiments.table8_hard --data elpv

writes experiments/results/table8_hard.csv (a row per run) and .md (with the mean over the classes).
The runs are those of table 2.
"""

from ahl_jax.cli.shell import run_command
from experiments.tables.cells import Options, Table
from experiments.tables.parts import COLUMNS, by_part
from experiments.tables.sweep import parse, run

TABLE = Table(
    "table8_hard", "8", "Table 8: hard setting, class by class", ("hard",), methods=COLUMNS
)


def main() -> None:
    """Train the missing runs, then write the table."""
    run(TABLE, parse(Options, __doc__, shots=(10, 1)), text_of=by_part)


if __name__ == "__main__":
    run_command(main, Options)
