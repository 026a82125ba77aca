"""The finished run that a fine-tuning starts from: its trunk and its detector."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from ahl_jax.backbones import Trunk
from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import Config
from ahl_jax.detectors import Model
from ahl_jax.distributed.host_arrays import digest
from ahl_jax.inference.predictor import load


@dataclass(frozen=True)
class Start:
    """A run's part in fine-tuning."""

    config: Config
    trunk: Trunk
    """As stage one left it, where the run had one."""

    model: Model
    """The detector: of AHL the unified one, of an ensemble all of them."""

    digest: str
    """SHA-256 of the arrays of both."""


def load_start(run: Path) -> Start:
    """Read a finished run's trunk and detector from its newest checkpoint.

    Args:
        run: the run's folder.

    Raises:
        UserError: if it holds no run, or one that is not finished or is damaged.
    """
    predictor = load(run)
    done, epochs = predictor.metadata["epochs"], predictor.config.learning.planned_epochs
    if done < epochs:
        raise UserError(
            f"the run in {run} is not finished (epoch {done} of {epochs}); finish it first, by the "
            "command that started it"
        )
    model = predictor.scorer.model
    arrays = jax.tree.map(np.asarray, {"trunk": predictor.trunk.params, "model": model})
    return Start(predictor.config, predictor.trunk, model, digest(arrays))
