"""The loop over the epochs of one or more runs; between chunks, checkpoints and reports."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from ahl_jax.common.errors import UserError
from ahl_jax.common.text import counted, pace
from ahl_jax.config.settings import Config
from ahl_jax.detectors import Inputs
from ahl_jax.detectors.local_head import LocalHead
from ahl_jax.detectors.localizer import Localizer
from ahl_jax.detectors.whitening import Whitening
from ahl_jax.distributed.memory import give_back_memory
from ahl_jax.distributed.mesh import mesh_for, on_this_process
from ahl_jax.distributed.processes import arrays_of_primary, is_primary, on_primary, together
from ahl_jax.inference.scorer import Scorer
from ahl_jax.learning import seeds
from ahl_jax.learning.bank import Streamed
from ahl_jax.learning.learner import NO_BANK, EpochLog, Learner, TrainingData
from ahl_jax.learning.problem import Problem
from ahl_jax.run.claim import Run
from ahl_jax.run.options import RunOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """A run that has epochs to train."""

    run: Run
    normals: int
    """How many training normals there are."""

    anomalies: int
    """How many labelled anomalies there are."""

    whitening: Whitening | None = None
    """How its features are whitened."""

    localizer: Localizer | None = None
    """Of its heat maps; on process 0 alone."""

    local_head: LocalHead | None = None
    """What its detector's scores have beside."""


def run_epochs(trainings: Sequence[Training], problems: list[Problem], options: RunOptions) -> None:
    """Train runs that differ in their seeds alone, from their last common checkpoint to the end.

    Args:
        trainings: the runs.
        problems: their training problems; taken out of the list, so that the host's copy of their
            bank can go once the devices have it.
        options: how often to save, how to divide the images, and whether to report on each epoch.

    Raises:
        UserError: if the settings fit neither the data nor the devices.
    """
    config = trainings[0].run.config
    epochs = config.learning.planned_epochs
    with together():
        states, data = seeds.stack_problems(problems)
        mesh = _mesh(data, len(trainings), options.data_shards)
    learner = problems[0].learner
    problems.clear()
    done, histories, states = _restore(trainings, states)
    # What was drawn or clustered on one machine need not be the same to the last bit on another.
    states, drawn = arrays_of_primary((states, dataclasses.replace(data, inputs=NO_BANK)))
    data = dataclasses.replace(drawn, inputs=data.inputs)
    if options.progress:
        _announce(data, mesh, epochs, done)
        if said := _untrained_psi(config):
            log.warning("%s", said)
    states, data = seeds.spread(states, data, mesh)
    if not done:
        states = seeds.prepared(learner, states, data, mesh)
    # Constant over the run, and read back by nothing but the checkpoints.
    references = on_this_process(seeds.inference_references(data, mesh), mesh)
    chunks = _chunks(done, epochs, options.checkpoint_every)
    with together():  # No process's epochs begin while another one still compiles.
        programs = _compiled(learner, states, data, mesh, chunks)
    give_back_memory()
    if options.progress and chunks and config.learning.method != "fit":
        _announce_memory(programs[len(chunks[0])])
    # What the first call does once is not what costs.
    traced = min(1, len(chunks) - 1) if options.profile else None
    for call, numbers in enumerate(chunks):
        began = time.perf_counter()
        with _traced(trainings[0].run) if call == traced else contextlib.nullcontext():
            states, logs = programs[len(numbers)](states, data, numbers)
            logs = jax.device_get(logs)
        seconds = (time.perf_counter() - began) / len(numbers)
        readable = on_this_process(states, mesh)
        with together(before_a_stop=True):
            if is_primary():
                _check_finite(trainings, learner, readable, logs, numbers)
                rows = _rows(learner, logs, numbers, seconds / len(trainings))
                for history, new in zip(histories, rows, strict=True):
                    history += new
                _save(trainings, learner, (readable, references), histories)
        if options.progress:
            log.info("%s", _progress(logs, int(numbers[-1]) + 1, epochs, seconds))
    if isinstance(data.inputs, Streamed):
        data.inputs.release()


def _traced(run: Run) -> contextlib.AbstractContextManager[None]:
    """Leaves a profile of what happens within in the run's folder."""
    return jax.profiler.trace(run.workdir.path / "profile", create_perfetto_trace=True)


def _mesh(data: TrainingData, runs: int, data_shards: int) -> Mesh:
    """The mesh for the seeds and subsets of the data.

    Raises:
        UserError: if there is none, or the features would stream to several devices.
    """
    mesh = mesh_for(runs, data.error_weights.shape[1], data_shards)
    if mesh.size > 1 and isinstance(data.inputs, Streamed):
        raise UserError(
            "the features are over `feature_memory`, and they stream to one device only; "
            "divide them with a larger `data_shards`, or allow more"
        )
    return mesh


def _restore(
    trainings: Sequence[Training], states: Any
) -> tuple[int, list[list[dict[str, Any]]], Any]:
    """How many epochs all runs have done; on process 0 also their histories and states then."""
    runs = [training.run for training in trainings]
    done = on_primary(lambda: max(set.intersection(*({0, *r.writer.epochs()} for r in runs))))
    histories: list[list[dict[str, Any]]] = [[] for _ in runs]
    with together():
        if is_primary():
            histories = [run.workdir.read_history(done) for run in runs]
            if done:
                fresh = [seeds.one_seed(states, i) for i in range(len(runs))]
                states = seeds.stack(
                    [run.writer.restore_state(s, done) for run, s in zip(runs, fresh, strict=True)]
                )
    return done, histories, states


