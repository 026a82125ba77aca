"""A finished run as the start of another one: its trunk and its detector."""

from dataclasses import dataclass
from pathlib import Path

from ahl_jax.backbones import Trunk, trunk_from_params
from ahl_jax.checkpoints import Checkpoints
from ahl_jax.config import Config
from ahl_jax.detectors import Model
from ahl_jax.errors import UserError
from ahl_jax.host_arrays import digest
from ahl_jax.inference import scorer_from_arrays
from ahl_jax.workdir import Workdir


@dataclass(frozen=True)
class Source:
    """What fine-tuning takes from a run."""

    config: Config
    trunk: Trunk
    """As stage one left it, where the run had one."""

    model: Model
    """The detector: of AHL the unified one, of an ensemble all of them."""

    digest: str
    """SHA-256 of the arrays of both."""


def load_source(run: Path) -> Source:
    """Read a finished run's trunk and detector from its newest checkpoint.

    Args:
        run: the run's folder.

    Raises:
        UserError: if it holds no run, or one that is not finished or is damaged.
    """
    Workdir(run).config()  # Says what is wrong with a folder that holds no run.
    with Checkpoints(run, read_only=True) as checkpoints:
        name, params = checkpoints.load_trunk()
        arrays, metadata = checkpoints.restore_inference()
    config = Config.from_dict(metadata["config"])
    done, epochs = metadata["epochs"], config.learning.planned_epochs
    if done < epochs:
        raise UserError(
            f"the run in {run} is not finished (epoch {done} of {epochs}); finish it first, by the "
            "command that started it"
        )
    return Source(
        config,
        trunk_from_params(name, params),
        scorer_from_arrays(config, arrays).model,
        digest({"trunk": params, "model": arrays["model"]}),
    )
