"""Milliseconds per image of a trained detector in JAX, ONNX Runtime and OpenVINO, on the CPU.

    pip install onnx onnxruntime openvino
    python -m experiments.benchmarks.runtimes RUN [--threads 2]

All three go from images of the right size to scores and heat maps, in float32 and with as many
threads. They take turns, so that they share whatever else the machine does; the best of the rounds
counts. A runtime that is not installed is left out.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from ahl_jax import export_onnx, load
from ahl_jax.cli.shell import run_command
from experiments.benchmarks import common


@dataclass(frozen=True)
class Runtimes:
    """Milliseconds per image, runtime by runtime."""

    workdir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder that was given to the training."""

    batches: tuple[int, ...] = (1, 8)
    """Images per call."""

    threads: int = 2
    """Threads of ONNX Runtime and OpenVINO; JAX takes all cores, which `taskset` limits."""

    rounds: int = 10
    """Calls of each."""

    quick: bool = False
    """One call of each, of one image."""

    json: Path | None = None
    """Write the rows here as JSON too."""


def onnx_runtime(file: Path, threads: int) -> Callable[[np.ndarray], Any]:
    """Scores images with ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})


def open_vino(file: Path, threads: int) -> Callable[[np.ndarray], Any]:
    """Scores images with OpenVINO."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    model = openvino.Core().compile_model(file, "CPU", options)
    return lambda images: model({"images": images})


def main() -> None:
    """Measure batch by batch and print the table."""
    args = common.parse(Runtimes, __doc__)
    predictor = load(args.workdir)
    programs: dict[str, Callable[[np.ndarray], Any]] = {"jax": predictor.of_arrays}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_onnx(predictor, file)
        for name, make in {"onnxruntime": onnx_runtime, "openvino": open_vino}.items():
            if find_spec(name):
                programs[name] = make(file, args.threads)
    size, rows = predictor.config.features.image_size, []
    for batch in (1,) if args.quick else args.batches:
        images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
        times: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(2 if args.quick else 1 + args.rounds):
            for name, program in programs.items():
                start = time.perf_counter()
                program(images)
                times[name].append(1000 * (time.perf_counter() - start) / batch)
        best = {name: min(each[1:]) for name, each in times.items()}
        for name, milliseconds in best.items():
            rows.append(
                {
                    "runtime": name,
                    "batch": batch,
                    "image_ms": milliseconds,
                    "ratio_to_jax": milliseconds / best["jax"],
                    "trunk": predictor.trunk.name,
                    "views": predictor.config.features.views,
                    "device": common.device_name(),
                }
            )
    common.report(rows, args.json)


if __name__ == "__main__":
    run_command(main, Runtimes)
