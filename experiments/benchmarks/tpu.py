"""What the TPU's own compiler says of our programs, on a machine that has no TPU.

    python -m experiments.benchmarks.tpu [--topologies v5e:1x1 v5e:2x4] [--programs dra-paper]
        [--slices 2] [--operations 10] [--quick] [--json PATH]

It needs libtpu: ``pip install '.[tpu-compile]'``. Programs, each compiled for each topology:

- DETECTOR-SIZE: an epoch of AHL as ``ahl train`` runs it, with one seed, with its images divided
  into data shards, and with several seeds; where the topology has the chips for it;
- stage_one-TRUNK: a step of stage one, batches of 48, the chips share the batch;
- extraction-TRUNK: the trunk's pass over a batch, on one chip;
- scorer-TRUNK: the file of ``ahl export`` with DRA, read back, on one chip.

Images have 448 pixels, batches ``--image-batch`` images. What runs on one chip is compiled for the
first topology of each kind of chip only.

``estimated_ms`` is the compiler's estimate: the cycles of every operation, times the trips of the
loops around it, over the chip's clock. Time on the links between chips is not in it. Collectives
are those executed, so they count the same trips, as do exchanges ``between_slices``, which hosts
send over their network. ``mib_per_chip`` is the memory that the program takes. ``fraction_of_peak``
is the useful arithmetic, as ``epoch.py`` and ``stage_one.py`` count it, over the estimate and the
peak in bfloat16. All of these are the same on every machine; only ``compile_seconds`` is of this
one.

Each row is compiled in a process of its own, so one that fails leaves the rest.
"""

import collections
import dataclasses
import functools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding

from ahl_jax.cli.shell import run_command
from ahl_jax.common.errors import UserError
from ahl_jax.config.presets import preset, with_settings
from ahl_jax.config.settings import Config, DataConfig, Precision
from ahl_jax.detectors import Inputs, make_inputs
from ahl_jax.detectors.ensemble import make_model
from ahl_jax.distributed.mesh import mesh_for, put_everywhere
from ahl_jax.distributed.part import Part
from ahl_jax.features.maps import map_shapes, trunk_dtype, two_scales
from ahl_jax.inference.export import export_model
from ahl_jax.inference.predictor import Predictor
from ahl_jax.inference.scorer import Scorer
from ahl_jax.learning.bank import HostBank, SharedBank
from ahl_jax.learning.learner import NO_BANK
from ahl_jax.learning.problem import Problem, problem_on
from ahl_jax.learning.seeds import compile_epochs, spread, stack_problems
from ahl_jax.stage_one.model import start
from ahl_jax.stage_one.run import compile_epoch, mesh_of
from experiments.benchmarks import common, epoch, hlo, operations, stage_one
from experiments.benchmarks.extract import benchmark_trunk


class Chip(NamedTuple):
    """A device as JAX counts them; a TPU7x chip is two of them."""

    tflops: float
    """Published peak in bfloat16, 10^12 operations a second."""

    per_cycle: int
    """Operations of its matrix units in a cycle."""

    @property
    def clock(self) -> float:
        """Cycles a second."""
        return self.tflops * 1e12 / self.per_cycle


CHIPS = {
    "v5e": Chip(197, 2**17),
    "v5p": Chip(459, 2**18),
    "v6e": Chip(918, 2**19),
    "tpu7x": Chip(2307 / 2, 2**19),
}

DETECTORS = ("dra", "devnet", "density")
TRUNKS = ("resnet18", "efficientnet_lite0")

SIZES = common.SIZES | {"tiny": ((6, 6, 320), (3, 3, 320))}
"""``tiny`` is what the debug preset trains on."""

SIDE = 448
"""Pixels of an image at the published size."""

PROGRAMS = (
    *(f"{detector}-{size}" for size in common.SIZES for detector in DETECTORS),
    *(f"{part}-{trunk}" for part in ("stage_one", "extraction") for trunk in TRUNKS),
    "scorer-resnet18",
)

