"""Everything that the benchmarks measure on a GPU, in one call of bounded length.

    python -m experiments.benchmarks.gpu --out DIR [--minutes 5.5] [--parts epoch vs_loop] [--quick]

It needs no data: features and images are random. Each part runs in a process of its own with a time
limit, the most important one first, so what fails or hangs leaves the rest. DIR/gpu.json and
DIR/gpu.md are written after each part, with the rows that it had until then; a part that there was
no time left for is listed as not measured.

- epoch: as ``epoch.py``, at the paper's size and T = 6; each program is compiled alone.
- vs_loop: as ``vs_loop.py``, at the paper's size.
- run: AHL as ``ahl train`` runs it, from features in the host's memory to the last checkpoint:
  whitening, clusters, tracing, compilation and a checkpoint after each epoch are in its wall clock.
- stage_one: training as in ``stage_one.py``, at the published size.
- extract: the trunk alone, as in ``extract.py``.
- operations: as ``operations.py``. The program is the one that ``epoch`` kept.
- epoch_more: ``epoch`` at other T, at the demo's size and with three seeds. Four programs are
  compiled at a time, so there are no compile seconds. Trunks are compiled one at a time: the
  compiler times their convolutions on the device, where another's would be in the way.
- vs_loop_demo: as ``vs_loop.py``, at the demo's size.

A float32 product at JAX's default precision is not one of float32 on every GPU. ``products`` says
what it is; it is measured, by its error. The detectors' products, and the peak that an epoch is
held against, are at that precision, and PyTorch's loop is set to the same. The trunks' float32
products, and their peak, are of float32 everywhere (``Precision.HIGHEST``). ``program_mib`` is what
a program takes on the device, by XLA's account of it.
"""

import contextlib
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from ahl_jax.cli.shell import run_command
from ahl_jax.common.errors import UserError
from ahl_jax.config.presets import preset, with_settings
from ahl_jax.config.settings import Config, FeatureConfig
from ahl_jax.data.types import Split
from ahl_jax.features.maps import trunk_dtype, trunk_maps
from ahl_jax.learning.bank import FeatureBank
from ahl_jax.learning.problem import make_problem
from ahl_jax.run.claim import Run
from ahl_jax.run.epochs import Training, run_epochs
from ahl_jax.run.options import RunOptions
from ahl_jax.storage.checkpoints import Checkpoints
from ahl_jax.storage.workdir import Workdir
from experiments.benchmarks import common, epoch, extract, operations, stage_one, vs_loop

RESERVE = 6.0
"""Seconds kept for ending a part and writing the results."""

AT_ONCE = 4
"""Programs compiled at a time, where compile seconds are not measured."""

Result = dict[str, Any]
Measure = Callable[[], Result]


def attempt(label: Result, measure: Measure) -> Result:
    """A row; one that fails says why, and leaves the others."""
    try:
        return label | measure()
    except Exception as error:  # whatever it is, the next row may do better
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        return label | {"error": f"{type(error).__name__}: {lines[0]}"[:300]}


def in_threads(tasks: Sequence[Callable[[], Any]]) -> list[Callable[[], Any]]:
    """Do all tasks, a few at a time; each result is a function that gives it, or raises."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(task) for task in tasks]
    return [future.result for future in futures]


def main_epochs(quick: bool) -> Iterator[Result]:
    """The epochs at the paper's size, each program compiled alone."""
    if quick:
        rows = [epoch.Row("dra", 2, "demo", 1, precision="bfloat16", normals=96)]
    else:
        rows = [
            epoch.Row(detector, 6, "paper", 3, precision=precision)
            for detector in ("dra", "devnet")
            for precision in ("bfloat16", "float32")
        ]
    for row in rows:
        measured = attempt(label_of(row), functools.partial(epoch.measure, row))
        # That of the process: of all rows until here.
        measured.pop("peak_mib", None)
        yield measured


