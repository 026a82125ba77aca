"""`ahl threshold`."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ahl_jax.common.errors import UserError
from ahl_jax.config.checks import ANYWHERE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Threshold:
    """List thresholds of a run by what they promise, or set them by new photographs of good parts.

    Where the run has a test, it says how many false alarms each gives there and how many anomalies
    it finds. Nothing is trained.
    """

    workdir: Annotated[Path, ANYWHERE, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder that was given to the training."""

    good: Annotated[tuple[Path, ...], ANYWHERE] = ()
    """Image files, or folders of them, of good parts that training has not seen. They replace what
    the thresholds were set by."""

    data: str | None = None
    """Where the data of the test is now, if it moved since the training."""

    cache_dir: Annotated[Path | None, ANYWHERE] = None
    """The folder that keeps features; by default $AHL_CACHE, else ~/.cache/ahl_jax."""


def run_threshold(command: Threshold) -> None:
    """Run ``ahl threshold``.

    Raises:
        UserError: as ``recalibrate`` does, or if the run has no threshold.
    """
    import numpy as np

    from ahl_jax.cli.sentences import choices_in_words
    from ahl_jax.inference.predictor import load
    from ahl_jax.inference.threshold import choices_of
    from ahl_jax.run.calibrate import recalibrate
    from ahl_jax.run.evaluate import load_test

    run, good = command.workdir, command.good
    predictor = recalibrate(run, good) if good else load(run)
    calibration = predictor.calibrated()
    predictor.cut()  # It says where a rate is out of reach.
    scores = normal = None
    try:
        test = load_test(run, data=command.data, cache_dir=command.cache_dir)
        if test.classes:
            scores = test.predictor.scorer.score(test.test.maps)
            normal = np.array([name is None for name in test.classes])
    except UserError as error:
        log.warning("no test: %s", error)
    for line in choices_in_words(choices_of(calibration, scores, normal), calibration, normal):
        print(line)
