"""``ahl predict``: scores, decisions and heat maps of image files, written as they come."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ahl_jax.common.errors import BadImageError, IncompleteError, UserError
from ahl_jax.common.files import alone, holder, writing
from ahl_jax.common.progress import Progress
from ahl_jax.common.text import counted
from ahl_jax.data.folder import images_below
from ahl_jax.data.images import SUFFIXES, image_digest, iter_batches, without_skipping
from ahl_jax.data.records import ImageSource
from ahl_jax.inference.predictor import Predictor, load
from ahl_jax.inference.results import NamedImage, Results
from ahl_jax.inference.threshold import FPR, check_fpr

log = logging.getLogger(__name__)

_POLL = 1.0
"""Seconds between two looks at a watched folder."""

_Stamp = tuple[int, int] | None
"""A file's size and when it was changed; None where there is none."""


@dataclass(frozen=True)
class Predict:
    """Score images with a trained detector; write scores.csv and a heat map for each.

    The same command goes on with one that was stopped: images that scores.csv has, by path and
    content, are left out.
    """

    workdir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder that was given to the training."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """Image files, and folders with images at any depth."""

    out: Path
    """The folder for scores.csv and heat_maps/."""

    fpr: float = FPR
    """The rate of false positives among normal images that the threshold is set for."""

    heat_maps: bool = True
    """Whether to draw where the anomaly is, beside each image."""

    json: bool = False
    """Print each result as a line of JSON on stdout, too."""

    watch: bool = False
    """Go on with the images that come into the folders, until stopped."""

    overwrite: bool = False
    """Replace the scores of another detector or threshold that `out` holds."""


def run(command: Predict) -> None:
    """Run ``ahl predict``.

    Raises:
        UserError: if an input does not exist or holds no image, or ``out`` holds the scores of
            another detector.
        IncompleteError: if images could not be read; all others are written by then.
    """
    check_fpr(command.fpr)
    if not command.images:
        raise UserError("no images are named; name image files or folders after RUN")
    for path in command.images:
        if not path.exists():
            raise UserError(f"there is no file or folder {path}; check the path")
        if command.watch and not path.is_dir():
            raise UserError(f"{path} is a file; `watch` takes folders")
    if not command.watch and not found_images(command.images):
        raise UserError(
            f"there is no image in {', '.join(map(str, command.images))}; images end in "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    predictor = load(command.workdir)
    if predictor.calibration is None:
        try:
            predictor.calibrated()
        except UserError as error:
            log.warning("scores alone, no decisions: %s", error)
    else:
        predictor.calibration.warn_of(command.fpr)
    with (
        writing(command.out, "give `out` another folder, or make room"),
        alone(command.out, lambda: _in_use(command.out)),
    ):
        results = Results(
            command.out,
            predictor,
            command.fpr,
            heat_maps=command.heat_maps,
            lines=command.json,
            tell=command.watch,
            overwrite=command.overwrite,
        )
        _run(command, predictor, results)


def _run(command: Predict, predictor: Predictor, results: Results) -> None:
    handled: dict[Path, _Stamp] = {}
    if command.watch:
        log.info("watching %s", ", ".join(map(str, command.images)))
    while command.watch:
        _settled(command, predictor, results, handled)
    bad = _all_of(command, predictor, results, found_images(command.images))
    log.info(
        "%s in %s%s", counted(len(results.done), "row"), results.csv,
        f", {results.anomalies} of them anomalies" if predictor.calibration else "",
    )  # fmt: skip
    if bad:
        for reason in bad.values():
            log.warning("left out: %s", reason)
        raise IncompleteError(f"{counted(len(bad), 'image')} could not be read, as listed above")


def found_images(inputs: Sequence[Path]) -> list[Path]:
    """The images that the inputs name, each once, by whatever paths."""
    found: dict[Path, Path] = {}
    for given in inputs:
        for path in images_below(given) if given.is_dir() else [given]:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _all_of(
    command: Predict, predictor: Predictor, results: Results, paths: Sequence[Path]
) -> dict[Path, str]:
    """Score those that are not done; the ones that cannot be read, with the reason."""
    bad: dict[Path, str] = {}

    def note(path: ImageSource, reason: str) -> None:
        assert isinstance(path, Path)
        bad[path] = without_skipping(reason)
        if command.watch:
            log.warning("left out for now: %s", bad[path])

    left = []
    for path in paths:
        try:
            image = NamedImage(path, image_digest(path)[:16])
        except BadImageError as error:
            note(path, str(error))
            continue
        if image.key not in results.done:
            left.append(image)
    features = predictor.config.features
    batches = iter_batches(
        [image.path for image in left],
        features.image_size,
        features.image_batch,
        skip_bad=True,
        on_bad=note,
    )
    # Always the same program, so that a run that was stopped ends as one that was not; but not for
    # the single images that a camera writes.
    bucket = None if command.watch else features.image_batch
    label = None if command.watch or not left else "images"
    with Progress(len(left), label, cached=len(paths) - len(left) - len(bad)) as bar:
        for chosen, arrays in batches:
            images = [left[i] for i in chosen]
            results.write(images, predictor.of_arrays(arrays, bucket=bucket))
            bar.update(len(images))
    return bad


def _settled(
    command: Predict, predictor: Predictor, results: Results, handled: dict[Path, _Stamp]
) -> None:
    """Wait, then score what is new or has changed, unless it is still being written."""
    before = {path: _stamp(path) for path in found_images(command.images)}
    time.sleep(_POLL)
    now = {path: _stamp(path) for path in before}
    ready = [
        path
        for path, stamp in now.items()
        if before[path] == stamp and stamp not in (None, handled.get(path))
    ]
    _all_of(command, predictor, results, ready)
    handled.update((path, now[path]) for path in ready)


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _in_use(folder: Path) -> None:
    raise UserError(
        f"another ahl predict is writing to {folder}{holder(folder)}; wait for it, or give "
        "another `out`"
    )