TINY = tuple(f"{detector}-tiny" for detector in DETECTORS)


@dataclass(frozen=True)
class Tpu:
    """Memory, exchanges and the compiler's estimate of the time, for TPUs that are elsewhere."""

    topologies: tuple[str, ...] = (
        "v5e:1x1", "v5e:2x4", "v5e:16x16", "v5p:2x2x1", "v6e:2x4", "tpu7x:2x2x1",
    )  # fmt: skip
    """Slices, each as KIND:CHIPSxCHIPS."""

    slices: int = 1
    """How many such slices work together."""

    programs: tuple[str, ...] = PROGRAMS
    """What is compiled."""

    subsets: int = 8
    """T."""

    seeds: int = 8
    """How many seeds "several" are."""

    precision: Precision = "bfloat16"
    """dtype of the features and of their products."""

    image_batch: int = 64
    """Images of a batch at extraction and in the scorer."""

    operations: int = 0
    """How many of each program's largest operations are listed, with their share of the cycles, and
    below them the share of all that run equally often."""

    minutes: Annotated[float, tyro.conf.arg(metavar="FLOAT")] = 20.0
    """What compiling a row may take."""

    quick: bool = False
    """DRA on the debug preset instead of the programs."""

    json: Path | None = None
    """Write the rows here as JSON too."""


@dataclass(frozen=True)
class Row:
    """One program for one topology."""

    topology: str
    program: str
    subsets: int | None
    seeds: int
    data_shards: int
    precision: Precision
    image_batch: int = 64
    operations: int = 0
    slices: int = 1

    @property
    def where(self) -> str:
        """The slices that it is for."""
        return f"{self.slices} x {self.topology}" if self.slices > 1 else self.topology

    def blank(self, result: str) -> dict[str, Any]:
        """Its columns before anything is known of it, or after it failed."""
        found = dict.fromkeys(COLUMNS) | {
            key: value for key, value in dataclasses.asdict(self).items() if key in COLUMNS
        }
        found |= {"topology": self.where, "result": result}
        return found | ({"operations": []} if self.operations else {})


COLUMNS = (
    "topology", "mesh", "program", "subsets", "seeds", "precision", "compile_seconds",
    "mib_per_chip", "collectives", "between_slices", "estimated_ms", "fraction_of_peak", "result",
)  # fmt: skip


class Lowered(NamedTuple):
    """A program before it is compiled."""

    program: jax.stages.Lowered
    mesh: Mesh
    flops: float
    """Useful operations on all devices."""


_LIBTPU = {
    # It need not have the machine to itself, nor ask a cloud what it runs on, nor complain that
    # this is no TPU VM.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


class _Shapes(HostBank):
    """A bank that goes to devices elsewhere as shapes alone."""

    def put(self, sharding: NamedSharding) -> Inputs:
        def shape(one: np.ndarray) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.size, *one.shape[1:]), one.dtype, sharding=sharding)

        return jax.tree.map(shape, self.one)


