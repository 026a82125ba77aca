"""`ahl report` and `ahl compare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import ahl_jax
from ahl_jax.config.checks import ANYWHERE


@dataclass(frozen=True)
class Report:
    """Write a run's results as one HTML file that opens without a network."""

    workdir: Annotated[Path, ANYWHERE, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder that was given to the training."""

    out: Annotated[Path | None, ANYWHERE] = None
    """The file; by default RUN/report.html."""

    fpr: float | None = None
    """The rate of false positives among normal images that the threshold is set for; 0.01 by
    default."""

    threshold: float | None = None
    """The score above which an image is an anomaly, in the place of `fpr`."""

    data: str | None = None
    """Where the data is now, if it moved since the training."""

    cache_dir: Annotated[Path | None, ANYWHERE] = None
    """The folder that keeps features; by default $AHL_CACHE, else ~/.cache/ahl_jax."""


@dataclass(frozen=True)
class Compare:
    """Write several runs side by side as one HTML file that opens without a network."""

    runs: Annotated[
        tuple[Path, ...], ANYWHERE, tyro.conf.Positional, tyro.conf.arg(metavar="RUN RUN ...")
    ]
    """Their folders. Differences are to the first one."""

    out: Annotated[Path, ANYWHERE] = Path("compare.html")
    """The file."""

    fpr: float | None = None
    """The rate of false positives among normal images that the thresholds are set for; 0.01 by
    default."""

    data: str | None = None
    """Where the data of all these runs is now, if it moved since the training."""

    cache_dir: Annotated[Path | None, ANYWHERE] = None
    """The folder that keeps features; by default $AHL_CACHE, else ~/.cache/ahl_jax."""


def run(command: Report | Compare) -> None:
    """Run either.

    Raises:
        UserError: as ``report`` and ``compare`` do.
    """
    fpr, data, cache_dir = command.fpr, command.data, command.cache_dir
    if isinstance(command, Report):
        out = ahl_jax.report(
            command.workdir,
            command.out,
            fpr=fpr,
            threshold=command.threshold,
            data=data,
            cache_dir=cache_dir,
        )
    else:
        out = ahl_jax.compare(command.runs, command.out, fpr=fpr, data=data, cache_dir=cache_dir)
    print(f"The {'report' if isinstance(command, Report) else 'comparison'} is {out}.")
