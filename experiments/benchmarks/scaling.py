"""The time of an epoch on 1 to 256 TPU chips: compiled points, a model through them, a picture.

    python -m experiments.benchmarks.scaling [--json PATH] [--picture PATH]

Compiled, as ``experiments.benchmarks.tpu`` does (it needs libtpu): an epoch of AHL(DRA) at the
paper's size in bfloat16, for ``POINTS``. Points that the file has are not compiled again, so delete
it after a change to the training or of the compiler.

Modelled, for everything else:

- A chip with k subsets of one seed takes what was compiled for k, whatever T is; between two such k
  a straight line, and beyond the last in proportion.
- Several seeds on one chip take their times one after the other.
- Gradients and scores go round a ring of the chips that share a seed, over two links of each, at
  the published bandwidth, with a microsecond for every hop.
- The mesh is the one that ``ahl train`` would choose. Time on the host is not in it.
"""

import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from ahl_jax.cli.shell import run_command
from ahl_jax.common.errors import UserError
from ahl_jax.common.files import replace_file
from ahl_jax.common.text import counted
from ahl_jax.distributed.mesh import largest_shape
from ahl_jax.sweeps.figure import png
from experiments.benchmarks import common, tpu

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = (
    ("v5e:2x4", 8, 1), ("v5e:2x2", 8, 1), ("v5e:1x1", 4, 1), ("v5e:1x1", 8, 1),
    ("v5e:2x4", 6, 1), ("v5e:8x8", 64, 1), ("v5e:2x4", 64, 1), ("v5e:2x4", 8, 16),
)  # fmt: skip
"""Slice, T and number of seeds of what is compiled."""

CHIPS = tuple(2**n for n in range(9))
SUBSETS = (6, 8, 16, 32, 64)
SEEDS = (1, 4, 16, 64)

RING_BYTES = 100e9
"""Bytes a second that a v5e chip sends over two of its four links; published: 400 GB/s over all of
them and both ways."""

HOP_SECONDS = 1e-6

CHIP_MIB = 16 * 2**10


@dataclass(frozen=True)
class Scaling:
    """Compile what is missing, print the model, and draw it."""

    json: Path = Path("experiments/benchmarks/scaling.json")
    """The compiled points."""

    picture: Path = Path("docs/images/tpu-scaling.png")
    """The picture."""


class Point(NamedTuple):
    """A compiled program, and what of it one chip has."""

    seeds: int
    subsets: int
    chips: int
    ms: float
    mib: float

    @property
    def share(self) -> tuple[int, int]:
        """Seeds, and subsets of each."""
        return share_of(self.seeds, self.subsets, self.chips)


