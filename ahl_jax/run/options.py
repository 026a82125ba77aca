"""How runs are carried out: nothing here changes what they compute."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ahl_jax.common.errors import UserError
from ahl_jax.config.checks import ANYWHERE, Above, AtLeast, check_values


@dataclass(frozen=True)
class RunOptions:
    """How runs are carried out, whatever they compute."""

    overwrite: bool = False
    """Replace a different run that the folder holds."""

    cache_dir: Annotated[Path | None, ANYWHERE] = None
    """The folder that keeps features for later runs; by default $AHL_CACHE, else
    ~/.cache/ahl_jax."""

    checkpoint_every: Annotated[int, AtLeast(1)] = 1
    """Epochs between two checkpoints; the compiled program runs that many in one call."""

    data_shards: Annotated[int, AtLeast(1)] = 1
    """Parts that the images are divided into, each on devices of its own; they share the images of
    every batch. The seeds and subsets take the other devices."""

    feature_memory: Annotated[float | None, Above(0)] = None
    """GiB that the features of the training images may take in memory and on each device. Features
    beyond that stay on disk and are streamed, which is slower and gives the same result. By default
    40 percent of the machine's memory, and 60 percent of an accelerator's."""

    tensorboard: bool = False
    """Write event files for TensorBoard to RUN/tensorboard too."""

    profile: bool = False
    """Write a trace of the second call of the compiled program to RUN/profile (of several seeds, to
    the first one's), for TensorBoard with xprof, or for ui.perfetto.dev."""

    progress: Annotated[bool, tyro.conf.Suppress] = True
    """Show progress on stderr."""

    def __post_init__(self) -> None:
        check_values(self)


def run_options(given: dict[str, Any]) -> RunOptions:
    """The options that a caller names.

    Raises:
        UserError: if there is no such option, or a value is out of range.
    """
    known = [field.name for field in dataclasses.fields(RunOptions)]
    for name in given:
        if name not in known:
            raise UserError(f"there is no option `{name}`; choose from {', '.join(known)}")
    return RunOptions(**given)