def more_epochs(quick: bool) -> Iterator[Result]:
    """The other epochs, compiled a few at a time, the most telling ones first."""
    if quick:
        rows = [epoch.Row("devnet", 1, "demo", 1, seeds=2, normals=96)]
    else:
        kinds = [("dra", p) for p in ("bfloat16", "float32")]
        kinds += [("devnet", p) for p in ("bfloat16", "float32")]
        sizes = [("demo", 6, 1), ("paper", 24, 1), ("paper", 1, 1), ("demo", 6, 3), ("paper", 6, 3)]
        rows = [
            epoch.Row(detector, subsets, size, 3, seeds, precision)
            for detectors in (kinds[:2], kinds[2:])
            for size, subsets, seeds in sizes
            for detector, precision in detectors
        ]  # type: ignore[misc]
    banks: dict[tuple[str, str], FeatureBank] = {}
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        problems, tasks = [], []
        for row in some:
            made = epoch.problems_of(row, banks.get((row.size, row.precision)))
            banks[row.size, row.precision] = made[0].data.inputs
            traced = common.traced_epoch(made)
            problems.append(made[0])
            tasks.append(functools.partial(common.compiled_epoch, traced))
        # Nothing else is under way while an epoch is timed.
        for row, problem, compiled in zip(some, problems, in_threads(tasks), strict=True):
            measured = attempt(
                label_of(row),
                lambda row=row, problem=problem, compiled=compiled: epoch.timed(
                    row, problem, compiled()
                ),
            )
            # Those of several programs together.
            for key in ("compile_seconds", "peak_mib"):
                measured.pop(key, None)
            yield measured


def label_of(row: epoch.Row) -> Result:
    """What a row of epochs is called by."""
    products = common.float32_products() if row.precision == "float32" else row.precision
    return row.label | {"products": products}


def loops(size: str, quick: bool) -> Iterator[Result]:
    """Ours against PyTorch's loop, each in a process of its own."""
    if find_spec("torch") is None:
        raise UserError("PyTorch is not installed; run: pip install torch")
    for detector in ("dra", "devnet"):
        row = vs_loop.Row(detector, 2 if quick else 6, "quick" if quick else size, 2)  # type: ignore[arg-type]
        label = {"detector": detector, "size": row.size, "subsets": row.subsets}
        yield attempt(label, functools.partial(vs_loop.compare, row))


def whole_runs(quick: bool) -> Iterator[Result]:
    """Whole trainings, of ELPV's numbers of images and the demo's size."""
    normals, anomalies = (96, 4) if quick else (1018, 10)
    for name, settings in (
        ("paper", {"detector": "dra"}),
        ("density", {"method": "ahl", "poolings": 3, "views": 1}),
    ):
        config = preset(name, "synthetic", **settings)
        if quick:
            small = {"pseudo_per_generator": 16, "epochs": 2, "steps": 2, "updates_per_epoch": 1}
            config = with_settings(config, small)
        label = {
            "detector": config.detector.detector,
            "preset": name,
            "subsets": config.subsets.subsets,
            "epochs": config.learning.epochs,
        }
        yield attempt(label, functools.partial(whole_run, config, normals, anomalies))


def whole_run(config: Config, normals: int, anomalies: int) -> Result:
    """The wall clock of a training, and of its epochs alone."""
    maps = common.random_maps(config, common.DEMO_SHAPES, normals, anomalies)
    # The device is there, and its libraries are loaded, before the clock starts.
    jax.block_until_ready(jax.numpy.ones(()))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        workdir = Workdir(Path(folder))
        workdir.claim(config, overwrite=False)
        with Checkpoints(workdir.path) as checkpoints:
            problem = make_problem(config, *maps)
            run = Run(config, Split((), (), ()), "", workdir, checkpoints)
            run_epochs([Training(run, normals, anomalies)], [problem], RunOptions(progress=False))
        wall = time.perf_counter() - start
        history = workdir.read_history(config.learning.epochs)
    trained = [float(row["seconds"]) for row in history]
    return {
        "normals": normals,
        "anomalies": anomalies,
        "pseudo": len(maps[2][0]),
        "wall_seconds": wall,
        "seconds_of_epochs": sum(trained),
        "seconds_of_last_epoch": trained[-1],
        "products": common.float32_products(),
        "device": common.device_name(),
    }


