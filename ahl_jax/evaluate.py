"""Test metrics of a finished or stopped run, from its folder and the data alone."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from ahl_jax.backbones import trunk_from_params
from ahl_jax.checkpoints import Checkpoints
from ahl_jax.config import Config
from ahl_jax.features import Store
from ahl_jax.gather import load_split, split_digest, test_features
from ahl_jax.inference import scorer_from_arrays
from ahl_jax.metrics import image_metrics
from ahl_jax.workdir import Workdir

log = logging.getLogger(__name__)


def evaluate(
    workdir: Path | str,
    *,
    data: str | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Score the test images with the newest checkpoint.

    Args:
        workdir: the folder that ``train`` was given.
        data: where the data is now, if not where it was in training.
        cache_dir: the feature store's folder; see ``ahl_jax.features.default_folder``.
        progress: whether to show progress on stderr.

    Returns:
        What ``metrics.json`` holds: auc_roc, auc_pr, per_class, n_train_normal, n_seen, n_test,
        setting, seed, epochs, and the seconds that the epochs took.

    Raises:
        UserError: if the folder holds no checkpoint, or the data cannot be read.
    """
    run = Workdir(Path(workdir))
    run.config()  # Says what is wrong with a folder that holds no run.
    with Checkpoints(run.path, read_only=True) as checkpoints:
        trunk = trunk_from_params(*checkpoints.load_trunk())
        arrays, metadata = checkpoints.restore_inference()
    config = Config.from_dict(metadata["config"])
    if data is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, data=data))
    split = load_split(config)
    if run.data_digest() != split_digest(split):
        log.warning(
            "the images are not the ones that %s was trained and tested with; "
            "the test may hold images that training has seen",
            run.path,
        )
    scorer = scorer_from_arrays(config, arrays)
    test = test_features(config, split, trunk, Store(cache_dir), progress=progress)
    scores = scorer.score(test.maps)
    return image_metrics(scores, [sample.anomaly_class for sample in test.samples]) | {
        "n_train_normal": metadata["n_train_normal"],
        "n_seen": metadata["n_seen"],
        "n_test": len(test.samples),
        "setting": config.data.setting,
        "seed": config.seed,
        "epochs": metadata["epochs"],
        "seconds": metadata["seconds"],
    }
