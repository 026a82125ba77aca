"""The largest operations of an epoch, and the share of the time that each takes.

    python -m experiments.benchmarks.operations [--detector dra] [--size paper] [--json PATH]

One epoch, the program that ``epoch.py`` measures, is traced with JAX's profiler. An operation is
named as in the compiled program, and what it computes is read from the program: its shape, and the
line of the model that it comes from. Times are those that the threads of the device spent in the
operation, so they add up to the epoch where the operations run one after the other, as on a CPU.
What is in no operation (the loops themselves, waiting) is the last row. On a GPU the operations are
its kernels and copies; a kernel that the trace assigns to no operation of the program has its own
name.
"""

import collections
import gzip
import json
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from ahl_jax.cli.shell import run_command
from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import Precision
from experiments.benchmarks import common, epoch


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

    precision: Precision = "float32"
    """dtype of the features and of their products."""

    json: Path | None = None
    """Write the rows here as JSON too."""


class Trace(NamedTuple):
    """What a profile says of the device."""

    seconds: collections.Counter[str]
    """By the name of the operation."""

    sources: dict[str, str]
    """What operations were made from, where the trace tells."""

    on_accelerator: bool
    """Whether the events are those of an accelerator, and not of the host's threads."""


def traced(folder: Path) -> Trace:
    """Read the newest profile in a folder.

    Raises:
        UserError: if there is none, or none of the accelerator in use.
    """
    files = sorted(folder.rglob("*.trace.json.gz"))
    if not files:
        raise UserError("the profiler left no trace; see its messages above")
    with gzip.open(files[-1]) as file:
        events = json.load(file)["traceEvents"]
    names: dict[tuple[int, int | None], str] = {}
    for event in events:
        if event.get("ph") == "M" and event.get("name") in ("process_name", "thread_name"):
            thread = event["tid"] if event["name"] == "thread_name" else None
            names[event["pid"], thread] = str(event["args"]["name"])
    spans = [event for event in events if event.get("ph") == "X" and "dur" in event]
    on_accelerator = jax.default_backend() != "cpu"
    if on_accelerator:
        lines = {
            (pid, thread): name
            for (pid, thread), name in names.items()
            if thread is not None and names.get((pid, None), "").startswith("/device:")
        }
        # Streams have kernels as they ran; the other lines are the same time in larger units.
        chosen = {line for line, name in lines.items() if name.startswith("Stream")}
        chosen = chosen or {line for line, name in lines.items() if name == "XLA Ops"}
        spans = [event for event in spans if (event["pid"], event.get("tid")) in chosen]
        if not spans:
            found = ", ".join(sorted(set(names.values()))) or "none"
            raise UserError(f"the profile has no operations of the device; its lines are: {found}")
    seconds: collections.Counter[str] = collections.Counter()
    sources: dict[str, str] = {}
    for event in spans:
        told = event.get("args", {})
        name = str(told.get("hlo_op") or event["name"]) if on_accelerator else event["name"]
        seconds[name] += event["dur"] / 1e6
        if source := told.get("tf_op") or told.get("name"):
            sources.setdefault(name, "/".join(str(source).split("/")[-2:]))
    return Trace(seconds, sources, on_accelerator)


def described(program: str) -> dict[str, tuple[str, str]]:
    """Of every operation of a compiled program, its shape and the operation it was made from."""
    line = re.compile(r"%(\S+) = (\S+?)(?:\{\S*)? .*?op_name=\"([^\"]*)\"")
    found: dict[str, tuple[str, str]] = {}
    for name, shape, source in line.findall(program):
        found.setdefault(name, (shape, "/".join(source.split("/")[-2:])))
    return found


def measure(args: Operations) -> list[dict[str, Any]]:
    """The rows of the table."""
    row = epoch.Row(
        args.detector, args.subsets, args.size, 1, precision=args.precision, normals=args.normals
    )
    problems = epoch.problems_of(row)
    program, state, data, _ = common.compiled_epoch(common.traced_epoch(problems))
    # psi is trained from epoch K on.
    first = problems[0].learner.config.importance.history  # type: ignore[attr-defined]
    state, _ = jax.block_until_ready(program(state, data, np.array([first], np.int32)))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            start = time.perf_counter()
            jax.block_until_ready(program(state, data, np.array([first + 1], np.int32)))
            whole = time.perf_counter() - start
        seconds, sources, on_accelerator = traced(Path(folder))
    known = described(program.as_text() or "")
    # A kernel that was launched in a graph has its operation's name alone, as a C identifier.
    known |= {re.sub(r"\W", "_", name): value for name, value in known.items()}
    # Loops and calls hold the operations that they run.
    containers = re.compile(r"^(while|call|conditional|cond)[.\d]*$")
    names = [
        name
        for name, _ in seconds.most_common()
        if (name in known or on_accelerator) and not containers.match(name)
    ]

    def told(name: str) -> dict[str, str]:
        shape, source = known.get(name, ("", sources.get(name, "")))
        return {"operation": name, "shape": shape, "of": source}

    rows: list[dict[str, Any]] = [
        {**told(name), "seconds": seconds[name], "share": seconds[name] / whole}
        for name in names[: args.top]
    ]
    rest = {
        "all other operations": sum(seconds[name] for name in names[args.top :]),
        "outside of operations": max(whole - sum(seconds[name] for name in names), 0.0),
    }
    return rows + [
        {"operation": name, "shape": "", "of": "", "seconds": value, "share": value / whole}
        for name, value in rest.items()
    ]


def main() -> None:
    """Trace one epoch and print the table."""
    args = common.parse(Operations, __doc__)
    common.report(measure(args), args.json)


if __name__ == "__main__":
    run_command(main, Operations)
