"""What a sweep over T costs beyond its arithmetic: `ahl ablate`, cold and with compiled programs.

    python -m experiments.benchmarks.ablate [--quick] [--json PATH]

The arithmetic of a value is its number of epochs times the steady epoch: the median of those after
the first one, which holds the compilation. ``overhead_ratio`` is the seconds in the compiled
program, compilation included, over the arithmetic. The last row of a sweep sums over its values;
``wall_ratio`` there takes the whole command instead, from its start to the figure: imports, reading
the features, k-means, checkpoints and tests. ``padded_ratio`` is what one program for every value
would cost with no overhead at all: each value then computes the largest T.

The sweep is run twice, first with no compiled program kept and then with those of the first. The
features are in the store before either.
"""

import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ahl_jax.runtime import run_command
from experiments.benchmarks import common


@dataclass(frozen=True)
class Ablate:
    """Seconds of a sweep over T against the sum of its arithmetic."""

    data: str = "elpv"
    """The data set or folder."""

    detector: str = "dra"
    """The base detector."""

    subsets: tuple[int, ...] = (1, 2, 4, 6, 8, 12)
    """Values of T."""

    epochs: int = 3
    """Epochs of each run; the fewer, the more compilation weighs."""

    quick: bool = False
    """Two small values with the debug preset, within a minute or two."""

    json: Path | None = None
    """Write the rows here as JSON too."""


def ahl(args: Ablate, *words: str, compiled: Path) -> float:
    """Run an ``ahl`` command on the data; its wall-clock seconds."""
    command = [sys.executable, "-m", "ahl_jax", words[0], args.data, *words[1:]]
    command += ["--preset", "debug"] if args.quick else []
    start = time.perf_counter()
    subprocess.run(
        command,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(compiled)},
        stdout=sys.stderr,
        check=True,
    )
    return time.perf_counter() - start


def row(folder: Path, kept: str, value: int) -> dict[str, Any]:
    """One value's row, from its run's history."""
    with (folder / f"subsets-{value}/seed-0/history.csv").open(newline="") as file:
        seconds = [float(line["seconds"]) for line in csv.DictReader(file)]
    return figures(kept, str(value), len(seconds), seconds[0], statistics.median(seconds[1:]),
                   sum(seconds))  # fmt: skip


def figures(
    kept: str, value: str, epochs: int, first: float, epoch: float, training: float
) -> dict[str, Any]:
    """The columns that every row has."""
    return {
        "compiled_programs": kept,
        "value": value,
        "epochs": epochs,
        "first_seconds": first,
        "epoch_seconds": epoch,
        "training_seconds": training,
        "overhead_ratio": training / (epochs * epoch),
        # The longer run has the same overhead and more epochs.
        "overhead_ratio_30": 1 + (training - epochs * epoch) / (30 * epoch),
        "device": common.device_name(),
    }


def sweep(args: Ablate, folder: Path, kept: str) -> list[dict[str, Any]]:
    """Run the sweep; a row per value and one over all of them."""
    values = ",".join(map(str, args.subsets))
    wall = ahl(
        args, "ablate", "--workdir", str(folder / kept), "--over", f"T={values}",
        "--epochs", str(args.epochs), "--detector", args.detector, compiled=folder / "compiled",
    )  # fmt: skip
    rows = [row(folder / kept, kept, value) for value in args.subsets]
    total = {name: sum(r[name] for r in rows)
             for name in ("first_seconds", "epoch_seconds", "training_seconds")}  # fmt: skip
    whole = figures(kept, "all", args.epochs, *total.values())
    largest = max(r["epoch_seconds"] for r in rows)
    arithmetic = args.epochs * whole["epoch_seconds"]
    rows.append(whole)
    ratios = {
        "wall_seconds": wall,
        "wall_ratio": wall / arithmetic,
        "wall_ratio_30": 1 + (wall - arithmetic) / (30 * whole["epoch_seconds"]),
        "padded_ratio": len(args.subsets) * largest / whole["epoch_seconds"],
    }
    return [r | (ratios if r is whole else dict.fromkeys(ratios, "")) for r in rows]


def main() -> None:
    """Fill the store with features, run both sweeps and print the table."""
    args = tyro.cli(Ablate, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    if args.quick:
        args = Ablate(args.data, args.detector, (1, 2), 3, True, args.json)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The cheapest run that needs the same features.
        ahl(args, "train", "--workdir", str(folder / "features"), "--method", "base",
            "--detector", "devnet", "--epochs", "1", "--steps", "1",
            compiled=folder / "features")  # fmt: skip
        rows = [r for kept in ("none", "kept") for r in sweep(args, folder, kept)]
    common.report(rows, args.json)


if __name__ == "__main__":
    run_command(main)