def _chunks(done: int, epochs: int, length: int) -> list[Int[np.ndarray, " e"]]:
    """The numbers of the epochs left, in the chunks that one call of the program trains."""
    starts = range(done, epochs, length)
    return [np.arange(first, min(first + length, epochs), dtype=np.int32) for first in starts]


def _compiled(
    learner: Learner, states: Any, data: TrainingData, mesh: Mesh, chunks: Sequence[Any]
) -> dict[int, jax.stages.Compiled]:
    """A program for each length of a chunk: two at most, as the last epochs may be fewer."""
    step = seeds.compile_epochs(mesh)
    return {
        length: step.lower(learner, states, data, numbers).compile()
        for length, numbers in {len(numbers): numbers for numbers in chunks}.items()
    }


def _announce(data: TrainingData, mesh: Mesh, epochs: int, done: int) -> None:
    """Say where the features will be, where the run goes on, and on which devices."""
    images, mib = data.inputs.images, data.inputs.nbytes / 2**20
    if isinstance(data.inputs, Streamed):
        log.info("the features of %d training images, %.0f MiB, are streamed", images, mib)
    else:
        mib /= mesh.shape["data"]
        log.info("the features of %d training images take %.0f MiB on each device", images, mib)
    if done:
        log.info("going on after epoch %d of %d", done, epochs)
    if mesh.size > 1:
        log.info("training on %d devices: %s", mesh.size, dict(mesh.shape))
    log.info("compiling, which takes a while the first time")


def _untrained_psi(config: Config) -> str | None:
    """A sentence where training ends before psi has the history that it predicts from."""
    learning, importance = config.learning, config.importance
    if learning.method != "ahl" or importance.importance != "psi":
        return None
    if learning.epochs > importance.history:
        return None
    return (
        "psi, which predicts the importance scores of the base models, takes "
        f"{counted(importance.history, 'past epoch')}, so in {counted(learning.epochs, 'epoch')} "
        "they all stay 1/T; give more `epochs`, or a smaller `history`"
    )


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


def _check_finite(
    trainings: Sequence[Training],
    learner: Learner,
    states: Any,
    logs: EpochLog,
    numbers: Int[np.ndarray, " e"],
) -> None:
    """Find out whether training has diverged, before anything of it is kept.

    Args:
        trainings: the runs.
        learner: how they train.
        states: theirs after the epochs, with a leading seed axis.
        logs: of the epochs; leading axes epoch and seed.
        numbers: of the epochs, from 0.

    Raises:
        UserError: if a detector has parameters that are no numbers.
    """
    for i, training in enumerate(trainings):
        params = jax.tree.leaves(learner.model(seeds.one_seed(states, i)).params)
        if all(np.isfinite(leaf).all() for leaf in params):
            continue
        # The loss is no number from the epoch on where it happened.
        lost = ~np.isfinite(logs.support_losses[:, i]).all(-1)
        epoch = int(numbers[np.argmax(lost) if lost.any() else -1]) + 1
        rates = "`lr` or `lr_base`" if training.run.config.learning.method == "ahl" else "`lr_base`"
        raise UserError(
            f"the training of {training.run.workdir.path} diverged in epoch {epoch}: parameters "
            f"are no numbers any more; start over with a smaller {rates} and `overwrite=True`"
        )


def _save(
    trainings: Sequence[Training],
    learner: Learner,
    on_host: tuple[Any, Inputs],
    histories: Sequence[list[dict[str, Any]]],
) -> None:
    """Write every run's history, and its checkpoint after the last epoch of it.

    Args:
        trainings: the runs.
        learner: how they train.
        on_host: their states and references, with a leading seed axis.
        histories: their histories.
    """
    for i, (training, rows) in enumerate(zip(trainings, histories, strict=True)):
        run = training.run
        run.workdir.write_history(rows)
        state, reference = seeds.one_seed(on_host, i)
        model, whitening = learner.model(state), training.whitening
        localizer, local_head = training.localizer, training.local_head
        scorer = Scorer(learner.functional, model, reference, whitening, localizer, local_head)
        run.writer.save(
            len(rows),
            inference=scorer.arrays(),
            state=state,
            metadata={
                "config": run.config.to_dict(),
                "epochs": len(rows),
                "n_train_normal": training.normals,
                "n_seen": training.anomalies,
                "seconds": round(sum(float(row["seconds"]) for row in rows), 3),
            },
        )


def _rows(
    learner: Learner, logs: EpochLog, numbers: Int[np.ndarray, " e"], seconds: float
) -> list[list[dict[str, Any]]]:
    """The new rows of each run's history.

    Args:
        learner: how they train.
        logs: leading axes epoch and seed.
        numbers: of the epochs, from 0.
        seconds: of an epoch of one run.
    """

    def row(k: int, i: int) -> dict[str, Any]:
        return _row(int(numbers[k]) + 1, learner, jax.tree.map(lambda x: x[k, i], logs), seconds)

    epochs, runs = logs.weights.shape[:2]
    return [[row(k, i) for k in range(epochs)] for i in range(runs)]


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