def stage_one_rates(quick: bool) -> Iterator[Result]:
    """Images per second of a step of stage one, at the published size."""
    kinds = [("resnet18", "bfloat16"), ("efficientnet_lite0", "bfloat16"), ("resnet18", "float32")]
    for name, precision in [("resnet18", "float32")] if quick else kinds:
        options = stage_one.Options(
            batch=48, image_size=448, steps=4, precision=precision, quick=quick  # type: ignore[arg-type]
        )  # fmt: skip
        config = stage_one.config_of(options, name)
        dtype = trunk_dtype(precision, jax.default_backend())
        label = {
            "trunk": name,
            "image_size": config.features.image_size,
            "batch": config.stage_one.stage_one_batch,
            "dtype": str(dtype),
        }
        yield attempt(label, functools.partial(_stage_one_rate, config, name, dtype, quick))


def _stage_one_rate(config: Config, name: str, dtype: np.dtype, quick: bool) -> Result:
    trunk = extract.benchmark_trunk(name)
    try:
        gflop = stage_one.gflop_per_image(trunk, config.features.image_size)
    except Exception:  # such as JAX_PLATFORMS without the CPU; the rates are more than the shares
        gflop = math.nan
    start = time.perf_counter()
    step = stage_one.compiled_training(config, trunk)
    compile_seconds = time.perf_counter() - start
    rate = stage_one.train_rate(config, step, 1 if quick else 3)
    peak = common.matmul_peak(dtype, precision=stage_one.PRECISION)
    return {
        "images_per_second_train": rate,
        "gflop_per_image": gflop,
        "peak_gflops": peak,
        "fraction_of_peak_train": stage_one.training_gflop(config, gflop) * rate / peak,
        "compile_seconds": compile_seconds,
        "device": common.device_name(),
    }


def trunk_rates(quick: bool) -> Iterator[Result]:
    """Images per second of the trunk alone, both scales, over images that are on the device."""
    kinds = [
        (name, size, precision, 128 if size > 256 else 256)
        for precision in ("bfloat16", "float32")
        for name, size in (
            ("resnet18", 448), ("efficientnet_lite0", 256), ("efficientnet_lite0", 448),
            ("resnet18", 256),
        )
    ]  # fmt: skip
    if quick:
        kinds = [("efficientnet_lite0", 192, "float32", 2)]
    rng = np.random.default_rng(0)
    for name, size, precision, batch in kinds:
        dtype = trunk_dtype(precision, jax.default_backend())
        images = jax.device_put(rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8))
        label = {"trunk": name, "image_size": size, "batch": batch, "dtype": str(dtype)}
        yield attempt(label, functools.partial(_trunk_rate, name, images, dtype, quick))


def _trunk_rate(name: str, images: jax.Array, dtype: np.dtype, quick: bool) -> Result:
    trunk = extract.benchmark_trunk(name)
    start = time.perf_counter()
    jax.block_until_ready(trunk_maps(trunk, images, FeatureConfig(image_batch=len(images)), dtype))
    compile_seconds = time.perf_counter() - start
    return {
        "images_per_second_trunk": extract.trunk_rate(trunk, images, 1 if quick else 8, dtype),
        "compile_seconds": compile_seconds,
        "device": common.device_name(),
    }


def largest_operations(quick: bool) -> Iterator[Result]:
    """The profile of an epoch, the operations that take longest first."""
    if quick:
        options = operations.Operations("devnet", 2, "demo", top=5, normals=96)
    else:
        options = operations.Operations("dra", 6, "paper", precision="bfloat16")
    device = {"device": common.device_name()}
    yield from (row | device for row in operations.measure(options))


