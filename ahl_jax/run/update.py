"""The same detector with more images: a new run on those of another one and on new ones."""

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

from ahl_jax.common.errors import UserError
from ahl_jax.common.remote import any_path, resolved
from ahl_jax.data.copies import fetched
from ahl_jax.data.folder import anomalies_below, check_good, images_below
from ahl_jax.data.splits import extended
from ahl_jax.data.types import Sample
from ahl_jax.inference.threshold import read_calibration
from ahl_jax.run.again import find_split, moved, tell_places
from ahl_jax.run.options import run_options
from ahl_jax.run.train import train_runs
from ahl_jax.storage.workdir import Workdir, located

log = logging.getLogger(__name__)


def update(
    run: Path | str,
    workdir: Path | str | None = None,
    *,
    defects: Path | str | None = None,
    good: Path | str | None = None,
    data: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train a run's detector anew, with labelled anomalies or normals that it has not seen.

    The images of ``run`` keep their parts, and its settings stay. The store has the features of all
    but the new images, unless stage one trains the trunk. ``run`` is not changed, and the new run
    does not need it.

    Args:
        run: the folder of the run with the images so far.
        workdir: the new run's folder, made if missing; by default beside ``run``, with -2 behind
            its name, or the number after the one that it ends in.
        defects: a folder with labelled anomalies; the folders in it are their classes.
        good: a folder with normals, some of which are held out as the settings say.
        data: where the data of ``run`` is now, if not where it was in training.
        options: the fields of ``RunOptions``.

    Returns:
        The metrics, as ``ahl_jax.train`` does.

    Raises:
        UserError: if there are no new images, the folder of the run holds none, or an image is
            labelled in two ways; or as ``ahl_jax.train`` does.
    """
    how = run_options(options)
    workdir = updated_name(run) if workdir is None else any_path(workdir)
    old = Workdir(run)
    config = old.config()
    if resolved(run) == resolved(workdir):
        raise UserError(f"{run} is the run to update; give another folder as `workdir`")
    if config.start:
        raise UserError(f"{run} is fine-tuned; fine-tune its first run anew, with all images")
    if data is None:
        tell_places(old, config)
    if config.features.trunk_weights:
        log.info("reading the weights that %s names, %s", run, config.features.trunk_weights)
    config = located(moved(config, data))
    found = find_split(old, config)
    if not (found.same or found.listed):
        raise UserError(
            f"the images changed since {run} was trained, and it has no list of them; train again"
        )
    if found.gone:
        log.warning(
            "the images are not the ones that %s was trained with: %s", run, found.in_words()
        )
    anomalies = [
        Sample(path, name)
        for folder in _folder(defects)
        for name, paths in anomalies_below(folder).items()
        for path in paths
    ]
    normals = []
    for folder in _folder(good):
        check_good(folder)
        normals += images_below(folder)
    if anomalies and how.progress:
        kinds = Counter(sample.anomaly_class for sample in anomalies)
        log.info("defects to train on: %s", ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
    split = extended(found.split, anomalies, normals, config.held_out_once)
    metrics = train_runs([config], [workdir], how, [split])
    before = read_calibration(old.path / "checkpoint")
    if before and before.given and how.progress:
        log.warning(
            "the thresholds of %s were set by photographs of good parts; give them once more, with "
            "`ahl threshold %s --good`", run, workdir,
        )  # fmt: skip
    return metrics[0] if metrics else {}


def updated_name(run: Path | str) -> Path:
    """The folder beside a run for its update: RUN-2 for RUN, and RUN-3 for that."""
    folder = any_path(run)
    folder = folder if folder.name else resolved(folder)
    ended = re.search(r"-(\d{1,9})$", folder.name)
    start, number = (folder.name[: ended.start()], ended[1]) if ended else (folder.name, 1)
    return folder.with_name(f"{start}-{int(number) + 1}")


def _folder(given: Path | str | None) -> list[Path]:
    """The folder, if one is given.

    Raises:
        UserError: if it is none.
    """
    if given is None:
        return []
    folder = fetched(given)
    if not folder.is_dir():
        raise UserError(f"{given} is no folder; name one with the new images")
    return [folder.absolute()]