def devices_of(topology: str, slices: int = 1) -> list[Any]:
    """The devices of one or several slices that need not be here.

    Raises:
        UserError: if there is no such slice.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", topology)
    if not found or found[1] not in CHIPS:
        kinds = ", ".join(CHIPS)
        raise UserError(
            f"the topology {topology!r} is unknown; write v5e:2x4, for one, with a kind of {kinds}"
        )
    sides = [int(side) for side in found[2].split("x")]
    # One machine has up to eight chips of a flat slice; the compiler would say four at the most.
    whole = len(sides) == 2 and math.prod(sides) <= 8
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    asked: dict[str, Any] = {"chips_per_host_bounds": [*sides, 1]} if whole else {}
    # With it the devices have a number of their slice, and one slice has no need of that.
    asked |= {"num_slices": slices} if slices > 1 else {}
    try:
        return list(topologies.get_topology_desc(topology, "tpu", **asked).devices)
    except Exception as error:
        raise UserError(f"there is no topology {topology!r}: {_reason(error)}") from error


def problems_of(row: Row) -> list[Problem]:
    """The training problems of a row, one per seed, whose features are shapes alone."""
    detector, size = row.program.split("-")
    # Random groups have the same sizes on every machine, which clusters of noise have not.
    settings: dict[str, Any] = {"grouping": "random", "subsets": row.subsets}
    normals, anomalies = common.NORMALS, common.ANOMALIES
    if size == "tiny":
        debug = preset("debug", "synthetic", detector=detector, precision=row.precision)
        config, normals, anomalies = debug, debug.data.limit or normals, debug.data.shots
    else:
        config = common.synthetic_config(detector, 1, precision=row.precision)
    made = common.made_from(config, normals)
    count = normals + anomalies + len(made[0])
    maps = [np.broadcast_to(np.zeros(shape, np.float32), (count, *shape)) for shape in SIZES[size]]
    bank = SharedBank(
        _Shapes([maps], row.precision, Part(shards=row.data_shards)), np.arange(count)
    )
    averages = np.random.default_rng(0).standard_normal((normals, 8))
    return [
        problem_on(with_settings(config, settings | {"seed": seed}), bank, averages, *made)
        for seed in range(row.seeds)
    ]


def lowered_epoch(row: Row, devices: Sequence[Any]) -> Lowered:
    """An epoch of AHL."""
    detector, size = row.program.split("-")
    mesh = mesh_for(row.seeds, row.subsets or 1, row.data_shards, devices)
    problems = problems_of(row)

    def stacked() -> Any:
        states, data = stack_problems(problems)
        return states, dataclasses.replace(data, inputs=NO_BANK)

    states, data = jax.eval_shape(stacked)
    data = dataclasses.replace(data, inputs=problems[0].data.inputs)
    states, data = spread(states, data, mesh)
    numbers = np.zeros(1, np.int32)
    program = compile_epochs(mesh).lower(problems[0].learner, states, data, numbers)
    flops = row.seeds * epoch.epoch_flops(detector, problems[0], SIZES[size])
    return Lowered(program, mesh, flops)


def lowered_step(row: Row, devices: Sequence[Any]) -> Lowered:
    """A step of stage one."""
    name = row.program.split("-")[1]
    options = stage_one.Options(batch=48, image_size=SIDE, steps=1, precision=row.precision)
    config, trunk = stage_one.config_of(options, name), benchmark_trunk(name)
    learner, state = start(config, trunk)
    mesh = mesh_of(options.batch, devices)
    images = [
        jax.ShapeDtypeStruct((count, SIDE, SIDE, 3), np.uint8)
        for count in (stage_one.NORMALS, stage_one.ANOMALIES)
    ]
    state = jax.eval_shape(lambda: state)
    program = compile_epoch(learner, mesh).lower(
        *put_everywhere((state, *images), mesh), np.int32(0)
    )
    each = stage_one.training_gflop(config, stage_one.gflop_per_image(trunk, SIDE))
    return Lowered(program, mesh, options.batch * each * 1e9)


def lowered_extraction(row: Row, devices: Sequence[Any]) -> Lowered:
    """The trunk's pass over a batch at both scales."""
    trunk = benchmark_trunk(row.program.split("-")[1])
    mesh = mesh_for(1, 1, 1, devices[:1])
    images = jax.ShapeDtypeStruct((row.image_batch, SIDE, SIDE, 3), np.uint8)
    params, images = put_everywhere((jax.eval_shape(lambda: trunk.params), images), mesh)
    dtype = trunk_dtype(row.precision, "tpu")
    program = two_scales.lower(trunk.apply_with_fine, 1, dtype, params, images)
    return Lowered(program, mesh, row.image_batch * stage_one.gflop_per_image(trunk, SIDE) * 1e9)


