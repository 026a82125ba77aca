"""The cost of a sweep over T beyond its arithmetic: `ahl ablate`, cold and with kept programs.

    python -m experiments.benchmarks.ablate [--quick] [--json PATH]

The arithmetic of a value is its number of epochs times the steady epoch: the median of those after
the first one. ``overhead_ratio`` is wall-clock time over the arithmetic: for a value, from the end
of the value before it to its own metrics; over all values, of the whole command. So compilation,
imports, reading the features, k-means, checkpoints, tests and the figure are all in it.
``padded_ratio`` is what one program for every value would cost with no overhead at all: each value
then computes the largest T.

The sweep is run twice, first with no compiled program kept and then with those of the first. The
features are in the store before either.
"""

import csv
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ahl_jax.cli.shell import run_command
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

    cold_only: bool = False
    """Leave out the second sweep, which finds its programs compiled."""

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


def row(folder: Path, kept: str, value: int, start: float) -> dict[str, Any]:
    """One value's row, from what its run left; ``start`` is when it began."""
    run = folder / f"subsets-{value}/seed-0"
    with (run / "history.csv").open(newline="") as file:
        seconds = [float(line["seconds"]) for line in csv.DictReader(file)]
    return {
        "compiled_programs": kept,
        "value": str(value),
        "epochs": len(seconds),
        "first_seconds": seconds[0],
        "epoch_seconds": statistics.median(seconds[1:]),
        # A run's metrics are the last thing that it writes.
        "wall_seconds": (run / "metrics.json").stat().st_mtime - start,
    }


def sweep(args: Ablate, folder: Path, kept: str) -> list[dict[str, Any]]:
    """Run the sweep; a row per value and one over all of them."""
    values = ",".join(map(str, args.subsets))
    start = time.time()
    wall = ahl(
        args, "ablate", "--workdir", str(folder / kept), "--over", f"T={values}",
        "--epochs", str(args.epochs), "--detector", args.detector, compiled=folder / "compiled",
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for value in args.subsets:
        rows.append(row(folder / kept, kept, value, start))
        start += rows[-1]["wall_seconds"]
    whole = dict(rows[0]) | {"value": "all", "wall_seconds": wall}
    for name in ("first_seconds", "epoch_seconds"):
        whole[name] = sum(r[name] for r in rows)
    largest = max(r["epoch_seconds"] for r in rows)
    rows.append(whole)
    for r in rows:
        r["overhead_ratio"] = r["wall_seconds"] / (r["epochs"] * r["epoch_seconds"])
        r["padded_ratio"] = largest / r["epoch_seconds"]
        r["device"] = common.device_name()
    whole["padded_ratio"] *= len(args.subsets)
    return rows


def main() -> None:
    """Fill the store with features, run both sweeps and print the table."""
    args = common.parse(Ablate, __doc__)
    if args.quick:
        args = dataclasses.replace(args, subsets=(1, 2), epochs=3)
    kept_programs = ("none",) if args.cold_only else ("none", "kept")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The cheapest run that needs the same features.
        ahl(args, "train", "--workdir", str(folder / "features"), "--method", "base",
            "--detector", "devnet", "--epochs", "1", "--steps", "1",
            compiled=folder / "features")  # fmt: skip
        rows = [r for kept in kept_programs for r in sweep(args, folder, kept)]
    common.report(rows, args.json)


if __name__ == "__main__":
    run_command(main, Ablate)
