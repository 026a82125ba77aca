"""AHL's own settings, each varied alone: steps, rates, gradients, batches, pseudo-anomalies.

    python -m experiments.ablate_settings --data elpv

writes experiments/results/ablate_settings.csv (a row per run), .md and, for each data set, .png.
The base detector alone is a row too.
"""

from dataclasses import dataclass
from typing import Any, Literal

from ahl_jax import UserError
from ahl_jax.cli.shell import run_command
from ahl_jax.detectors import DETECTORS
from experiments.tables.cells import Options, Table
from experiments.tables.methods import METHODS
from experiments.tables.sweep import parse, sweep

DEFAULT = "AHL(Density)"

VALUES: dict[str, tuple[Any, ...]] = {
    "updates_per_epoch": (1, 5, 20),
    "passes": (1, 3, 5),
    "gradient": ("first_order", "exact"),
    "lr_base": (0.00002, 0.0002, 0.0005, 0.002),
    "lr": (0.0001, 0.0005, 0.002, 0.005),
    "batch": (24, 48, 96),
    "importance": ("psi", "uniform", "accuracy"),
    "generators": (
        ("cutmix", "cutpaste"),
        ("cutmix", "draem"),
        ("cutpaste", "draem"),
        ("cutmix", "cutpaste", "draem"),
    ),
    "whiten": (False, True),
}


@dataclass(frozen=True)
class Settings(Options):
    """Train and test the missing runs, then write the table and draw it."""

    of: str = DEFAULT
    """The row of table 1 whose settings are varied."""

    over: tuple[str, ...] = ()
    """Settings to vary, such as gradient and lr; by default all that the script knows. A choice has
    files of its own."""

    settings: tuple[Literal["general", "hard"], ...] = ("general",)
    """Parts of the table."""


def main() -> None:
    """Train the missing runs, then write the table and draw it."""
    options = parse(Settings, __doc__)
    over = tuple(dict.fromkeys(options.over))
    table = Table(
        "ablate_settings",
        "settings",
        "The settings of AHL",
        settings=options.settings,
        variant="".join(f"_{name.replace('_', '-')}" for name in over),
    )
    names = list(VALUES)
    if options.of in METHODS and DETECTORS[METHODS[options.of].detector].whitened:
        names.remove("whiten")
    if unknown := set(over) - set(names):
        raise UserError(f"`over` has no '{min(unknown)}'; choose from {', '.join(names)}")
    values = {name: VALUES[name] for name in over or names}
    sweep(table, options, options.of, values, default=DEFAULT)


if __name__ == "__main__":
    run_command(main, Settings)
