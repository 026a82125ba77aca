"""Synthetic training problems, the machine's peak and tables, for all benchmarks."""

import functools
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from ahl_jax.common.errors import UserError
from ahl_jax.common.text import markdown_table
from ahl_jax.config.settings import (
    Config,
    DataConfig,
    DetectorConfig,
    FeatureConfig,
    ImportanceConfig,
    LearningConfig,
    Precision,
    PseudoConfig,
    SubsetConfig,
)
from ahl_jax.detectors.inputs import to_maps
from ahl_jax.distributed.memory import give_back_memory
from ahl_jax.distributed.mesh import mesh_for
from ahl_jax.features.pooling import Maps, global_averages
from ahl_jax.learning.bank import FeatureBank, SharedBank
from ahl_jax.learning.learner import TrainingData
from ahl_jax.learning.problem import Problem, make_problem, problem_on
from ahl_jax.learning.seeds import compile_epochs, spread, stack_problems

Shape = tuple[int, int, int]
"""Height, width and channels of a feature map."""

PAPER_SHAPES: tuple[Shape, ...] = ((14, 14, 512), (7, 7, 512))
"""ResNet-18's maps of images of 448 and 224 pixels, as in the paper."""

DEMO_SHAPES: tuple[Shape, ...] = ((8, 8, 320), (4, 4, 320))
"""EfficientNet-Lite0's maps of images of 256 and 128 pixels, as in the demo."""

SIZES = {"paper": PAPER_SHAPES, "demo": DEMO_SHAPES}

NORMALS, ANOMALIES = 1131, 10
"""Training images of ELPV."""


def synthetic_problem(
    detector: str,
    subsets: int,
    shapes: tuple[Shape, ...],
    *,
    normals: int = NORMALS,
    anomalies: int = ANOMALIES,
    pseudo_per_generator: int = 64,
    importance: Literal["psi", "uniform"] = "psi",
    precision: Precision = "float32",
    seed: int = 0,
    inputs: FeatureBank | None = None,
    **learning: Any,
) -> Problem:
    """A training problem of ELPV's size with random features.

    Args:
        detector: dra or devnet.
        subsets: T.
        shapes: the scales.
        normals: training normals.
        anomalies: M.
        pseudo_per_generator: pseudo-anomalies of each of the three generators.
        importance: whether psi is on.
        precision: dtype of the features.
        seed: seed of all but the features.
        inputs: another seed's features, to be shared.
        learning: fields of ``LearningConfig`` that differ from the published ones.
    """
    config = synthetic_config(
        detector,
        subsets,
        pseudo_per_generator=pseudo_per_generator,
        importance=importance,
        precision=precision,
        seed=seed,
        **learning,
    )
    if inputs is None:
        return make_problem(config, *random_maps(config, shapes, normals, anomalies))
    made = made_from(config, normals)
    bank = SharedBank(inputs, np.arange(normals + anomalies + len(made[0])))
    of_normals = [np.asarray(m[:normals].astype(jnp.float32)) for m in to_maps(inputs)]
    return problem_on(config, bank, global_averages(of_normals), *made)


def synthetic_config(
    detector: str,
    subsets: int,
    *,
    pseudo_per_generator: int = 64,
    importance: Literal["psi", "uniform"] = "psi",
    precision: Precision = "float32",
    seed: int = 0,
    **learning: Any,
) -> Config:
    """The settings of ``synthetic_problem``, which has the arguments' meaning."""
    return Config(
        DataConfig("synthetic"),
        seed=seed,
        features=FeatureConfig(precision=precision),
        detector=DetectorConfig(detector=detector),
        subsets=SubsetConfig(subsets=subsets),
        pseudo=PseudoConfig(pseudo_per_generator=pseudo_per_generator),
        learning=LearningConfig(**learning),
        importance=ImportanceConfig(importance=importance),
    )


def made_from(config: Config, normals: int) -> tuple[np.ndarray, np.ndarray]:
    """Which generator made each pseudo-anomaly, and from which normal."""
    each = config.pseudo.pseudo_per_generator
    number = np.arange(len(config.pseudo.generators) * each)
    return number // each, number % normals


def random_maps(
    config: Config, shapes: tuple[Shape, ...], normals: int, anomalies: int
) -> tuple[Maps, Maps, Maps, np.ndarray, np.ndarray]:
    """What ``make_problem`` reads after the config, with random features."""
    rng = np.random.default_rng(0)

    def maps(count: int, shift: float) -> list[np.ndarray]:
        return [
            rng.standard_normal((count, *shape), dtype=np.float32) + np.float32(shift)
            for shape in shapes
        ]

    made = made_from(config, normals)
    return maps(normals, 0.0), maps(anomalies, 0.2), maps(len(made[0]), 0.1), *made


class Traced(NamedTuple):
    """An epoch as ``ahl train`` runs it, before it is compiled."""

    lowered: jax.stages.Lowered
    state: Any
    data: TrainingData
    seconds: float
    """How long tracing took."""


