"""What tests read of finished runs."""

import csv
import dataclasses
from pathlib import Path

import jax
import numpy as np

from ahl_jax import Config
from ahl_jax.storage.checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    config: Config
    workdir: Path
    metrics: dict


def inference(workdir: Path, epoch: int | None = None) -> list[np.ndarray]:
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return jax.tree.leaves(checkpoints.restore_inference(epoch)[0])


def history(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.pop("seconds")
    return rows