def lowered_scorer(row: Row, devices: Sequence[Any]) -> Lowered:
    """An exported detector, read back from its file."""
    name = row.program.split("-")[1]
    settings = {"trunk": name, "image_size": SIDE, "precision": row.precision}
    config, trunk = with_settings(Config(DataConfig("synthetic")), settings), benchmark_trunk(name)
    functional, model = make_model(config, trunk.channels, jax.random.key(0))
    blank = [np.zeros((1, *shape), np.float32) for shape in map_shapes(trunk, config.features)]
    reference = make_inputs(blank, jnp.dtype(row.precision)).take(jnp.array(0))
    predictor = Predictor(config, trunk, Scorer(functional, model, reference), {}, None)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "detector"
        export_model(predictor, file, platforms=["tpu"])
        exported = jax.export.deserialize(bytearray(file.read_bytes()))
    mesh = mesh_for(1, 1, 1, devices[:1])
    images = jax.ShapeDtypeStruct((row.image_batch, SIDE, SIDE, 3), np.uint8)
    given = images, jax.ShapeDtypeStruct((), np.float32)
    program = jax.jit(exported.call).lower(*put_everywhere(given, mesh))
    return Lowered(program, mesh, row.image_batch * stage_one.gflop_per_image(trunk, SIDE) * 1e9)


_PARTS: dict[str, Callable[[Row, Sequence[Any]], Lowered]] = {
    "stage_one": lowered_step,
    "extraction": lowered_extraction,
    "scorer": lowered_scorer,
}


def measure(row: Row) -> dict[str, Any]:
    """Compile a row's program and read what the compiler says; any failure is its ``result``."""
    found = row.blank("compiles")
    try:
        lower = _PARTS.get(row.program.split("-")[0], lowered_epoch)
        # What is traced must not take itself to be on this machine's CPU.
        with mock.patch("jax.default_backend", return_value="tpu"):
            lowered = lower(row, devices_of(row.topology, row.slices))
        found["mesh"] = "x".join(map(str, lowered.mesh.shape.values()))
        begun = time.perf_counter()
        compiled = lowered.program.compile()
        found["compile_seconds"] = time.perf_counter() - begun
        text = compiled.as_text() or ""
        whole = hlo.totals(text)
    except Exception as error:
        return found | {"result": _reason(error)}
    chip = CHIPS[row.topology.split(":")[0]]
    found |= {
        "mib_per_chip": common.program_mib(compiled),
        "collectives": whole.collectives,
        "between_slices": whole.between_slices,
    }
    if whole.cycles:
        seconds = whole.cycles / chip.clock
        at_peak = lowered.flops / lowered.mesh.size / (chip.tflops * 1e12)
        found |= {"estimated_ms": 1e3 * seconds, "fraction_of_peak": at_peak / seconds}
    if whole.unknown_loops:
        found["result"] += f"; loops of unknown length, counted once: {whole.unknown_loops}"
    if row.operations:
        found["operations"] = _largest(text, whole, row.operations)
    return found


def _largest(text: str, whole: hlo.Totals, count: int) -> list[dict[str, Any]]:
    """The operations with the most cycles, and the sums of those that run equally often.

    How often tells which loop they are in: of an epoch with passes x steps support steps, so many.
    """
    sources = {name: source for name, (_, source) in operations.described(text).items()}
    program = hlo.parse(text)
    shapes = {one.name: one.shape for own in program.computations.values() for one in own}
    rows = [
        (name, shapes[name], sources.get(name, ""), whole.executions[name], cycles)
        for name, cycles in list(whole.operations.items())[:count]
    ]
    sums: collections.Counter[int] = collections.Counter()
    for name, cycles in whole.operations.items():
        sums[whole.executions[name]] += cycles
    rows += [("all that run as often", "", "", times, sums[times]) for times in sorted(sums)]
    columns = ("operation", "shape", "of", "executions", "cycles", "share")
    return [dict(zip(columns, (*row, row[-1] / whole.cycles), strict=True)) for row in rows]