class Compiled(NamedTuple):
    """An epoch as ``ahl train`` runs it; ``epoch(state, data, numbers)`` uses up the state."""

    epoch: jax.stages.Compiled
    state: Any
    data: TrainingData
    seconds: float
    """How long tracing and compiling took."""


def traced_epoch(problems: Sequence[Problem]) -> Traced:
    """The program of one epoch of problems that differ in their seeds, on all devices."""
    mesh = mesh_for(len(problems), len(problems[0].subsets))
    state, data = spread(*stack_problems(problems), mesh)
    start = time.perf_counter()
    numbers = np.zeros(1, np.int32)
    lowered = compile_epochs(mesh).lower(problems[0].learner, state, data, numbers)
    return Traced(lowered, state, data, time.perf_counter() - start)


def compiled_epoch(traced: Traced) -> Compiled:
    """The epoch, compiled."""
    start = time.perf_counter()
    compiled = traced.lowered.compile()
    taken = traced.seconds + time.perf_counter() - start
    give_back_memory()
    return Compiled(compiled, traced.state, traced.data, taken)


def program_mib(program: jax.stages.Compiled) -> float:
    """MiB that a program takes on each device, its arguments included; NaN if it does not say."""
    try:
        needs = program.memory_analysis()
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        needs = None
    if needs is None:
        return float("nan")
    results = needs.output_size_in_bytes - needs.alias_size_in_bytes
    return (needs.argument_size_in_bytes + results + needs.temp_size_in_bytes) / 2**20


def counted_flops(program: jax.stages.Compiled) -> float:
    """Operations of a program as XLA counts them; NaN if it does not."""
    try:
        cost = program.cost_analysis() or {}
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        cost = {}
    return float(cost.get("flops", float("nan")))


def seconds(function: Callable[[], Any], repeats: int) -> list[float]:
    """Wall-clock seconds of each of ``repeats`` calls, results awaited."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return times


def matmul_peak(
    dtype: jax.typing.DTypeLike = "float32",
    side: int = 0,
    repeats: int = 10,
    precision: jax.lax.Precision | None = None,
) -> float:
    """The best GFLOP/s of a square matrix product on the default device.

    Args:
        dtype: of the factors.
        side: rows and columns; by default as many as the device needs to be busy.
        repeats: how many products.
        precision: as for ``jnp.matmul``; the detectors have the default, the trunks the highest.
    """
    side = side or (2048 if jax.default_backend() == "cpu" else 8192)
    a, b = (
        jax.random.normal(key, (side, side), jnp.float32).astype(dtype)
        for key in jax.random.split(jax.random.key(0))
    )
    product = jax.jit(functools.partial(jnp.matmul, precision=precision))
    jax.block_until_ready(product(a, b))
    return 2 * side**3 / min(seconds(lambda: product(a, b), repeats)) / 1e9


@functools.cache
def float32_products() -> str:
    """What a float32 matrix product at default precision is computed in on the default device."""
    a, b = np.random.default_rng(0).standard_normal((2, 512, 512), np.float32)
    exact = a.astype(np.float64) @ b
    off = np.asarray(jax.jit(jnp.matmul)(a, b)) - exact
    error = np.sqrt(np.square(off).mean() / np.square(exact).mean())
    # Factors rounded to a mantissa of m bits are 0.8 x 2^-m off in the mean: m is 10 in TF32 and
    # 7 in bfloat16.
    return "float32" if error < 3e-5 else "TF32" if error < 1e-3 else "bfloat16"


def peak_mib() -> float:
    """Peak memory in MiB: the device's where it keeps count, else the process's so far."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**20
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage / (2**20 if sys.platform == "darwin" else 2**10)


def device_name() -> str:
    """The default device in words."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    name = "CPU"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
        name += f", {len([x for x in lines if x.startswith('processor')])} cores"
    return name


class Arguments(Protocol):
    """The options of every benchmark."""

    @property
    def json(self) -> Path | None:
        """Where the rows go as JSON too."""


T = TypeVar("T", bound=Arguments)


def parse(kind: type[T], description: str | None) -> T:
    """The options of the command line.

    Raises:
        UserError: if ``--json`` cannot be written, which is better known before the work.
    """
    args = tyro.cli(kind, description=description, config=(tyro.conf.FlagCreatePairsOff,))
    if args.json is not None and not (args.json.parent.is_dir() and not args.json.is_dir()):
        raise UserError(f"`json` {args.json} cannot be written; name a file in an existing folder")
    return args


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of a Markdown table of rows with the same keys; what is None stays empty."""
    return markdown_table(list(rows[0]), [[_cell(v) for v in row.values()] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{number} {name}" for name, number in value.items()) or "none"
    return str(value)


def report(rows: list[dict[str, Any]], out: Path | None) -> None:
    """Print the rows as a Markdown table and write them as JSON if asked to."""
    print("\n".join(table(rows)))
    write_json(rows, out)


def write_json(rows: list[dict[str, Any]], out: Path | None) -> None:
    """Write the rows as JSON if there is a file for them."""
    if out is not None:
        out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