class Model(NamedTuple):
    """What an epoch takes on any number of chips."""

    ms: dict[int, float]
    """Of a chip with so many subsets of one seed."""

    mib: dict[int, float]
    """Memory of such a chip."""

    summed: int
    """Bytes that the chips of a seed sum up."""

    gathered: int
    """Bytes that they gather for each of the T subsets."""

    def exchange(self, subsets: int, chips: int) -> float:
        """Milliseconds of a seed's exchanges among its chips: an all-reduce and an all-gather."""
        bytes_sent = (2 * self.summed + self.gathered * subsets) * (chips - 1) / chips
        return 1e3 * (bytes_sent / RING_BYTES + 3 * (chips - 1) * HOP_SECONDS)

    def epoch(self, seeds: int, subsets: int, chips: int) -> float | None:
        """Milliseconds of an epoch of all seeds; None where a chip has not the memory."""
        own, k = share_of(seeds, subsets, chips)
        if own * _between(self.mib, k) > CHIP_MIB:
            return None
        return own * (_between(self.ms, k) + self.exchange(subsets, subsets // k))


def share_of(seeds: int, subsets: int, chips: int) -> tuple[int, int]:
    """How many seeds, and subsets of each, a chip has in the mesh that so many chips get."""
    shape = largest_shape(seeds, subsets, 1, lambda used: chips % used == 0)
    assert shape is not None
    return seeds // shape[0], subsets // shape[1]


def model_of(points: Sequence[Point], summed: int, gathered: int) -> Model:
    """The model through the points of one seed."""
    alike: dict[int, list[Point]] = {}
    for point in points:
        if point.seeds == 1:
            alike.setdefault(point.share[1], []).append(point)
    ms = {k: statistics.mean(point.ms for point in alike[k]) for k in sorted(alike)}
    mib = {k: max(point.mib for point in alike[k]) for k in sorted(alike)}
    return Model(ms, mib, summed, gathered)


def _between(known: dict[int, float], k: int) -> float:
    """On the line between two known ones, beyond the last in proportion."""
    most = max(known)
    return float(np.interp(k, list(known), list(known.values()))) * max(1.0, k / most)


def compiled(path: Path) -> list[dict[str, Any]]:
    """The rows of ``POINTS``, from the file or compiled now."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    known = {(row["topology"], row["subsets"], row["seeds"]): row for row in kept}
    for topology, subsets, seeds in POINTS:
        if (topology, subsets, seeds) not in known:
            print(f"{topology}, T = {subsets}, {counted(seeds, 'seed')} ...", file=sys.stderr)
            row = tpu.Row(topology, "dra-paper", subsets, seeds, 1, "bfloat16")
            known[topology, subsets, seeds] = tpu.measured(row, 20)
            common.write_json([known[point] for point in POINTS if point in known], path)
    rows = [known[point] for point in POINTS]
    failed = [row for row in rows if not row["estimated_ms"]]
    if failed:
        raise UserError(
            f"{failed[0]['topology']} with T = {failed[0]['subsets']} was not compiled "
            f"({failed[0]['result']}); take its row out of {path} and run this again"
        )
    return rows


def exchanged() -> tuple[int, int]:
    """Bytes of g, and of the scores of one base model, at the paper's size."""
    (problem,) = tpu.problems_of(tpu.Row("v5e:1x1", "dra-paper", 1, 1, 1, "bfloat16"))
    summed = sum(leaf.nbytes for leaf in jax.tree.leaves(problem.model))
    return summed, problem.data.labels.nbytes


def best(model: Model, seeds: int, subsets: int) -> int:
    """The number of chips from which on more save less than a hundredth; it may be beyond CHIPS."""
    times = {2**n: model.epoch(seeds, subsets, 2**n) for n in range(16)}
    least = min(ms for ms in times.values() if ms)
    return next(chips for chips, ms in times.items() if ms and ms <= 1.01 * least)


def draw(model: Model, points: Sequence[Point]) -> "Figure":
    """One seed with several T; and several seeds."""
    # Imported here, as for the figures of sweeps.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    lines = [(1, subsets, f"T = {subsets}") for subsets in SUBSETS]
    _panel(panels[0], model, points, lines, "one seed")
    lines = [(seeds, 8, counted(seeds, "seed")) for seeds in SEEDS]
    _panel(panels[1], model, points, lines, "T = 8")
    panels[0].set_ylabel("milliseconds of an epoch of all seeds")
    figure.suptitle("AHL(DRA) at the paper's size on v5e, as compiled and modelled: no run")
    return figure


def _panel(
    panel: "Axes",
    model: Model,
    points: Sequence[Point],
    lines: Sequence[tuple[int, int, str]],
    title: str,
) -> None:
    for number, (seeds, subsets, label) in enumerate(lines):
        colour = f"C{number}"
        times = {chips: model.epoch(seeds, subsets, chips) for chips in CHIPS}
        drawn = {chips: ms for chips, ms in times.items() if ms}
        panel.plot(list(drawn), list(drawn.values()), color=colour, label=label)
        own = [p for p in points if (p.seeds, p.subsets) == (seeds, subsets)]
        panel.plot([p.chips for p in own], [p.ms for p in own], "o", color=colour)
        enough = best(model, seeds, subsets)
        if enough in drawn:
            panel.plot(enough, drawn[enough], "|", color=colour, markersize=22, markeredgewidth=2)
    panel.plot([], [], "o", color="grey", label="compiled")
    panel.plot(
        [], [], "|", color="grey", markersize=12, markeredgewidth=2, label="more do not help"
    )
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(CHIPS, [str(chips) for chips in CHIPS])
    panel.set_xlabel("chips")
    panel.set_title(title)
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, fontsize=9)


def main() -> None:
    """Compile what is missing, print the model's figures, draw."""
    jax.config.update("jax_platforms", "cpu")
    options = common.parse(Scaling, __doc__)
    points = [
        Point(row["seeds"], row["subsets"], chips_of(row["topology"]), row["estimated_ms"],
              row["mib_per_chip"])
        for row in compiled(options.json)
    ]  # fmt: skip
    model = model_of(points, *exchanged())
    replace_file(options.picture, png(draw(model, points)))
    shown = [
        {"seeds": seeds, "T": subsets, "chips that help": best(model, seeds, subsets)}
        | {f"{chips}": model.epoch(seeds, subsets, chips) for chips in CHIPS}
        for seeds, subsets in [(1, t) for t in SUBSETS] + [(n, 8) for n in SEEDS[1:]]
    ]
    print("\n".join(common.table(shown)), end="\n\n")
    checked = [
        point._asdict() | {"modelled ms": model.epoch(point.seeds, point.subsets, point.chips)}
        for point in points
    ]
    print("\n".join(common.table(checked)))
    print(f"\nwritten to {options.picture}")


def chips_of(topology: str) -> int:
    """How many chips a slice has."""
    return math.prod(int(side) for side in topology.split(":")[1].split("x"))


if __name__ == "__main__":
    run_command(main, Scaling)