def _reason(error: Exception) -> str:
    """The first sentence of an error, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def rows_of(args: Tpu) -> list[Row]:
    """The rows that the options ask for.

    Raises:
        UserError: for a topology or program that there is not.
    """
    for name in args.programs:
        if name not in (*PROGRAMS, *TINY):
            raise UserError(
                f"there is no program {name!r}; choose from {', '.join((*PROGRAMS, *TINY))}"
            )
    rows: list[Row] = []
    kinds: set[str] = set()
    for topology in args.topologies:
        chips = len(devices_of(topology, args.slices))
        row = functools.partial(
            Row, topology, precision=args.precision, image_batch=args.image_batch,
            operations=args.operations, slices=args.slices,
        )  # fmt: skip
        first = topology.split(":")[0] not in kinds
        kinds.add(topology.split(":")[0])
        for program in ("dra-tiny",) if args.quick else args.programs:
            part, size = program.split("-")
            if part == "stage_one" or (part in _PARTS and first):
                rows.append(row(program, None, 1, 1))
            elif part in DETECTORS:
                t = 2 if size == "tiny" else args.subsets
                # As few parts as keep every chip busy, and four at the least.
                shards = min(chips, max(4, chips // t))
                rows.append(row(program, t, 1, 1))
                rows += [row(program, t, 1, shards)] if shards > 1 else []
                rows += [row(program, t, args.seeds, 1)] if size != "tiny" else []
    return rows


def measured(row: Row, minutes: float) -> dict[str, Any]:
    """Measure a row in a process of its own, which the compiler may end, for so long at most."""
    command = [sys.executable, "-m", "experiments.benchmarks.tpu"]
    command += ["--row", json.dumps(dataclasses.asdict(row))]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60 * minutes
        )
    except subprocess.TimeoutExpired:
        return row.blank(f"stopped after {minutes:g} minutes")
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    # What made it give up, among what its signal handlers then write.
    fatal = [line for line in lines if re.match(r"F\d{4} ", line)]
    said = (fatal or lines or ["no message"])[-1][:300]
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
    reason = f"the compiler ended with {how}: {said}"
    return row.blank(reason)


def main() -> None:
    """Compile row by row, print the table and the largest operations.

    Raises:
        UserError: if libtpu is missing, or for a topology or program that there is not.
    """
    # Only to compile, where there is a TPU too.
    jax.config.update("jax_platforms", "cpu")
    if sys.argv[1:2] == ["--row"]:
        # The user may have set either, and the figures would be others.
        jax.config.update("jax_enable_compilation_cache", False)
        jax.config.update("jax_disable_most_optimizations", False)
        print(json.dumps(measure(Row(**json.loads(sys.argv[2])))))
        return
    args = common.parse(Tpu, __doc__)
    if not find_spec("libtpu"):
        raise UserError("the TPU's compiler is missing; run pip install '.[tpu-compile]'")
    found: list[dict[str, Any]] = []
    for row in rows_of(args):
        print(
            f"{row.where}, {row.program}, seeds {row.seeds}, data shards {row.data_shards} ...",
            file=sys.stderr,
            flush=True,
        )
        found.append(measured(row, args.minutes))
        # Whoever stops it keeps what took minutes to compile.
        common.write_json(found, args.json)
    shown = [{key: row[key] for key in COLUMNS} for row in found]
    print("\n".join(common.table(shown)))
    for row in found:
        if row.get("operations"):
            print("", f"{row['program']} on {row['topology']}, mesh {row['mesh']}:", "", sep="\n")
            print("\n".join(common.table(row["operations"])))


if __name__ == "__main__":
    run_command(main, Tpu)
