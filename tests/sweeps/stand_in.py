"""A stand-in for training: runs with made-up figures."""

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ahl_jax import Config
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.open import load_dataset
from ahl_jax.data.splits import make_split
from ahl_jax.features.split import split_digest
from ahl_jax.storage.workdir import Workdir


class StandIn:
    """Takes the place of ``train_seeds``; its figures depend on the settings alone."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        """The folders of the runs that were not there, without that of the sweep."""

        self.stop_in: str | None = None
        """Part of the path of a run where Ctrl-C is pressed."""

    def __call__(
        self, config: Config, workdir: Path, seeds: Sequence[int], **options: Any
    ) -> list[dict[str, Any]]:
        configs = [dataclasses.replace(config, seed=seed) for seed in seeds]
        folders = [Path(workdir) / f"seed-{seed}" for seed in seeds]
        overwrite = options["overwrite"]
        return [
            self.train(*one, config.data, overwrite) for one in zip(configs, folders, strict=True)
        ]

    def train(
        self, config: Config, folder: Path, data: DataConfig, overwrite: bool = False
    ) -> dict[str, Any]:
        run = Workdir(folder)
        run.claim(config, overwrite=overwrite)
        run.bind_data(split_digest(make_split(load_dataset(data), data, config.seed)))
        if metrics := run.metrics():
            return metrics
        if self.stop_in and self.stop_in in str(folder):
            raise KeyboardInterrupt
        self.trained.append(f"{folder.parent.name}/{folder.name}")
        epochs = config.learning.planned_epochs
        run.write_history([{"epoch": epoch, "seconds": 1.5} for epoch in range(epochs)])
        chance = random.Random(json.dumps(config.to_dict()) + folder.parent.parent.name)
        metrics = {"seed": config.seed, "epochs": epochs, "seconds": 1.5 * epochs}
        metrics |= {name: chance.uniform(0.5, 1) for name in ("auc_roc", "auc_pr")}
        run.write_metrics(metrics)
        return metrics
