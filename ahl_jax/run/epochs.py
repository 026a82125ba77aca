"""The loop over the epochs of one or more runs; between chunks, checkpoints and reports."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ahl_jax.common.errors import UserError
from ahl_jax.common.text import pace
from ahl_jax.config.settings import Config
from ahl_jax.detectors import Inputs
from ahl_jax.detectors.whitening import Whitening
from ahl_jax.distributed.memory import give_back_memory
from ahl_jax.distributed.mesh import mesh_for, on_this_process
from ahl_jax.distributed.processes import arrays_of_primary, is_primary, on_primary, together
from ahl_jax.inference.scorer import Scorer
from ahl_jax.learning import seeds
from ahl_jax.learning.bank import Streamed
from ahl_jax.learning.learner import NO_BANK, EpochLog, Learner, TrainingData
from ahl_jax.learning.problem import Problem
from ahl_jax.learning.seeds import spread
from ahl_jax.storage.checkpoints import Checkpoints
from ahl_jax.storage.workdir import Workdir

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One seed's run."""

    config: Config
    normals: int
    """How many training normals there are."""

    anomalies: int
    """How many labelled anomalies there are."""

    workdir: Workdir
    checkpoints: Checkpoints | None
    """Process 0 alone has them."""

    whitening: Whitening | None = None
    """What its features are whitened with."""

    @property
    def writer(self) -> Checkpoints:
        """The checkpoints, on process 0."""
        assert self.checkpoints is not None
        return self.checkpoints


def run_epochs(
    runs: Sequence[Run],
    problems: list[Problem],
    chunk: int,
    *,
    data_shards: int = 1,
    progress: bool,
) -> None:
    """Train runs that differ in their seeds alone, from their last common checkpoint to the end.

    Args:
        runs: the runs.
        problems: their training problems; taken out of the list, so that the host's copy of their
            bank can go once the devices have it.
        chunk: epochs per call of the compiled program.
        data_shards: number of parts of the images, see ``ahl_jax.distributed.mesh.mesh_for``.
        progress: whether to report on each epoch.

    Raises:
        UserError: if the settings fit neither the data nor the devices.
    """
    epochs = runs[0].config.learning.planned_epochs
    with together():
        states, data = seeds.stack_problems(problems)
        mesh = mesh_for(len(runs), data.error_weights.shape[1], data_shards)
        if mesh.size > 1 and isinstance(data.inputs, Streamed):
            raise UserError(
                "the features are over --feature-memory, and they stream to one device only; "
                "divide them with a larger --data-shards, or allow more"
            )
    learner = problems[0].learner
    problems.clear()
    done = on_primary(lambda: max(set.intersection(*({0, *r.writer.epochs()} for r in runs))))
    histories: list[list[dict[str, Any]]] = [[] for _ in runs]
    with together():
        if is_primary():
            histories = [run.workdir.read_history(done) for run in runs]
            if done:
                states = _restored(runs, states, done)
    # What was drawn or clustered on one machine need not be the same to the last bit on another.
    states, drawn = arrays_of_primary((states, dataclasses.replace(data, inputs=NO_BANK)))
    data = dataclasses.replace(drawn, inputs=data.inputs)
    if progress:
        _announce(data, data_shards, runs, done)
        if mesh.size > 1:
            log.info("training on %d devices: %s", mesh.size, dict(mesh.shape))
        log.info("compiling, which takes a while the first time")
    states, data = spread(states, data, mesh)
    if not done:
        states = seeds.calibrated(learner, states, data, runs[0].normals, mesh)
    # Constant over the run, and read back by nothing but the checkpoints.
    references = on_this_process(seeds.inference_references(data, mesh), mesh)
    step = seeds.compile_epochs(mesh)
    starts = range(done, epochs, chunk)
    chunks = [np.arange(first, min(first + chunk, epochs), dtype=np.int32) for first in starts]
    # Two at most, as the last epochs may be fewer than a chunk.
    with together():  # No process's epochs begin while another one still compiles.
        programs = {
            length: step.lower(learner, states, data, numbers).compile()
            for length, numbers in {len(numbers): numbers for numbers in chunks}.items()
        }
    give_back_memory()
    if progress and chunks:
        _announce_memory(programs[len(chunks[0])])
    for numbers in chunks:
        start = time.perf_counter()
        states, logs = programs[len(numbers)](states, data, numbers)
        logs = jax.device_get(logs)
        seconds = (time.perf_counter() - start) / len(numbers) / len(runs)
        done = int(numbers[-1]) + 1
        readable = on_this_process(states, mesh)
        with together():
            if is_primary():
                for i, (run, rows) in enumerate(zip(runs, histories, strict=True)):
                    for k, number in enumerate(numbers):
                        one = jax.tree.map(lambda x, i=i, k=k: x[k, i], logs)
                        rows.append(_row(int(number) + 1, learner, one, seconds))
                    run.workdir.write_history(rows)
                    state, reference = seeds.one_seed((readable, references), i)
                    _save(run, learner, state, reference, rows)
        if progress:
            log.info("%s", _progress(logs, done, epochs, seconds * len(runs)))


def _restored(runs: Sequence[Run], states: Any, done: int) -> Any:
    """The states that all runs had after ``done`` epochs."""
    return seeds.stack(
        [run.writer.restore_state(seeds.one_seed(states, i), done) for i, run in enumerate(runs)]
    )


def _announce(data: TrainingData, data_shards: int, runs: Sequence[Run], done: int) -> None:
    """Say where the features will be, and where the run goes on."""
    images, mib = data.inputs.images, data.inputs.nbytes / 2**20
    if isinstance(data.inputs, Streamed):
        log.info("the features of %d training images, %.0f MiB, are streamed", images, mib)
    else:
        mib /= data_shards
        log.info("the features of %d training images take %.0f MiB on each device", images, mib)
    if done:
        log.info("going on after epoch %d of %d", done, runs[0].config.learning.planned_epochs)


def _announce_memory(compiled: jax.stages.Compiled) -> None:
    """Say what the training will take, before it does."""
    needs = compiled.memory_analysis()
    if needs is not None:
        arguments, more = needs.argument_size_in_bytes, needs.temp_size_in_bytes
        arguments += needs.output_size_in_bytes - needs.alias_size_in_bytes
        log.info(
            "training takes %.0f MiB on each device: %.0f MiB for features and state, %.0f MiB "
            "for the work on batches",
            *(size / 2**20 for size in (arguments + more, arguments, more)),
        )


def _save(
    run: Run, learner: Learner, state: Any, reference: Inputs, rows: list[dict[str, Any]]
) -> None:
    scorer = Scorer(learner.functional, learner.model(state), reference, run.whitening)
    run.writer.save(
        len(rows),
        inference=scorer.arrays(),
        state=state,
        metadata={
            "config": run.config.to_dict(),
            "epochs": len(rows),
            "n_train_normal": run.normals,
            "n_seen": run.anomalies,
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


def _progress(logs: EpochLog, done: int, epochs: int, seconds: float) -> str:
    """One line: epoch, losses and spread of w of the chunk's last epoch, time left."""
    last: EpochLog = jax.tree.map(lambda x: x[-1], logs)
    parts = [f"epoch {done}/{epochs}"]
    if not np.isnan(last.support_losses).any():
        parts.append(f"loss {last.support_losses.sum(-1).mean():.3f}")
    if not np.isnan(last.weights).any():
        low, high = last.weights.min(), last.weights.max()
        parts += [f"query {last.query_losses.sum(-1).mean():.3f}", f"w {low:.3f} to {high:.3f}"]
    return "  ".join([*parts, pace(seconds, epochs - done)])
