"""Seconds per epoch of AHL, and how close that is to the machine's matrix-product peak.

    python -m experiments.benchmarks.epoch [--quick] [--json PATH]

The arithmetic, counted by hand, of one image's forward pass through DRA at a scale of L locations,
P patches and C channels, two operations per multiply-add:

- locate: 2 L C 2 (two 1x1 convolutions)
- residual: 2 P 9C C, and 2 P C for its output
- normality: 2 C 256 + 2 256

DevNet has the first alone, for one head. Density multiplies the averages of all scales, D numbers,
by its metric: 2 D D. A training step costs twice that: features are frozen, so
beside the forward pass there is the gradient of the weights, and none of the features (the small
output layers' input gradients are left out). An epoch has, for each subset, passes x steps support
steps and steps query steps of b images, repeats counted once, and a forward pass over the n + M
images that psi follows. psi, Adam and everything elementwise count as nothing.

Several seeds train in one program, as ``ahl train --seeds`` has them, and share their features. The
peak is the best of square matrix products before and after the epochs.

Each row runs in a process of its own, so that peak memory is its own too.
"""

import dataclasses
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ahl_jax.cli.shell import run_command
from ahl_jax.config.settings import Precision
from ahl_jax.learning.bank import FeatureBank
from ahl_jax.learning.batches import equal_parts
from experiments.benchmarks import common


@dataclass(frozen=True)
class Row:
    """One measurement."""

    detector: str
    subsets: int
    size: Literal["paper", "demo"]
    epochs: int
    seeds: int = 1
    precision: Precision = "float32"
    normals: int = 1131

    @property
    def label(self) -> dict[str, Any]:
        """The columns that tell it from other rows."""
        return {
            "detector": self.detector,
            "size": self.size,
            "subsets": self.subsets,
            "seeds": self.seeds,
            "precision": self.precision,
        }


@dataclass(frozen=True)
class Epoch:
    """Seconds per epoch, achieved GFLOP/s over the peak, compile seconds, peak memory."""

    detectors: tuple[str, ...] = ("dra", "devnet")
    """Base detectors."""

    subsets: tuple[int, ...] = (1, 2, 4, 6, 12, 24)
    """Values of T."""

    sizes: tuple[Literal["paper", "demo"], ...] = ("paper", "demo")
    """paper: 14x14x512 + 7x7x512; demo: 8x8x320 + 4x4x320."""

    epochs: int = 2
    """Epochs timed; the best counts."""

    seeds: tuple[int, ...] = (1,)
    """Numbers of seeds in one program."""

    precision: Precision = "float32"
    """dtype of the features and of their products; the peak is that of the same dtype."""

    quick: bool = False
    """One small row per detector, within a minute."""

    json: Path | None = None
    """Write the rows here as JSON too."""


def forward_flops(detector: str, shape: common.Shape) -> int:
    """Operations of one image's forward pass at one scale; see the module's docstring."""
    height, width, c = shape
    locations, patches = height * width, (height // 3) * (width // 3)
    if detector == "devnet":
        return 2 * locations * c
    hidden = 256
    residual = 2 * patches * 9 * c * c + 2 * patches * c
    return 2 * locations * c * 2 + residual + 2 * c * hidden + 2 * hidden


def epoch_flops(detector: str, problem: common.Problem, shapes: tuple[common.Shape, ...]) -> int:
    """Operations of one epoch; see the module's docstring."""
    learning = problem.learner.config.learning  # type: ignore[attr-defined]
    if detector == "density":
        image = 2 * sum(channels for *_, channels in shapes) ** 2
    else:
        image = sum(forward_flops(detector, shape) for shape in shapes)

    def slots(pools: Any) -> int:
        return sum(
            min(size, pool.members.shape[-1])
            for size, pool in zip(equal_parts(learning.batch, pools), pools, strict=True)
        )

    support = learning.passes * learning.steps * slots(problem.data.support)
    query = learning.steps * slots(problem.data.query)
    followed = problem.data.labels.shape[0]
    return len(problem.subsets) * image * (2 * (support + query) + followed)


def problems_of(row: Row, inputs: FeatureBank | None = None) -> list[common.Problem]:
    """The training problems of a row, one per seed, on one bank of features.

    Args:
        row: the row.
        inputs: another row's bank, of the same size, dtype and number of normals.
    """
    problems: list[common.Problem] = []
    for seed in range(row.seeds):
        problem = common.synthetic_problem(
            row.detector, row.subsets, common.SIZES[row.size],
            normals=row.normals, precision=row.precision, seed=seed, inputs=inputs,
        )  # fmt: skip
        problems.append(problem)
        inputs = problem.data.inputs
    return problems


def measure(row: Row) -> dict[str, Any]:
    """Measure one row in this process."""
    problems = problems_of(row)
    return timed(row, problems[0], common.compiled_epoch(common.traced_epoch(problems)))


def timed(row: Row, problem: common.Problem, compiled: common.Compiled) -> dict[str, Any]:
    """Measure a row whose program is compiled.

    Args:
        row: the row.
        problem: of its first seed.
        compiled: the program of its epoch; uses up the state.
    """
    epoch, state, data, compile_seconds = compiled
    before = common.matmul_peak(row.precision)
    times = []
    # The first epochs have no psi yet, so those timed come after K.
    first = problem.learner.config.importance.history  # type: ignore[attr-defined]
    for number in range(first, first + row.epochs + 1):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(epoch(state, data, np.array([number], np.int32)))
        times.append(time.perf_counter() - start)
    best = min(times[1:])
    peak_mib = common.peak_mib()
    flops = row.seeds * epoch_flops(row.detector, problem, common.SIZES[row.size])
    peak = max(before, common.matmul_peak(row.precision))
    return {
        **row.label,
        "seconds_per_epoch": best,
        "seconds_per_subset": best / row.subsets / row.seeds,
        "gflops": flops / best / 1e9,
        "peak_gflops": peak,
        "fraction_of_peak": flops / best / 1e9 / peak,
        "gflop_by_hand": flops / 1e9,
        # XLA counts the body of a loop once, whatever its length.
        "gflop_by_xla_loops_once": common.counted_flops(epoch) / 1e9,
        "compile_seconds": compile_seconds,
        "program_mib": common.program_mib(epoch),
        "peak_mib": peak_mib,
        "device": common.device_name(),
    }


def main() -> None:
    """Run every row in a process of its own and print the table."""
    if sys.argv[1:2] == ["--row"]:
        print(json.dumps(measure(Row(**json.loads(sys.argv[2])))))
        return
    args = common.parse(Epoch, __doc__)
    if args.quick:
        rows = [Row(d, 2, "demo", 1, precision=args.precision) for d in args.detectors]
    else:
        rows = [
            Row(d, t, size, args.epochs, seeds, args.precision)
            for size in args.sizes
            for d in args.detectors
            for t in args.subsets
            for seeds in args.seeds
        ]
    measured = []
    for row in rows:
        print(f"{row.detector}, {row.size}, T = {row.subsets} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "experiments.benchmarks.epoch"]
        command += ["--row", json.dumps(dataclasses.asdict(row))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        measured.append(json.loads(done.stdout.splitlines()[-1]))
    common.report(measured, args.json)


if __name__ == "__main__":
    run_command(main, Epoch)
