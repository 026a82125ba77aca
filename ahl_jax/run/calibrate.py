"""What the threshold of a trained run is set by: scores of normals that training has not seen."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ahl_jax.common.errors import BadImageError, UserError
from ahl_jax.common.progress import Progress
from ahl_jax.common.text import counted
from ahl_jax.config.settings import Config
from ahl_jax.data.copies import fetched
from ahl_jax.data.folder import check_good
from ahl_jax.data.formats import unread_in_words
from ahl_jax.data.images import image_digest, without_skipping
from ahl_jax.data.records import ImageSource
from ahl_jax.data.remembered import DIGITS, names_in
from ahl_jax.data.splits import distinct, hold_out
from ahl_jax.detectors import DETECTORS, Functional, Model, blocks_of
from ahl_jax.detectors.ensemble import make_model
from ahl_jax.detectors.inputs import Inputs
from ahl_jax.distributed.memory import on_device, on_host
from ahl_jax.features import Store
from ahl_jax.features.pooling import averages_of, pooled_features
from ahl_jax.features.split import (
    FittedFeatures,
    defect_tiles,
    fitted_features,
    held_out_features,
)
from ahl_jax.features.tiles import UNCUT, tiles_of
from ahl_jax.inference.folder import found_images
from ahl_jax.inference.predictor import Predictor, load
from ahl_jax.inference.scorer import detect
from ahl_jax.inference.threshold import calibration_of
from ahl_jax.learning.bank import SharedBank, Streamed, shared_bank
from ahl_jax.learning.folds import make_folds
from ahl_jax.learning.hadg import similar_normals
from ahl_jax.learning.learner import TrainingData, in_batches, prepared
from ahl_jax.learning.problem import colouring_of, problem_on, whitening_of
from ahl_jax.run.claim import Run
from ahl_jax.run.options import RunOptions
from ahl_jax.storage.workdir import Workdir

log = logging.getLogger(__name__)


def calibrated(predictor: Predictor, run: Run, options: RunOptions) -> Predictor:
    """The detector with its calibration, kept beside its checkpoint, where normals are held out.

    Args:
        predictor: the run's detector; one that has a calibration stays as it is.
        run: the run, whose images are those that it was trained on.
        options: how it is carried out.

    Raises:
        UserError: for a bad image, unless the settings skip those, or if scores are no numbers.
    """
    config, split = run.config, run.split
    if predictor.calibration or not (split.held_out or config.in_turn):
        return predictor
    store = Store(options.cache_dir, on_host(options.feature_memory))
    given = config, split, predictor.trunk, store
    folds, heat = 0, None
    paths: Sequence[ImageSource]
    # A copy of what a fit has seen is not unseen.
    if split.held_out:
        maps, paths = held_out_features(*given, progress=options.progress)
        own, copies = _own(config, paths, split.train_normals)
        scores, _, heat = predictor.outcome_of(maps, paths)
        scores, heat = scores[own], heat[own]
    else:
        features = fitted_features(*given, progress=options.progress)
        paths, parts = features.paths, predictor.trunk.parts
        own, copies = _own(config, paths)
        head = predictor.scorer.local_head
        local = None if head is None else np.asarray(head.of_normals)
        scores, heat, folds = scores_in_turn(config, features, parts, options, own, local)
        if predictor.scorer.localizer is not None:
            # It was not fitted to these, see ``ahl_jax.run.extract``.
            fitted, unseen = hold_out(paths, config.data.held_out)
            heat = predictor.heat_maps([unseen[i] for i in _own(config, unseen, fitted)[0]])
    assert heat is not None
    if options.progress and copies:
        log.warning("%s", copies)
    names = names_in(run.data, [paths[i] for i in own])
    calibration = calibration_of(scores, heat, names, folds)
    if options.progress and (few := calibration.shortfall()):
        log.warning("%s", few)
    run.workdir.write_calibration(calibration.text())
    return dataclasses.replace(predictor, calibration=calibration)


def _own(
    config: Config, normals: Sequence[ImageSource], known: Sequence[ImageSource] = ()
) -> tuple[list[int], str | None]:
    """Positions of the ``distinct`` normals, and a sentence on the others, if there are any.

    All of them where copies count, all are copies of known ones, or, where the others of them are
    what is known, all are copies of one.
    """
    n, found = len(normals), [] if config.data.keep_copies else distinct(normals, known)
    least = 1 if known else 2
    if len(found) >= least:
        few = f"{counted(len(found), 'training normal')} of {n}"
        said = f"thresholds are set by {few}: the others are copies"
        return found, said if len(found) < n else None
    few = counted(n, "normal")
    said = f"thresholds are set by {few}, all copies of what is fitted to; new parts score higher"
    return [*range(n)], None if config.data.keep_copies or n < least else said


def recalibrate(workdir: Path | str, good: Sequence[Path | str]) -> Predictor:
    """Set a finished run's thresholds by photographs of good parts; nothing is trained.

    They replace what the thresholds were set by, in one step. To have that again, delete
    ``checkpoint/calibration.json`` and give the training's command again. ``metrics.json`` keeps
    the figures of the training. The training's images need not be at hand.

    Args:
        workdir: the folder that ``train`` was given.
        good: image files, or folders of them, that training has not seen; a copy counts once.

    Returns:
        The detector with its new calibration.

    Raises:
        UserError: if the run is not finished or damaged, or images are missing or were trained on.
        BadImageError: if an image cannot be read.
    """
    run = Workdir(workdir)
    run.config()  # A folder without a run stays as it is.
    with run.held():
        predictor = load(workdir)
        if predictor.metadata["epochs"] < predictor.config.learning.planned_epochs:
            raise UserError(f"{workdir} is not finished; give the training's command again first")
        trained = run.trained_on()
        if trained is None:
            log.warning("images.csv is not there, so whether these were trained on is not known")
        skipped: list[Path] = []
        named = [fetched(each) for each in good]
        for each in filter(Path.is_dir, named):
            check_good(each)
        found = found_images(named, skipped=skipped)
        if said := unread_in_words(skipped):
            log.warning("%s", said)
        if not found:
            raise UserError(f"there is no image in {', '.join(map(str, good))}; check the folders")
        try:
            paths = {image_digest(path)[:DIGITS]: path for path in found}
            if known := (trained or set()) & paths.keys():
                raise UserError(
                    f"training has seen {counted(len(known), 'image')} of {len(paths)}, such as "
                    f"{paths[min(known)]}, and such score lower than new ones; give photographs of "
                    "other parts"
                )
            outcome = predictor.outcome(list(paths.values()))
        except BadImageError as error:
            raise BadImageError(without_skipping(str(error))) from error
        calibration = calibration_of(
            outcome.scores, outcome.heat, [*map(str, paths.values())], given=True
        )
        run.write_calibration(calibration.text())
    before = predictor.calibration
    if before and len(calibration.scores) < len(before.scores):
        log.warning(
            "%s replace %s: the lowest rate of false positives that can be set was %.2g %%, and is "
            "%.2g %%", counted(len(calibration.scores), "photograph"),
            counted(len(before.scores), "normal"), 100 * before.lowest_fpr,
            100 * calibration.lowest_fpr,
        )  # fmt: skip
    return dataclasses.replace(predictor, calibration=calibration)


def scores_in_turn(
    config: Config,
    features: FittedFeatures,
    parts: Sequence[int],
    options: RunOptions,
    own: Sequence[int] | None = None,
    local: Float[np.ndarray, " t"] | None = None,
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n h w"] | None, int]:
    """Scores of n normals, each by a detector that is fitted without it.

    Args:
        config: the run's settings, of the method ``fit``.
        features: of two or more normals. Every fit has all labelled anomalies, and those
            pseudo-anomalies that are made of its normals.
        parts: channels of the trunk's levels.
        options: how much memory there is, and whether to show progress.
        own: which n of the normals to look at; by default all.
        local: ``LocalHead.of_normals`` of all normals, if the detector has a local head.

    Returns:
        The scores, the detector's own heat maps, fold after fold, and how many folds there are.
        With ``fine_heat`` there are other heat maps, so these may be None.
    """
    tiles = tiles_of(config.features)
    normals, pseudo = features.normals, features.pseudo
    own = range(len(normals[0])) if own is None else own
    n = len(own)
    normals = tuple(map(tiles.apart, normals))
    blocks = blocks_of(config)
    pooled = pooled_features(normals, blocks)
    averages = averages_of(pooled, blocks.total)
    seen = defect_tiles(tiles, features.seen, averages, features.marked, parts)
    anomalies, made = (pooled_features(maps, blocks) for maps in (seen, pseudo.maps))
    tile_of = np.arange(len(averages)).reshape(-1, tiles.count)[np.asarray(own)]
    labelled = len(averages) + np.arange(len(seen[0]))

    def made_of(rest: Int[np.ndarray, " r"]) -> Int[np.ndarray, " p"]:
        """As many pseudo-anomalies as there are, some twice; so one program fits all."""
        whole = np.isin(pseudo.origin, rest)
        # Of very few normals it may be that no pair is among these.
        for of_these in (whole & np.isin(pseudo.source, rest), whole):
            if of_these.any():
                return np.resize(np.flatnonzero(of_these), len(made))
        return np.arange(len(made))

    def of_tested(tested: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k"] | None:
        return None if local is None else local[tested]

    def by_pooled(
        rest: Int[np.ndarray, " r"], tested: Int[np.ndarray, " k"]
    ) -> tuple[Float[Array, " k"], None]:
        """Scores of some normals by a fit to others, without a look at single locations."""
        whitening = whitening_of(config, pooled[rest], parts)
        assert whitening is not None
        # On the device one after the other: of 100,000 normals each copy takes gigabytes.
        read = (pooled, rest), (anomalies, ...), (made, made_of(rest)), (pooled, tested)
        *z, tested_z = (jnp.asarray(whitening.whitened(rows[which])) for rows, which in read)
        key = jax.random.key(config.seed)
        functional, model = make_model(config, whitening.mean.shape[1], key)
        model = functional.inferring(model)
        groups = similar_normals(averages[rest], config.detector.groups, config.seed)
        colouring = whitening.colouring()
        given = tested_z, of_tested(tested)
        return _scores_by_pooled(functional, model, *z, groups, colouring, *given), None

    def by_maps(
        bank: SharedBank, rest: Int[np.ndarray, " r"], tested: Int[np.ndarray, " k"]
    ) -> tuple[Float[Array, " k"], Float[Array, "k h w"]]:
        """The same by all that a detector reads, and its heat maps."""
        assert not isinstance(bank.inputs, Inputs)
        whitening = whitening_of(config, pooled[rest], parts)
        inputs = bank.inputs.whitened_by(whitening)
        chosen = made_of(rest)
        place = bank.place[np.concatenate([rest, labelled, len(averages) + len(labelled) + chosen])]
        # Nobody looks at how they are made, and of what.
        generator = np.arange(len(chosen)) % len(config.pseudo.generators)
        origin = np.zeros(len(chosen), int)
        bank_of_rest = SharedBank(inputs, place)
        colouring = colouring_of(config, whitening)
        problem = problem_on(config, bank_of_rest, averages[rest], generator, origin, colouring)
        functional, given = problem.learner.functional, (bank.place[tested], of_tested(tested))
        return _scores(functional, len(rest), problem.model, problem.data, *given)

    fitted: Callable[..., tuple[Array, Array | None]] = by_pooled
    streamed = None
    if not (config.features.fine_heat and DETECTORS[config.detector.detector].by_pooled):
        (bank,) = shared_bank(
            [(normals, seen, pseudo.maps)], config.features.precision,
            on_device(options.feature_memory), whitening=whitening_of(config, pooled, parts),
        )  # fmt: skip
        fitted = functools.partial(by_maps, bank)
        streamed = bank.inputs if isinstance(bank.inputs, Streamed) else None
    folds = make_folds(n, config.data.held_out, config.seed)
    scores, heat = np.empty(n, np.float32), []
    label = "fits without a part of the normals" if options.progress else None
    with Progress(len(folds), label) as bar:
        for left_out, count in folds:
            rest, tested = tile_of[np.setdiff1d(np.arange(n), left_out)], tile_of[left_out]
            found, maps = fitted(rest.ravel(), tested.ravel())
            scores[left_out[:count]] = np.asarray(tiles.worst(found)[0])[:count]
            if maps is not None:
                heat.append(np.asarray(tiles.stitched(maps))[:count])
            bar.update(1)
    if streamed:
        streamed.release()
    return scores, np.concatenate(heat) if heat else None, len(folds)


@functools.partial(jax.jit, static_argnums=0)
def _scores_by_pooled(
    functional: Functional,
    model: Model,
    normals: Float[Array, "n d"],
    anomalies: Float[Array, "m d"],
    pseudo: Float[Array, "p d"],
    groups: Int[Array, " n"],
    colouring: Float[Array, "d d"],
    left_out: Float[Array, "k d"],
    local: Float[Array, " k"] | None,
) -> Float[Array, " k"]:
    """Scores of single tiles by a detector that is fitted to others, by whitened features."""
    model = functional.prepared_by_pooled(model, normals, anomalies, pseudo, groups, colouring)
    return functional.score_by_pooled(model, left_out, local)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scores(
    functional: Functional,
    normals: int,
    model: Model,
    data: TrainingData,
    left_out: Array,
    local: Float[Array, " k"] | None,
) -> tuple[Float[Array, " k"], Float[Array, "k h w"]]:
    """Scores and heat maps of single tiles of the bank by a detector that is fitted to others."""
    model, reference = prepared(functional, model, data, normals), data.inference_reference()

    def one_batch(at: Int[Array, " b"]) -> tuple[Float[Array, " b"], Float[Array, "b h w"]]:
        images, of_these = data.images(left_out[at]), None if local is None else local[at]
        scores, _, heat = detect(functional, UNCUT, model, reference, images, of_these)
        return scores, heat

    return in_batches(one_batch, jnp.arange(len(left_out)))