@dataclass(frozen=True)
class Part:
    """Something to measure in a process of its own."""

    title: str
    rows: Callable[[bool], Iterator[Result]]
    limit: float
    """Seconds that it may take."""

    columns: tuple[str, ...]
    """Those of the table; the JSON has all."""

    keeps_programs: bool = False
    """Whether it shares compiled programs with the other parts that do."""


_EPOCH = ("detector", "size", "subsets", "seeds", "precision", "products", "seconds_per_epoch",
          "fraction_of_peak", "peak_gflops", "program_mib")  # fmt: skip
_LOOP = ("detector", "size", "subsets", "products", "seconds_ours", "seconds_loop", "ratio",
         "share_agreeing", "gradient_difference")  # fmt: skip
_IMAGES = ("trunk", "image_size", "batch", "dtype")

PARTS = {
    "epoch": Part("Epoch, T = 6", main_epochs, 120, (*_EPOCH, "compile_seconds"), True),
    "vs_loop": Part(
        "Against a PyTorch loop, the paper's size", functools.partial(loops, "paper"), 110, _LOOP
    ),
    "run": Part(
        "A whole training, the demo's size",
        whole_runs,
        90,
        ("detector", "preset", "subsets", "epochs", "normals", "anomalies", "pseudo", "products",
         "wall_seconds", "seconds_of_epochs", "seconds_of_last_epoch"),
    ),
    "stage_one": Part(
        "Stage one, a training step",
        stage_one_rates,
        120,
        (*_IMAGES, "images_per_second_train", "fraction_of_peak_train", "peak_gflops",
         "compile_seconds"),
    ),
    "extract": Part(
        "Extraction, the trunk alone", trunk_rates, 90,
        (*_IMAGES, "images_per_second_trunk", "compile_seconds"),
    ),
    "operations": Part(
        "The largest operations of an epoch of AHL(DRA), the paper's size, T = 6, bfloat16",
        largest_operations,
        45,
        ("operation", "shape", "of", "seconds", "share"),
        True,
    ),
    "epoch_more": Part("Epoch, other sizes, T and seeds", more_epochs, 180, _EPOCH),
    "vs_loop_demo": Part(
        "Against a PyTorch loop, the demo's size", functools.partial(loops, "demo"), 90, _LOOP
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """Everything that is measured on a GPU."""

    out: Path
    """The folder for gpu.json and gpu.md."""

    minutes: Annotated[float, tyro.conf.arg(metavar="FLOAT")] = 5.5
    """What the whole may take."""

    parts: tuple[str, ...] = tuple(PARTS)
    """What is measured, in this order."""

    quick: bool = False
    """The smallest sizes, on whatever device there is."""


def child(name: str, quick: bool) -> None:
    """Measure one part in this process; each row is a line on stdout.

    Raises:
        UserError: if there is no GPU, unless it is only a trial.
    """
    if not quick and jax.default_backend() == "cpu":
        raise UserError("there is no GPU; add --quick for a trial of all parts on the CPU")
    for row in PARTS[name].rows(quick):
        print(json.dumps(row), flush=True)


def measured_part(name: str, quick: bool, seconds: float, programs: Path) -> Result:
    """Run a part in a process of its own, for so many seconds at most."""
    part = PARTS[name]
    command = [sys.executable, "-m", "experiments.benchmarks.gpu", "--part", name]
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if part.keeps_programs:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(programs),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            # No tuning is taken over from one program to the next: compile seconds are whole.
            "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
        }
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            [*command, *(["--quick"] if quick else [])],
            stdout=out, stderr=err, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
            error = "" if code == 0 else f"ended with code {code}"
        except subprocess.TimeoutExpired:
            error = f"stopped after {seconds:.0f} seconds"
        finally:
            # With what it started; all of them are in its own group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        rows = rows_of(out.read())
        said = [line for line in err.read().splitlines() if line.strip()]
    failed = [row["error"] for row in rows if "error" in row]
    if not error and failed:
        error = f"{len(failed)} of {len(rows)} rows failed"
    if not error and not rows:
        error = "it gave no rows"
    return {
        "part": name,
        "title": part.title,
        "seconds": time.monotonic() - start,
        "rows": rows,
        "error": error,
        "said": said[-12:] if error else [],
    }


def rows_of(text: str) -> list[Result]:
    """The rows that a part printed, among what libraries may print; NaN becomes None."""
    rows = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line, parse_constant=lambda _: None)
            if isinstance(row, dict):
                rows.append(row)
    return rows


