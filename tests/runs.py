"""What tests read of finished runs, and how they stop others."""

import contextlib
import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

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


@contextlib.contextmanager
def stopped_in_epoch(number: int, run: str = "") -> Iterator[None]:
    """Ctrl-C before the checkpoint of that epoch, which is in the history by then.

    Args:
        number: of the epoch, from 1.
        run: the folder's name, where there are several; by default whichever comes first.
    """
    save = Checkpoints.save

    def stop(self: Checkpoints, epoch: int, **items: Any) -> None:
        if epoch == number and run in ("", self.folder.parent.name):
            raise KeyboardInterrupt
        save(self, epoch, **items)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", stop)
        yield
