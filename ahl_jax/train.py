"""A training run, as an outline: data -> features -> subsets -> epochs -> checkpoint -> metrics."""

import logging
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ahl_jax.backbones import load_trunk
from ahl_jax.checkpoints import Checkpoints
from ahl_jax.config import Config
from ahl_jax.evaluate import evaluate
from ahl_jax.features import Store
from ahl_jax.gather import TrainingFeatures, load_split, split_digest, test_features
from ahl_jax.gather import training_features as gather_training
from ahl_jax.inference import Scorer
from ahl_jax.learning import EpochLog
from ahl_jax.problem import Problem, check_names, make_problem
from ahl_jax.workdir import Workdir

log = logging.getLogger(__name__)


def train(
    config: Config,
    workdir: Path | str,
    *,
    overwrite: bool = False,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a detector, or finish the run that ``workdir`` holds, and test it.

    Every epoch ends with a checkpoint. A run that was stopped in any way goes on from its last one
    when it is called again with the same arguments, to the same result.

    Args:
        config: the settings.
        workdir: the run's folder, made if missing; see ``ahl_jax.workdir.FILES``.
        overwrite: replace a different run in ``workdir``.
        cache_dir: the feature store's folder; see ``ahl_jax.features.default_folder``.
        progress: whether to show progress on stderr.

    Returns:
        The metrics, as ``metrics.json`` has them; see ``ahl_jax.evaluate.evaluate``.

    Raises:
        UserError: if the settings do not fit the data, an image is bad, or ``workdir`` holds
            another run.
    """
    check_names(config)
    split = load_split(config)
    run = Workdir(Path(workdir))
    run.claim(config, overwrite=overwrite)
    run.bind_data(split_digest(split))
    with Checkpoints(run.path) as checkpoints:
        done = checkpoints.latest_epoch() or 0
        if done < config.learning.epochs:
            trunk = load_trunk(config.features.trunk, config.features.trunk_weights)
            store = Store(cache_dir)
            features = gather_training(config, split, trunk, store, progress=progress)
            # Extracted now, so that a bad test image stops the run before hours of training.
            test_features(config, split, trunk, store, progress=progress)
            checkpoints.save_trunk(trunk.name, trunk.params)
            _run_epochs(config, features, run, checkpoints, done, progress=progress)
        elif progress:
            log.info("%s is finished: all %d epochs are done", run.path, done)
    metrics = evaluate(run.path, cache_dir=cache_dir, progress=progress)
    run.write_metrics(metrics)
    return metrics


def _run_epochs(
    config: Config,
    features: TrainingFeatures,
    run: Workdir,
    checkpoints: Checkpoints,
    done: int,
    *,
    progress: bool,
) -> None:
    """Train from epoch ``done`` on; each ends with a row of history.csv and a checkpoint."""
    problem = make_problem(
        config,
        features.normals,
        features.anomalies,
        features.pseudo.maps,
        features.pseudo.generator,
        features.pseudo.source,
    )
    learner, data = problem.learner, problem.data
    state = learner.init(problem.model, data, problem.key)
    rows = run.read_history(done)
    if done:
        state = checkpoints.restore_state(state)
        if progress:
            log.info("going on after epoch %d of %d", done, config.learning.epochs)
    epoch_step = jax.jit(learner.epoch, donate_argnums=0)
    # Constant over the run, and read back by nothing but the checkpoint.
    reference = data.inference_reference()
    for epoch in range(done, config.learning.epochs):
        start = time.perf_counter()
        state, epoch_log = epoch_step(state, data, jnp.asarray(epoch))
        epoch_log = jax.device_get(epoch_log)
        rows.append(_row(epoch + 1, problem, epoch_log, time.perf_counter() - start))
        run.write_history(rows)
        scorer = Scorer(learner.functional, learner.model(state), reference)
        checkpoints.save(
            epoch + 1,
            inference=scorer.arrays(),
            state=state,
            metadata={
                "config": config.to_dict(),
                "epochs": epoch + 1,
                "n_train_normal": len(features.normals[0]),
                "n_seen": len(features.anomalies[0]),
                "seconds": round(sum(float(row["seconds"]) for row in rows), 3),
            },
        )
        if progress:
            log.info("%s", _progress(epoch_log, rows, config.learning.epochs))


def _row(epoch: int, problem: Problem, epoch_log: EpochLog, seconds: float) -> dict[str, Any]:
    """A row of history.csv; what a learner does not have is left empty."""
    heads = problem.learner.functional.kind.heads
    values: dict[str, Any] = {"epoch": epoch}
    values |= {f"support_{h}": v for h, v in zip(heads, epoch_log.support_losses, strict=True)}
    values |= {f"query_{h}": v for h, v in zip(heads, epoch_log.query_losses, strict=True)}
    values |= {f"r_{i}": v for i, v in enumerate(epoch_log.errors, 1)}
    values |= {f"w_{i}": v for i, v in enumerate(epoch_log.weights, 1)}
    values |= {"psi_loss": epoch_log.psi_loss, "seconds": round(seconds, 3)}
    return {name: "" if np.isnan(v) else str(v) for name, v in values.items()}


def _progress(epoch_log: EpochLog, rows: list[dict[str, Any]], epochs: int) -> str:
    """One line: epoch, losses, spread of w, time left."""
    done = len(rows)
    parts = [f"epoch {done}/{epochs}", f"loss {epoch_log.support_losses.sum():.3f}"]
    if not np.isnan(epoch_log.weights).any():
        low, high = epoch_log.weights.min(), epoch_log.weights.max()
        parts += [f"query {epoch_log.query_losses.sum():.3f}", f"w {low:.3f} to {high:.3f}"]
    # The first epoch compiles, so the last one tells more about those to come.
    seconds = float(rows[-1]["seconds"])
    left = round(seconds * (epochs - done))
    parts += [f"{seconds:.1f} s", f"{left // 60}:{left % 60:02d} left"]
    return "  ".join(parts)