def machine() -> Result:
    """Versions, and what the driver says; JAX's devices are left to the parts."""
    found: Result = {"python": sys.version.split()[0]}
    for name in ("jax", "jaxlib", "flax", "optax", "numpy", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if shutil.which("nvidia-smi"):
        query = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total",
            "--format=csv,noheader",
        ]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10)
            found["nvidia_smi"] = done.stdout.strip()
    return found


def written(out: Path, about: Result, results: Sequence[Result]) -> None:
    """Write all results so far to both files."""
    devices = {row["device"] for result in results for row in result["rows"] if "device" in row}
    about = about | {"device": ", ".join(sorted(devices))}
    whole = {"machine": about, "parts": list(results)}
    (out / "gpu.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    lines = ["# Benchmarks on a GPU", ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    for result in results:
        lines += ["", f"## {result['title']} (`{result['part']}`, {result['seconds']:.0f} s)", ""]
        part = PARTS[result["part"]]
        errors = ("error",) if any("error" in row for row in result["rows"]) else ()
        shown = [
            {
                key: "" if (value := row.get(key)) is None else value
                for key in (*part.columns, *errors)
            }
            for row in result["rows"]
        ]
        if shown:
            lines += common.table(shown)
        if result["error"]:
            how = ["", "Not measured in full: "] if shown else ["Not measured: "]
            lines += [*how[:-1], how[-1] + result["error"]]
        if result["said"]:
            lines += ["", "```", *result["said"], "```"]
    (out / "gpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Measure part by part.

    Raises:
        UserError: for a part that there is not, or a folder that cannot be written.
    """
    if sys.argv[1:2] == ["--part"]:
        child(sys.argv[2], "--quick" in sys.argv[3:])
        return
    start = time.monotonic()
    config = (tyro.conf.FlagCreatePairsOff,)
    args = tyro.cli(Gpu, description=__doc__, config=config)
    for name in args.parts:
        if name not in PARTS:
            raise UserError(f"there is no part {name!r}; choose from {', '.join(PARTS)}")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "gpu.md").write_text("", encoding="utf-8")
    except OSError as error:
        raise UserError(f"`out` {args.out} cannot be written: {error.strerror}") from error
    about, results = machine(), []
    # A process that starts with less would end before its first row.
    least = 5.0 if args.quick else 25.0
    with tempfile.TemporaryDirectory() as programs:
        for name in args.parts:
            left = 60 * args.minutes - RESERVE - (time.monotonic() - start)
            if left < least:
                result = dict.fromkeys(("part", "title", "seconds", "rows", "error", "said"))
                result |= {"part": name, "title": PARTS[name].title, "seconds": 0.0}
                result |= {"rows": [], "error": "out of time", "said": []}
            else:
                print(f"{name} ...", file=sys.stderr, flush=True)
                limit = min(left, PARTS[name].limit)
                result = measured_part(name, args.quick, limit, Path(programs))
                state = result["error"] or "measured"
                print(f"  {state}, {result['seconds']:.0f} s", file=sys.stderr, flush=True)
            results.append(result)
            written(args.out, about, results)
    print((args.out / "gpu.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_command(main, Gpu)
