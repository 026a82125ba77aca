"""The largest operations of an epoch, and the share of the time that each takes.

    python -m experiments.benchmarks.operations [--detector dra] [--size paper] [--json PATH]

One epoch, the program that ``epoch.py`` measures, is traced with JAX's profiler. An operation is
named as in the compiled program, and what it computes is read from the program: its shape, and the
line of the model that it comes from. Times are those that the threads of the device spent in the
operation, so they add up to the epoch where the operations run one after the other, as on a CPU.
What is in no operation (the loops themselves, waiting) is the last row.
"""

import collections
import gzip
import json
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ahl_jax.cli.shell import run_command
from ahl_jax.common.errors import UserError
from experiments.benchmarks import common


@dataclass(frozen=True)
class Operations:
    """The largest operations of an epoch."""

    detector: str = "dra"
    """The base detector."""

    subsets: int = 6
    """T."""

    size: Literal["paper", "demo"] = "paper"
    """paper: 14x14x512 + 7x7x512; demo: 8x8x320 + 4x4x320."""

    top: int = 10
    """How many."""

    normals: int = 1131
    """Training normals."""

    json: Path | None = None
    """Write the rows here as JSON too."""


def traced(folder: Path) -> collections.Counter[str]:
    """Seconds by the name of the operation."""
    files = sorted(folder.rglob("*.trace.json.gz"))
    if not files:
        raise UserError("the profiler left no trace; see its messages above")
    with gzip.open(files[-1]) as file:
        events = json.load(file)["traceEvents"]
    seconds: collections.Counter[str] = collections.Counter()
    for event in events:
        if event.get("ph") == "X" and "dur" in event:
            seconds[event["name"]] += event["dur"] / 1e6
    return seconds


def described(program: str) -> dict[str, tuple[str, str]]:
    """Of every operation of a compiled program, its shape and the operation it was made from."""
    line = re.compile(r"%(\S+) = (\S+?)(?:\{\S*)? .*?op_name=\"([^\"]*)\"")
    found: dict[str, tuple[str, str]] = {}
    for name, shape, source in line.findall(program):
        found.setdefault(name, (shape, "/".join(source.split("/")[-2:])))
    return found


def main() -> None:
    """Trace one epoch and print the table."""
    args = common.parse(Operations, __doc__)
    shapes = common.SIZES[args.size]
    problem = common.synthetic_problem(args.detector, args.subsets, shapes, normals=args.normals)
    epoch, state, data, _ = common.compiled_epoch([problem])
    # psi is trained from epoch K on.
    first = problem.learner.config.importance.history  # type: ignore[attr-defined]
    state, _ = jax.block_until_ready(epoch(state, data, np.array([first], np.int32)))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            start = time.perf_counter()
            jax.block_until_ready(epoch(state, data, np.array([first + 1], np.int32)))
            whole = time.perf_counter() - start
        seconds = traced(Path(folder))
    known = described(epoch.as_text())
    # Loops and calls hold the operations that they run.
    containers = re.compile(r"^(while|call|conditional)[.\d]*$")
    names = [n for n, _ in seconds.most_common() if n in known and not containers.match(n)]
    rows: list[dict[str, Any]] = [
        {
            "operation": name,
            "shape": known[name][0],
            "of": known[name][1],
            "seconds": seconds[name],
            "share": seconds[name] / whole,
        }
        for name in names[: args.top]
    ]
    rest = {
        "all other operations": sum(seconds[name] for name in names[args.top :]),
        "outside of operations": max(whole - sum(seconds[name] for name in names), 0.0),
    }
    rows += [
        {"operation": name, "shape": "", "of": "", "seconds": value, "share": value / whole}
        for name, value in rest.items()
    ]
    common.report(rows, args.json)


if __name__ == "__main__":
    run_command(main, Operations)
