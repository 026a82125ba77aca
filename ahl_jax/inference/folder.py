"""``ahl predict``: scores, decisions and heat maps of image files, written as they come."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ahl_jax.common import stop
from ahl_jax.common.errors import BadImageError, IncompleteError, UserError
from ahl_jax.common.files import alone, check_no_file, holder, reason, writing
from ahl_jax.common.progress import Progress
from ahl_jax.common.remote import any_path, url_of
from ahl_jax.common.text import counted
from ahl_jax.data.batches import iter_batches
from ahl_jax.data.copies import copy_of, fetched, origin
from ahl_jax.data.folder import OUTPUTS, images_below
from ahl_jax.data.formats import SUFFIXES, unread_in_words
from ahl_jax.data.images import image_digest, without_skipping
from ahl_jax.data.records import ImageSource
from ahl_jax.data.remembered import DIGITS
from ahl_jax.features.tiles import warn_of_shrinking
from ahl_jax.inference.options import Predict
from ahl_jax.inference.predictor import Predictor, load
from ahl_jax.inference.results import NamedImage, Results, begun_in
from ahl_jax.inference.threshold import check_cut
from ahl_jax.storage.workdir import Workdir

log = logging.getLogger(__name__)

_POLL = 1.0
"""Seconds between two looks at a watched folder."""

_Stamp = tuple[int, int] | None
"""A file's size and when it was changed; None where there is none."""


def run(command: Predict) -> None:
    """Run ``ahl predict``.

    Raises:
        UserError: if an input does not exist or holds no image, or ``out`` holds the scores of
            another detector.
        IncompleteError: if images could not be read; all others are written by then.
    """
    check_cut(command.fpr, command.threshold)
    if not command.images:
        raise UserError("no images are named; name image files or folders after RUN")
    if command.watch and any(map(url_of, command.images)):
        raise UserError("folders in object storage cannot be watched; leave `watch` out")
    out, images = any_path(command.out), tuple(map(fetched, command.images))
    check_no_file(out, "out")
    if begun_in(out, overwrite=command.overwrite) != Path.cwd():
        images = tuple(path.absolute() for path in images)
    command = dataclasses.replace(command, images=images, out=out)
    for path in command.images:
        try:
            path.stat()
        except FileNotFoundError as error:
            raise UserError(f"there is no file or folder {origin(path)}; check the path") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read ({reason(error)}); check the path") from error
        if command.watch and not path.is_dir():
            raise UserError(f"{path} is a file; `watch` takes folders")
    skipped: list[Path] = []
    found = found_images(command.images, copy_of(command.out), skipped)
    said = unread_in_words(skipped)
    if not command.watch and not found:
        raise UserError(
            f"there is no image in {', '.join(map(origin, command.images))}"
            f"{said and f' ({said})'}; images end in {', '.join(sorted(SUFFIXES))}"
        )
    if said and not command.watch:
        log.warning("%s", said)
    predictor = load(command.workdir)
    warn_of_shrinking(found, predictor.config.features)
    save = command.save if command.heat_maps else ()
    if {"mask", "boxes"} & {*save}:
        predictor.calibrated()
    cut = predictor.cut(command.fpr, command.threshold)
    with (
        writing(command.out, "give `out` another folder, or make room"),
        alone(command.out, lambda: _in_use(command.out)),
    ):
        results = Results(
            command.out,
            predictor,
            cut,
            save=save,
            lines=command.json,
            tell=command.watch,
            overwrite=command.overwrite,
        )
        with contextlib.closing(results):
            _run(command, found, predictor, results)


def _run(command: Predict, paths: Sequence[Path], predictor: Predictor, results: Results) -> None:
    if command.watch:
        _watch(command, predictor, results)
    bad: dict[Path, str] = {}
    for path, why, _ in _all_of(paths, predictor, results, label="images"):
        bad[path] = why
    decided = ""
    if results.cut:
        decided = (
            f", with {counted(results.anomalies, 'anomal', 'y', 'ies')} "
            f"(scores above {results.cut.threshold:.4g})"
        )
    log.info("%s in %s%s", counted(len(results.done), "row"), results.csv, decided)
    _warn_of_trained(command, results)
    if bad:
        for why in bad.values():
            log.warning("left out: %s", why)
        raise IncompleteError(f"{counted(len(bad), 'image')} could not be scored, as listed above")


