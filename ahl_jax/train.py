"""A training run, as an outline: data -> features -> subsets -> epochs -> checkpoint -> metrics."""

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ahl_jax.backbones import load_trunk
from ahl_jax.checkpoints import Checkpoints
from ahl_jax.config import Config
from ahl_jax.evaluate import evaluate
from ahl_jax.features import Store
from ahl_jax.gather import load_split, split_digest, test_features, training_features
from ahl_jax.loop import Run, run_epochs
from ahl_jax.problem import check_names
from ahl_jax.workdir import Workdir

log = logging.getLogger(__name__)


def train(
    config: Config,
    workdir: Path | str,
    *,
    overwrite: bool = False,
    cache_dir: Path | None = None,
    checkpoint_every: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a detector, or finish the run that ``workdir`` holds, and test it.

    A run that was stopped in any way goes on from its last checkpoint when it is called again with
    the same arguments, to the same result.

    Args:
        config: the settings.
        workdir: the run's folder, made if missing; see ``ahl_jax.workdir.FILES``.
        overwrite: replace a different run in ``workdir``.
        cache_dir: the feature store's folder; see ``ahl_jax.features.default_folder``.
        checkpoint_every: epochs in one call of the compiled program, after which the host saves a
            checkpoint and reports; does not change the result.
        progress: whether to show progress on stderr.

    Returns:
        The metrics, as ``metrics.json`` has them; see ``ahl_jax.evaluate.evaluate``.

    Raises:
        UserError: if the settings do not fit the data, an image is bad, or ``workdir`` holds
            another run.
    """
    (metrics,) = _train(
        [config],
        [Path(workdir)],
        overwrite=overwrite,
        cache_dir=cache_dir,
        checkpoint_every=checkpoint_every,
        progress=progress,
    )
    return metrics


def train_seeds(
    config: Config,
    workdir: Path | str,
    seeds: Sequence[int],
    *,
    overwrite: bool = False,
    cache_dir: Path | None = None,
    checkpoint_every: int = 1,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Train one detector per seed, all of them in one program, and test each.

    Every seed gets the folder ``workdir/seed-N``, which is a run like any other. Its result is the
    one that the seed has alone up to rounding (batched products add up in another order).

    Args:
        config: the settings; its own seed is not used.
        workdir: the folder for the seeds' folders.
        seeds: distinct seeds.
        overwrite: see ``train``.
        cache_dir: see ``train``.
        checkpoint_every: see ``train``.
        progress: see ``train``.

    Returns:
        The metrics of each seed, in order.

    Raises:
        UserError: as ``train`` does; or if the seeds differ in how many images can be read.
    """
    seeds = list(dict.fromkeys(seeds))
    return _train(
        [dataclasses.replace(config, seed=seed) for seed in seeds],
        [Path(workdir) / f"seed-{seed}" for seed in seeds],
        overwrite=overwrite,
        cache_dir=cache_dir,
        checkpoint_every=checkpoint_every,
        progress=progress,
    )


def _train(
    configs: Sequence[Config],
    workdirs: Sequence[Path],
    *,
    overwrite: bool,
    cache_dir: Path | None,
    checkpoint_every: int,
    progress: bool,
) -> list[dict[str, Any]]:
    """Train runs that differ in nothing but their seeds."""
    check_names(configs[0])
    splits = [load_split(config) for config in configs]
    folders = [Workdir(path) for path in workdirs]
    for config, split, folder in zip(configs, splits, folders, strict=True):
        folder.claim(config, overwrite=overwrite)
        folder.bind_data(split_digest(split))
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(Checkpoints(folder.path)) for folder in folders]
        missing = [
            i
            for i, (config, checkpoints) in enumerate(zip(configs, opened, strict=True))
            if (checkpoints.latest_epoch() or 0) < config.learning.epochs
        ]
        if missing:
            trunk = load_trunk(configs[0].features.trunk, configs[0].features.trunk_weights)
            store = Store(cache_dir)
            runs: list[Run] = []
            for i in missing:
                config, split = configs[i], splits[i]
                same = [run.features for run in runs if run.normals == split.train_normals]
                features = training_features(
                    config, split, trunk, store, shared=same[0] if same else None, progress=progress
                )
                # Extracted now, so that a bad test image stops the run before hours of training.
                test_features(config, split, trunk, store, progress=progress)
                opened[i].save_trunk(trunk.name, trunk.params)
                runs.append(Run(config, split.train_normals, features, folders[i], opened[i]))
            run_epochs(runs, checkpoint_every, progress=progress)
        for i in set(range(len(configs))) - set(missing):
            if progress:
                log.info("%s is finished: all epochs are done", folders[i].path)
    results = []
    for folder in folders:
        metrics = evaluate(folder.path, cache_dir=cache_dir, progress=progress)
        folder.write_metrics(metrics)
        results.append(metrics)
    return results
