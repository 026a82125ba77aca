"""AHL's compiled epoch against the same epoch as a plain PyTorch loop, in one run.

    python -m experiments.benchmarks.vs_loop [--detectors dra devnet] [--quick] [--json PATH]

Both sides start from the same parameters and see the same features and batches, with w_i = 1/T
instead of psi. The loop (``torch_loop``) takes one subset after another and one step at a time, on
the same device. An image that a balanced batch repeats is computed as often as it occurs there, as
a data loader would have it; ours computes it once with a weight. Each side runs in a process of its
own, on the cores that this one may use, so neither holds the other's threads or memory.

Another busy program slows the loop's threads, which wait for each other at every operation, far
more than ours: time on an idle machine, or on one free core (``taskset -c 0 python -m ...``).

The outcomes are compared after the first epoch: the share of g's parameters that agree within
``WITHIN``, the largest difference among all, and the norm of the difference of g's gradients over
the norm of ours. They are not equal to the last digit. Adam's first step is nearly the sign of the
gradient, whatever its size, so rounding can turn it where the gradient is all but 0; and ours has
an epsilon inside Adam's root, which torch's has not. With the same Adam in float64 all parameters
agree within 1e-6.
"""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ahl_jax.cli.shell import run_command
from ahl_jax.common.errors import UserError
from ahl_jax.detectors.inputs import to_maps
from ahl_jax.distributed.cores import cores
from ahl_jax.learning.batches import Batch, PoolSet, draw_batches
from ahl_jax.learning.problem import Problem
from experiments.benchmarks import common

WITHIN = 1e-5
"""A two-hundredth of the step that Adam first takes."""

SHARE, GRADIENT = 0.95, 0.05
"""The least share of parameters that agree, and the largest relative difference of gradients."""


@dataclass(frozen=True)
class Row:
    """One comparison."""

    detector: str
    subsets: int
    size: Literal["paper", "demo", "quick"]
    epochs: int
    float64: bool = False


@dataclass(frozen=True)
class VsLoop:
    """Seconds per epoch of both sides, and their ratio."""

    detectors: tuple[str, ...] = ("dra", "devnet")
    """Base detectors."""

    subsets: tuple[int, ...] = (6,)
    """Values of T."""

    size: Literal["paper", "demo"] = "paper"
    """paper: 14x14x512 + 7x7x512; demo: 8x8x320 + 4x4x320."""

    epochs: int = 1
    """Epochs timed, after one that is not; the best counts."""

    quick: bool = False
    """Two subsets, two steps an epoch and 96 normals, at the demo's size."""

    json: Path | None = None
    """Write the rows here as JSON too."""


def make_problem(row: Row) -> Problem:
    """The problem of a row, in the row's precision."""
    shapes = common.PAPER_SHAPES if row.size == "paper" else common.DEMO_SHAPES
    small: dict[str, Any] = {}
    if row.size == "quick":
        small = {"normals": 96, "pseudo_per_generator": 16, "steps": 2}
    problem = common.synthetic_problem(
        row.detector, row.subsets, shapes, importance="uniform", **small
    )
    if not row.float64:
        return problem
    model, data = jax.tree.map(
        lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        (problem.model, problem.data),
    )
    return dataclasses.replace(problem, model=model, data=data)


