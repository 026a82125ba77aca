"""Our detectors beside those of anomalib and PyOD, on the same images, on the CPU.

    python -m experiments.benchmarks.peers [--methods "Density, one view" PatchCore KNN] [--quick]

All see the same training normals and the same test images, at the same size, through the same
trunk weights (EfficientNet-Lite0). Those that take labels see the same labelled anomalies. One
that takes none is fitted once, with the first seed; its deviation is that of the test images.

- fit_seconds: from the trunk's features to a detector, the fastest of the seeds. Ours is the wall
  clock of ``ahl_jax.train`` with all features in the store: reading them, tracing, checkpoints and
  the test included.
- feature_ms, score_ms, image_ms: per image, from decoded images to the trunk's features, from
  those to scores, and from decoded images to scores at once; the best of three rounds after one
  that is not timed. image_ratio is image_ms over that of the first method.
- pixel_auroc, aupro: of heat maps, where the data has masks and the method makes any; with the
  first seed. See ``ahl_jax.run.pixel_metrics``.
- peak_mib: the most memory that the method's process had, and start_mib what it had before it
  began to fit.

Each method runs in a process of its own, on ``--threads`` cores. anomalib's PatchCore and PaDiM
read one view of an image, their maps of strides 8 and 16, and 4 to 16. PyOD's read what Density
reads: two scales, eight views, four levels at stride 32. Ours say how many views they read.
"""

import dataclasses
import importlib
import importlib.util
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ahl_jax.cli.shell import keep_compiled_programs, run_command
from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import Config
from ahl_jax.data.batches import iter_batches
from ahl_jax.data.images import read_image
from ahl_jax.data.masks import marks, masks_of
from ahl_jax.data.records import ImageSource
from ahl_jax.data.types import Sample
from ahl_jax.distributed.cores import cores
from ahl_jax.features.split import load_split
from ahl_jax.run.metrics import image_metrics
from ahl_jax.run.pixel_metrics import pixel_metrics
from experiments.benchmarks import common
from experiments.benchmarks.peer_methods import METHODS, Case, Detector, Method

log = logging.getLogger("ahl_jax")


@dataclass(frozen=True)
class Peers:
    """AUC-ROC, seconds and memory, method by method."""

    methods: tuple[str, ...] = ()
    """Rows of the table; by default all."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the split and of the training."""

    data: str = "elpv"
    """The data set."""

    category: str | None = None
    """Its category, where it has several."""

    shots: int = 10
    """Labelled anomalies that the methods with labels see."""

    limit: int | None = None
    """At most this many training normals, test normals and test images per class."""

    coreset: float = 0.1
    """The share of all locations that PatchCore keeps; 0.1 is anomalib's default."""

    coreset_normals: int | None = None
    """Training normals that PatchCore's greedy coreset is chosen from, at random; by default all,
    which takes days on a CPU: its time grows with their number squared."""

    batch: int = 16
    """Images in one pass."""

    timed_images: int = 64
    """Test images that are timed."""

    threads: int = cores()
    """Cores that a method may use."""

    measure: Literal["all", "auc", "times"] = "all"
    """auc: leave the times out, where other programs run; times: score no other test images than
    those that are timed."""

    quick: bool = False
    """The debug preset: 24 images of each kind, 192 pixels, and three labelled anomalies."""

    json: Path | None = None
    """Write the rows here as JSON too."""


def check(args: Peers) -> list[str]:
    """The methods that are asked for.

    Raises:
        UserError: if there is no such method, a package is missing, or a number is none.
    """
    names = list(args.methods or METHODS)
    for name in names:
        if name not in METHODS:
            known = ", ".join(f"'{known}'" for known in METHODS)
            raise UserError(f"`methods` has no '{name}'; choose from {known}")
    for option in ("seeds", "batch", "timed_images", "threads"):
        value = getattr(args, option)
        if not value or (isinstance(value, int) and value < 1):
            raise UserError(f"`{option}` must be 1 or more")
    if not 0 < args.coreset <= 1:
        raise UserError(f"`coreset` is {args.coreset}; it must be above 0 and at most 1")
    needed = dict.fromkeys(module for name in names for module in METHODS[name].needs)
    missing = [module for module in needed if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            f"peers compares with {' and '.join(missing)}, which this Python has not; run: "
            "pip install '.[peers]'"
        )
    return names


def case_of(args: Peers, seed: int) -> Case:
    """The features and labels that a method is fitted with."""
    shared = {f.name for f in dataclasses.fields(Case)} & {f.name for f in dataclasses.fields(args)}
    return Case(seed=seed, **{name: getattr(args, name) for name in shared})


