"""Milliseconds per image of a trained detector in JAX, ONNX Runtime and OpenVINO, on the CPU.

    pip install onnx onnxruntime openvino nncf
    python -m experiments.benchmarks.runtimes RUN [--threads 2] [--test]

All go from images of the right size to scores and heat maps, with as many threads: in float32, and
with OpenVINO in bfloat16 and with convolutions of 8 bits too (docs/examples/onnx/quantize.py). They
take turns, so that they share whatever else the machine does; ratios are of the best of the rounds,
which the median and the 99th percentile stand beside. A runtime that is not installed is left out.
With --test the run's test images are scored by each.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from sklearn.metrics import roc_auc_score

from ahl_jax import export_onnx, load
from ahl_jax.cli.shell import run_command
from ahl_jax.data.images import read_image
from ahl_jax.run.again import find_split
from ahl_jax.storage.workdir import Workdir
from experiments.benchmarks import common

EXAMPLES = Path(__file__).parents[2] / "docs/examples/onnx"

CALIBRATION = 100
"""Training normals, at most, whose ranges 8 bits are set by."""


@dataclass(frozen=True)
class Runtimes:
    """Milliseconds per image, runtime by runtime."""

    workdir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder that was given to the training."""

    batches: tuple[int, ...] = (1, 8)
    """Images per call."""

    threads: int = 2
    """Threads of ONNX Runtime and OpenVINO; JAX takes all cores, which `taskset` limits."""

    rounds: int = 100
    """Calls of each."""

    test: bool = False
    """Score the run's test images too, for AUC-ROC and the share of decisions that differ from
    JAX's, at the threshold that JAX has."""

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
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(None, {"images": images}), strict=True))


def open_vino(model: Any, threads: int, precision: str) -> Callable[[np.ndarray], Any]:
    """Scores images with OpenVINO, by a file or its own model."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    return lambda images: compiled({"images": images})


def eight_bits(file: Path, images: np.ndarray) -> Any:
    """OpenVINO's model of an ONNX file, as the example quantises it."""
    import openvino

    sys.path.insert(0, str(EXAMPLES))
    from quantize import quantized

    return quantized(openvino.Core().read_model(file), images)


def tested(
    programs: dict[str, Callable[[np.ndarray], Any]],
    images: np.ndarray,
    anomalies: np.ndarray,
    threshold: float,
) -> dict[str, dict[str, float]]:
    """AUC-ROC of each runtime, and the share of decisions that differ from JAX's."""
    scores = {
        name: np.concatenate([program(image[None])["score"] for image in images])
        for name, program in programs.items()
    }
    decisions = scores["jax"] > threshold
    return {
        name: {
            "auc_roc": float(roc_auc_score(anomalies, each)),
            "decisions_changed": float(((each > threshold) != decisions).mean()),
        }
        for name, each in scores.items()
    }


def main() -> None:
    """Measure batch by batch and print the table."""
    args = common.parse(Runtimes, __doc__)
    predictor = load(args.workdir)
    split = find_split(Workdir(args.workdir), predictor.config).split

    def read(paths: Any) -> np.ndarray:
        return np.stack([read_image(path, predictor.frame) for path in paths])

    programs: dict[str, Callable[[np.ndarray], Any]] = {
        "jax": lambda images: {"score": predictor.of_arrays(images).scores}
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_onnx(predictor, file)
        if find_spec("onnxruntime"):
            programs["onnxruntime"] = onnx_runtime(file, args.threads)
        if find_spec("openvino"):
            programs["openvino"] = open_vino(file, args.threads, "f32")
            programs["openvino, bfloat16"] = open_vino(file, args.threads, "bf16")
        if find_spec("openvino") and find_spec("nncf"):
            model = eight_bits(file, read(split.train_normals[:CALIBRATION]))
            programs["openvino, int8"] = open_vino(model, args.threads, "f32")
    outcome: dict[str, dict[str, float]] = {name: {} for name in programs}
    if args.test:
        anomalies = np.array([sample.anomaly_class is not None for sample in split.test])
        threshold = predictor.calibrated().cut().threshold
        outcome = tested(programs, read(s.path for s in split.test), anomalies, threshold)
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
            p50, p99 = np.percentile(times[name][1:], [50, 99])
            rows.append(
                {
                    "runtime": name,
                    "batch": batch,
                    "image_ms": milliseconds,
                    "p50_ms": float(p50),
                    "p99_ms": float(p99),
                    "ratio_to_jax": milliseconds / best["jax"],
                    **outcome[name],
                    "trunk": predictor.trunk.name,
                    "views": predictor.config.features.views,
                    "device": common.device_name(),
                }
            )
    common.report(rows, args.json)


if __name__ == "__main__":
    run_command(main, Runtimes)
