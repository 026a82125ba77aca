"""Table 7 of the paper, in its appendix: the general setting of MVTec AD, category by category.

    python -m experiments.table7_mvtec --data mvtec_ad

writes experiments/results/table7_mvtec.csv (a row per run) and .md (with the mean over the
categories). The runs are those of table 1.
"""

from ahl_jax.cli.shell import run_command
from experiments.tables.cells import Options, Table
from experiments.tables.parts import COLUMNS, by_part
from experiments.tables.sweep import parse, run

TABLE = Table("table7_mvtec", "7", "Table 7: MVTec AD, category by category", methods=COLUMNS)


def main() -> None:
    """Train the missing runs, then write the table."""
    options = parse(Options, __doc__, data=("mvtec_ad",), shots=(10, 1))
    run(TABLE, options, text_of=by_part)


if __name__ == "__main__":
    run_command(main, Options)