def drawn_batches(key: jax.Array, pools: PoolSet, problem: Problem) -> dict[str, np.ndarray]:
    """An epoch's batches as the loop reads them, with the repeats that ours has as weights.

    Returns:
        index and labels [T, steps, batch], reference [T, steps, references].
    """
    config = problem.learner.config  # type: ignore[attr-defined]

    def draw(key: jax.Array, pools: PoolSet) -> Batch:
        return draw_batches(
            key,
            pools,
            steps=config.learning.steps,
            batch=config.learning.batch,
            references=config.detector.references,
        )

    subsets = len(problem.subsets)
    batch = jax.tree.map(np.asarray, jax.vmap(draw)(jax.random.split(key, subsets), pools))

    def repeated(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        flat = np.repeat(values.ravel(), weights.ravel().astype(int))
        return flat.reshape(*values.shape[:2], -1)

    return {
        "index": repeated(batch.index, batch.weights),
        "labels": repeated(batch.labels, batch.weights),
        "reference": repeated(batch.reference, batch.reference_weights),
    }


def to_torch(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Parameters of a detector under the names, and in the layouts, of the loop's modules."""
    named = {}
    for layer, arrays in params.items():
        for kind, array in arrays.items():
            value = np.asarray(array)
            if kind == "kernel" and layer == "residual":
                channels = value.shape[1]
                value = value.reshape(3, 3, channels, channels).transpose(3, 2, 0, 1)
            elif kind == "kernel":
                value = value.T if layer.startswith("normality") else value.T[..., None, None]
            name = {"kernel": "weight", "scale": "weight", "shift": "bias"}.get(kind, kind)
            named[f"{layer}.{name}"] = np.ascontiguousarray(value)
    return named


def write_problem(problem: Problem, state: Any, epochs: int, folder: Path) -> None:
    """Write everything that the loop reads to ``problem.npz`` and ``settings.json``."""
    config, data = problem.learner.config, problem.data  # type: ignore[attr-defined]
    learning = config.learning
    arrays = {"reference": np.asarray(data.reference), "followed": np.asarray(data.followed)}
    for i, maps in enumerate(to_maps(data.inputs)):
        arrays[f"maps{i}"] = np.asarray(maps)
    for part, pools in (("support", data.support), ("query", data.query)):
        drawn = []
        for epoch in range(epochs):
            # The learner's own keys of this epoch.
            keys = jax.random.split(jax.random.fold_in(state.key, epoch), 3)
            drawn.append(drawn_batches(keys[0 if part == "support" else 1], pools, problem))
        for name in drawn[0]:
            arrays[f"{part}_{name}"] = np.stack([d[name] for d in drawn])
    initial = to_torch(problem.model.params)
    arrays |= {f"g.{name}": value for name, value in initial.items()}
    decays = [learning.decay ** (epoch // learning.decay_every) for epoch in range(epochs)]
    settings = {
        "detector": config.detector.detector,
        "scales": len(data.inputs.grids),
        "steps": learning.steps,
        "passes": learning.passes,
        "clip": learning.clip,
        "top_k": config.detector.top_k,
        "hidden": config.detector.hidden,
        "margin": config.detector.margin,
        "prior_mean": float(data.prior.mean),
        "prior_std": float(data.prior.std),
        "rates": [(learning.lr * decay, learning.lr_base * decay) for decay in decays],
        "threads": cores(),
        "backend": jax.default_backend(),
        # Both sides round the factors of their products alike.
        "tf32": common.float32_products() == "TF32",
    }
    np.savez(folder / "problem.npz", **arrays)  # type: ignore[arg-type]
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")


def run_ours(row: Row, folder: Path) -> None:
    """Our side: write the problem, train, write g after the first epoch and the seconds."""
    if row.float64:
        jax.config.update("jax_enable_x64", True)
    problem = make_problem(row)
    learner, data = problem.learner, problem.data
    state = learner.init(problem.model, data, problem.key)
    write_problem(problem, state, row.epochs + 1, folder)
    epoch = jax.jit(learner.epoch, donate_argnums=0)
    seconds = []
    result: dict[str, np.ndarray] = {}
    for number in range(row.epochs + 1):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(epoch(state, data, jnp.int32(number)))
        seconds.append(time.perf_counter() - start)
        if not result:
            params = to_torch(learner.model(state).params)
            result = {f"g.{name}": np.array(value) for name, value in params.items()}
            # Adam's first moment is a tenth of the first gradient.
            moment = to_torch(optax.tree_utils.tree_get(state.optimizer, "mu"))
            result |= {f"gradient.{name}": 10 * np.array(value) for name, value in moment.items()}
            result["scores"] = np.array(state.importance.history[:, -1])
    result["device"] = np.array(common.device_name())
    result["products"] = np.array(common.float32_products())
    np.savez(folder / "ours.npz", seconds=np.array(seconds), **result)  # type: ignore[arg-type]


def run_side(row: Row, *command: str) -> None:
    """Run one side in a process of its own.

    Raises:
        UserError: if it fails; it has said why on stderr.
    """
    done = subprocess.run([sys.executable, "-m", *command], check=False)
    if done.returncode:
        raise UserError(f"{row.detector} was not compared; see the message above")


def compare(row: Row) -> dict[str, Any]:
    """Run both sides, one after the other, and hold their outcomes together."""
    with tempfile.TemporaryDirectory() as folder:
        setting = json.dumps(dataclasses.asdict(row))
        run_side(row, "experiments.benchmarks.vs_loop", "--ours", setting, folder)
        run_side(row, "experiments.benchmarks.torch_loop", folder)
        with np.load(Path(folder) / "ours.npz") as arrays:
            ours = dict(arrays)
        with np.load(Path(folder) / "loop.npz") as arrays:
            loop = dict(arrays)
    seconds_ours, seconds_loop = (float(min(side["seconds"][1:])) for side in (ours, loop))
    return {
        "detector": row.detector,
        "size": row.size,
        "subsets": row.subsets,
        "seconds_ours": seconds_ours,
        "seconds_loop": seconds_loop,
        "ratio": seconds_loop / seconds_ours,
        **differences(ours, loop),
        "device": str(ours["device"]),
        "cores_used": cores(),
        "products": str(ours["products"]),
    }


def differences(ours: dict[str, np.ndarray], loop: dict[str, np.ndarray]) -> dict[str, float]:
    """How far apart the outcomes are; see the module's docstring."""

    def flat(side: dict[str, np.ndarray], prefix: str) -> np.ndarray:
        return np.concatenate([side[key].ravel() for key in ours if key.startswith(prefix)])

    parameters = np.abs(flat(loop, "g.") - flat(ours, "g."))
    gradient = flat(ours, "gradient.")
    off = np.linalg.norm(flat(loop, "gradient.") - gradient) / np.linalg.norm(gradient)
    return {
        "share_agreeing": float((parameters <= WITHIN).mean()),
        "largest_difference": float(parameters.max()),
        "gradient_difference": float(off),
    }


def main() -> None:
    """Compare row by row and print the table."""
    if sys.argv[1:2] == ["--ours"]:
        run_ours(Row(**json.loads(sys.argv[2])), Path(sys.argv[3]))
        return
    args = common.parse(VsLoop, __doc__)
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "vs_loop compares with PyTorch, which is not installed; run: pip install torch"
        )
    if args.epochs < 1:
        raise UserError(f"`epochs` is {args.epochs}; it must be 1 or more")
    if args.quick:
        rows = [Row(d, 2, "quick", args.epochs) for d in args.detectors]
    else:
        rows = [Row(d, t, args.size, args.epochs) for d in args.detectors for t in args.subsets]
    measured = []
    for row in rows:
        print(f"{row.detector}, {row.size}, T = {row.subsets} ...", file=sys.stderr, flush=True)
        measured.append(compare(row))
    common.report(measured, args.json)
    if any(r["share_agreeing"] < SHARE or r["gradient_difference"] > GRADIENT for r in measured):
        print("The outcomes do not agree, so the seconds mean nothing.", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_command(main, VsLoop)