def _warn_of_trained(command: Predict, results: Results) -> None:
    """Say how many of the images the run was trained on."""
    with contextlib.suppress(UserError):  # Its list may be damaged, which predictions do not need.
        trained = Workdir(command.workdir).trained_on() or set()
        if known := sum(digest in trained for _, digest in results.done):
            log.warning(
                "%d of these %s trained this detector, and such score lower than new ones",
                known, counted(len(results.done), "image"),
            )  # fmt: skip


def found_images(
    inputs: Sequence[Path], out: Path | None = None, skipped: list[Path] | None = None
) -> list[Path]:
    """The images that the inputs name, each once by whatever paths.

    Args:
        inputs: image files, and folders of them.
        out: where results are; what it holds is no image.
        skipped: to which what ``images_below`` leaves out is added.

    Raises:
        UserError: if a folder cannot be listed.
    """
    found: dict[Path, Path] = {}
    for given in inputs:
        try:
            below = images_below(given, skipped) if given.is_dir() else [given]
            left_out = _outputs_in(given, out) if out else []
        except OSError as error:
            raise UserError(f"{given} cannot be read ({reason(error)}); check the path") from error
        for path in below:
            if not any(path.is_relative_to(output) for output in left_out):
                found.setdefault(path.resolve(), path)
    return list(found.values())


def _outputs_in(given: Path, out: Path) -> list[Path]:
    """The parts of an input that are output: all of ``out``, or its pictures where both are one."""
    home, ours = given.resolve(), out.resolve()
    written = [ours / name for name in OUTPUTS.values()]
    if any(home.is_relative_to(each) for each in written):
        return [given]
    parts = written if home == ours else [ours]
    return [given / part.relative_to(home) for part in parts if part.is_relative_to(home)]


def _all_of(
    paths: Sequence[Path], predictor: Predictor, results: Results, label: str | None
) -> list[tuple[Path, str, bool]]:
    """Score those that are not done, or not drawn.

    Args:
        paths: image files.
        predictor: the detector.
        results: what to write to.
        label: what the progress calls them; None while watching.

    Returns:
        Those that were left out, why, and whether that is the file's content.
    """
    bad: list[tuple[Path, str, bool]] = []
    left: list[NamedImage] = []
    for path in paths:
        stop.check()
        try:
            image = NamedImage(path, image_digest(path)[:DIGITS])
        except BadImageError as error:
            bad.append((path, without_skipping(str(error)), False))
            continue
        if results.wanted(image):
            left.append(image)

    def note(path: ImageSource, why: str) -> None:
        assert isinstance(path, Path)
        bad.append((path, without_skipping(why), _stamp(path) is not None))

    features = predictor.config.features
    batches = iter_batches(
        [image.path for image in left],
        predictor.frame,
        features.image_batch,
        skip_bad=True,
        on_bad=note,
    )
    # Always the same program, so that a run that was stopped ends as one that was not.
    bucket = min(features.image_batch, 1 << (len(paths) - 1).bit_length()) if paths else None
    shown = label if left else None
    with Progress(len(left), shown, cached=len(paths) - len(left) - len(bad)) as bar:
        for chosen, arrays in batches:
            images = [left[i] for i in chosen]
            results.write(images, predictor.of_arrays(arrays, bucket=bucket))
            bar.update(len(images))
    return bad


def _watch(command: Predict, predictor: Predictor, results: Results) -> NoReturn:
    """Score what is new or has changed, unless it is still being written, until stopped."""
    stop.expected()
    log.info("watching %s", ", ".join(map(str, command.images)))
    handled: dict[Path, _Stamp] = {}
    said: dict[object, str] = {}

    def say(about: object, why: str) -> None:
        if said.get(about) != why:
            log.warning("%s", why)
        said[about] = why

    while True:
        try:
            skipped: list[Path] = []
            found = found_images(command.images, copy_of(command.out), skipped)
            if unread := unread_in_words(skipped):
                say(unread_in_words, unread)
            before = {path: _stamp(path) for path in found}
            time.sleep(_POLL)
            stop.check()
            now = {path: _stamp(path) for path in before}
            ready = [
                path
                for path, stamp in now.items()
                if before[path] == stamp and stamp not in (None, handled.get(path))
            ]
            again = set()
            for path, why, whole in _all_of(ready, predictor, results, label=None):
                say(path, f"left out for now: {why}")
                if not whole:
                    again.add(path)
            handled.update((path, now[path]) for path in ready if path not in again)
            said.pop(command.out, None)
        except (OSError, UserError) as error:
            # A network share comes back.
            if isinstance(error, BrokenPipeError):
                raise
            why = str(error) if isinstance(error, UserError) else reason(error)
            say(command.out, f"waiting until files can be read and written again ({why})")
            time.sleep(_POLL)
            stop.check()


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
