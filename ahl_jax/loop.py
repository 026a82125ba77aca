"""The loop over the epochs of one or more runs; between chunks, checkpoints and reports."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ahl_jax import seeds
from ahl_jax.checkpoints import Checkpoints
from ahl_jax.config import Config
from ahl_jax.detectors import Inputs
from ahl_jax.devices import compile_epochs, mesh_for, spread
from ahl_jax.gather import TrainingFeatures
from ahl_jax.inference import Scorer
from ahl_jax.learning import EpochLog, Learner, TrainingData
from ahl_jax.problem import make_problem, shared_bank
from ahl_jax.workdir import Workdir

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One seed's run."""

    config: Config
    normals: tuple[Path, ...]
    """The training normals, which tell whether two runs share their features."""

    features: TrainingFeatures
    workdir: Workdir
    checkpoints: Checkpoints


def run_epochs(runs: Sequence[Run], chunk: int, *, progress: bool) -> None:
    """Train runs that differ in their seeds alone, from their last common checkpoint to the end.

    Args:
        runs: the runs.
        chunk: epochs per call of the compiled program.
        progress: whether to report on each epoch.
    """
    epochs = runs[0].config.learning.epochs
    banks = shared_bank([(r.features.normals, r.features.anomalies, r.features.pseudo.maps)
                         for r in runs])  # fmt: skip
    problems = [
        make_problem(
            run.config,
            run.features.normals,
            run.features.anomalies,
            run.features.pseudo.maps,
            run.features.pseudo.generator,
            run.features.pseudo.source,
            bank=bank,
        )
        for run, bank in zip(runs, banks, strict=True)
    ]
    states, data = seeds.stack_problems(problems)
    learner = problems[0].learner
    done = max(set.intersection(*({0, *run.checkpoints.epochs()} for run in runs)))
    histories = [run.workdir.read_history(done) for run in runs]
    if done:
        restored = [
            run.checkpoints.restore_state(seeds.one_seed(states, i), done)
            for i, run in enumerate(runs)
        ]
        states = seeds.stack(restored)
    # Constant over the run, and read back by nothing but the checkpoints.
    references = [seeds.seed_data(data, i).inference_reference() for i in range(len(runs))]
    mesh = mesh_for(len(runs), data.error_weights.shape[1])
    states, data = spread(states, data, mesh)
    if progress:
        _announce(data, runs, done)
        if mesh.size > 1:
            log.info("training on %d devices: %s", mesh.size, dict(mesh.shape))
        log.info("compiling the training step, which takes a while the first time")
    step = compile_epochs(mesh)
    first = done
    while done < epochs:
        numbers = np.arange(done, min(done + chunk, epochs))
        start = time.perf_counter()
        states, logs = step(learner, states, data, jnp.asarray(numbers))
        logs = jax.device_get(logs)
        seconds = (time.perf_counter() - start) / len(numbers) / len(runs)
        done = int(numbers[-1]) + 1
        for i, (run, rows) in enumerate(zip(runs, histories, strict=True)):
            for k, number in enumerate(numbers):
                one = jax.tree.map(lambda x, i=i, k=k: x[k, i], logs)
                rows.append(_row(int(number) + 1, learner, one, seconds))
            run.workdir.write_history(rows)
            _save(run, learner, seeds.one_seed(states, i), references[i], rows)
        if progress:
            left = None if int(numbers[0]) == first else epochs - done
            log.info("%s", _progress(logs, done, epochs, seconds * len(runs), left))


def _announce(data: TrainingData, runs: Sequence[Run], done: int) -> None:
    """Say what the run will hold in memory, and where it goes on."""
    images = data.inputs[0].pooled.shape[0]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(data.inputs)) / 2**20
    log.info("the features of %d training images take %.0f MiB on the device", images, size)
    if done:
        log.info("going on after epoch %d of %d", done, runs[0].config.learning.epochs)


def _save(
    run: Run, learner: Learner, state: Any, reference: Inputs, rows: list[dict[str, Any]]
) -> None:
    scorer = Scorer(learner.functional, learner.model(state), reference)
    run.checkpoints.save(
        len(rows),
        inference=scorer.arrays(),
        state=state,
        metadata={
            "config": run.config.to_dict(),
            "epochs": len(rows),
            "n_train_normal": len(run.features.normals[0]),
            "n_seen": len(run.features.anomalies[0]),
            "seconds": round(sum(float(row["seconds"]) for row in rows), 3),
        },
    )


def _row(epoch: int, learner: Learner, epoch_log: EpochLog, seconds: float) -> dict[str, Any]:
    """A row of history.csv; what a learner does not have is left empty."""
    heads = learner.functional.kind.heads
    values: dict[str, Any] = {"epoch": epoch}
    values |= {f"support_{h}": v for h, v in zip(heads, epoch_log.support_losses, strict=True)}
    values |= {f"query_{h}": v for h, v in zip(heads, epoch_log.query_losses, strict=True)}
    values |= {f"r_{i}": v for i, v in enumerate(epoch_log.errors, 1)}
    values |= {f"w_{i}": v for i, v in enumerate(epoch_log.weights, 1)}
    values |= {"psi_loss": epoch_log.psi_loss, "seconds": round(seconds, 3)}
    return {name: "" if np.isnan(v) else str(v) for name, v in values.items()}


def _progress(logs: EpochLog, done: int, epochs: int, seconds: float, left: int | None) -> str:
    """One line: epoch, losses and spread of w of the chunk's last epoch, time left.

    ``left`` is the number of epochs to come; None after the first chunk, whose time is mostly
    compilation and tells nothing about them.
    """
    last: EpochLog = jax.tree.map(lambda x: x[-1], logs)
    parts = [f"epoch {done}/{epochs}", f"loss {last.support_losses.sum(-1).mean():.3f}"]
    if not np.isnan(last.weights).any():
        low, high = last.weights.min(), last.weights.max()
        parts += [f"query {last.query_losses.sum(-1).mean():.3f}", f"w {low:.3f} to {high:.3f}"]
    parts.append(f"{seconds:.1f} s")
    if left is not None:
        remaining = round(seconds * left)
        parts.append(f"{remaining // 60}:{remaining % 60:02d} left")
    return "  ".join(parts)