def measure(method: Method, args: Peers) -> dict[str, Any]:
    """Fit and test a method with all seeds, in this process."""
    importlib.import_module(method.module)
    start_mib = common.peak_mib()
    aucs: list[float] = []
    fits: list[float] = []
    pixels: dict[str, float] = {}
    detector: Detector | None = None
    score: dict[ImageSource, float] = {}
    config = case_of(args, args.seeds[0]).config("Density")
    for seed in args.seeds:
        if detector is None or method.labels:
            detector = method.fit(case_of(args, seed))
            fits.append(detector.fit_seconds)
            score.clear()
        if args.measure != "times":
            samples = load_split(dataclasses.replace(config, seed=seed)).test
            if wanted := [sample.path for sample in samples if sample.path not in score]:
                score.update(zip(wanted, detector.score_paths(wanted).tolist(), strict=True))
            scores = np.array([score[sample.path] for sample in samples])
            aucs.append(image_metrics(scores, [s.anomaly_class for s in samples])["auc_roc"])
            if seed == args.seeds[0]:
                pixels = pixels_of(detector, config, samples)
    assert detector is not None
    row: dict[str, Any] = {"labels": config.data.shots if method.labels else 0}
    if aucs:
        std = statistics.stdev(aucs) if len(aucs) > 1 else 0.0
        row |= {"auc_roc": statistics.mean(aucs), "auc_roc_std": std} | pixels
    row |= {"start_mib": start_mib, "peak_mib": common.peak_mib()}
    if args.measure != "auc":
        test = load_split(config).test[: args.timed_images]
        images = np.stack([read_image(s.path, config.features.image_size) for s in test])
        row |= {"fit_seconds": min(fits)} | timed(detector, images, args.batch)
    return row | {"device": common.device_name()}


def pixels_of(detector: Detector, config: Config, samples: Sequence[Sample]) -> dict[str, float]:
    """How well heat maps of the test images find what is marked; empty where they cannot."""
    masks = masks_of(samples, Path(config.data.data))
    if not masks:
        return {}
    paths, batch = [sample.path for sample in samples], config.features.image_batch
    heat = []
    for _, images in iter_batches(paths, config.features.image_size, batch):
        maps = detector.heat_images(images)
        if maps is None:
            return {}
        heat.append(maps)
    found = pixel_metrics(np.concatenate(heat), marks(samples, masks))
    return {"pixel_auroc": found["auroc"], "aupro": found["aupro"]} if found else {}


def timed(detector: Detector, images: np.ndarray, batch: int) -> dict[str, float]:
    """Milliseconds per image of the detector's steps."""
    batches = [images[i : i + batch] for i in range(0, len(images), batch)]
    features = [detector.features(part) for part in batches]

    def best(step: Callable[[Any], Any], parts: Sequence[Any]) -> float:
        rounds = []
        for _ in range(4):
            start = time.perf_counter()
            for part in parts:
                step(part)
            rounds.append(time.perf_counter() - start)
        return min(rounds[1:]) / len(images) * 1e3

    return {
        "feature_ms": best(detector.features, batches),
        "score_ms": best(detector.score, features),
        "image_ms": best(detector.score_images, batches),
    }


def run_method(name: str, args: Peers) -> dict[str, Any] | None:
    """Measure a method in a process of its own; None if that fails, which it has said why."""
    with tempfile.TemporaryDirectory() as folder:
        task, found = Path(folder) / "task.json", Path(folder) / "row.json"
        options = dataclasses.asdict(args) | {"methods": [name], "json": None}
        task.write_text(json.dumps(options), encoding="utf-8")
        threads = dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"),
            str(args.threads),
        )
        done = subprocess.run(
            [sys.executable, "-m", "experiments.benchmarks.peers", "--one", str(task), str(found)],
            check=False,
            stdout=sys.stderr,
            env=os.environ | threads | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
        )
        if done.returncode:
            log.warning("%s was not measured; see the message above", name)
            return None
        return json.loads(found.read_text(encoding="utf-8"))


def run_one(task: Path, found: Path) -> None:
    """Runs one method in this process."""
    options = json.loads(task.read_text(encoding="utf-8"))
    args = Peers(**options | {key: tuple(options[key]) for key in ("methods", "seeds")})
    if hasattr(os, "sched_setaffinity"):
        # Every library counts the cores that it may use.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    keep_compiled_programs()
    row = measure(METHODS[args.methods[0]], args)
    found.write_text(json.dumps(row), encoding="utf-8")


def with_shared(
    name: str, row: dict[str, Any], before: Sequence[dict[str, Any]], args: Peers
) -> dict[str, Any]:
    """A method's row with its name, its ratio to the first row, and what all have in common."""
    row = {"method": name, "package": METHODS[name].package} | row
    if "image_ms" in row:
        row["image_ratio"] = row["image_ms"] / [*before, row][0]["image_ms"]
    return row | {"seeds": len(args.seeds), "threads": args.threads}


def main() -> None:
    """Measure method by method and print the table."""
    if sys.argv[1:2] == ["--one"]:
        run_one(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    args = common.parse(Peers, __doc__)
    names = check(args)
    load_split(case_of(args, args.seeds[0]).config("Density"))  # Says what is wrong with the data.
    rows: list[dict[str, Any]] = []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        row = run_method(name, args)
        if row is not None:
            rows.append(with_shared(name, row, rows, args))
            if args.json is not None:
                # A method may take hours; what is measured stays.
                args.json.write_text(json.dumps(rows), encoding="utf-8")
    if rows:
        common.report(rows, args.json)
    if len(rows) < len(names):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main, Peers)
