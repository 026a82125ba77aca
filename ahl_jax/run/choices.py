"""Settings that are left to the data: ``poolings`` by default.

A crack is told by how much the locations of an image differ, a texture is not.
"""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ahl_jax.backbones import Trunk, load_trunk
from ahl_jax.common.text import counted
from ahl_jax.config.checks import left_to_data
from ahl_jax.config.presets import with_settings
from ahl_jax.config.settings import SCALES, Config, averaged, flat
from ahl_jax.data.records import ImageSource
from ahl_jax.detectors import DETECTORS, Blocks, Functional, Model, make_detector
from ahl_jax.detectors.whitening import Whitening, fit_whitening
from ahl_jax.distributed.memory import on_host
from ahl_jax.distributed.processes import on_primary
from ahl_jax.features import FeatureMaps, Store, extract
from ahl_jax.features.pooling import averages_of, pooled_features
from ahl_jax.features.split import defect_tiles, marked_pixels
from ahl_jax.features.tiles import tiles_of
from ahl_jax.learning.hadg import similar_normals
from ahl_jax.run.claim import Run
from ahl_jax.run.options import RunOptions

log = logging.getLogger(__name__)

CANDIDATES = (3, 1)
"""Numbers of poolings that are compared; the second one has to be clearly better."""

_LESS = 0.8
"""What an error, 1 - AUC-ROC, has to be at most of the other's."""

_DOUBT = 0.05
"""What is added to every error, divided by the number of labelled anomalies."""


def with_choices(runs: Sequence[Run], options: RunOptions) -> list[Run]:
    """The runs, each with a value for every setting that its own leave to the data.

    A run's own training images decide, as the labelled anomalies of one seed are in the test of
    another; a run that has begun keeps its own. The measure is Density's ``left_out_auc`` by the
    trunk as it is before stage one. Without labelled anomalies they are the first ones, and a
    detector that reads one pooling has that.

    Args:
        runs: runs that differ in their seeds alone.
        options: how they are carried out.

    Raises:
        UserError: for a bad image, unless the settings skip those, or weights that do not fit.
    """
    if not left_to_data(runs[0].config):
        return list(runs)

    def choose() -> list[dict[str, Any]]:
        chosen = [_begun(run, options) for run in runs]
        others = [run for run, there in zip(runs, chosen, strict=True) if there is None]
        best = iter(_best(others, options) if others else ())
        return [next(best) if there is None else there for there in chosen]

    return [
        dataclasses.replace(run, config=with_settings(run.config, values))
        for run, values in zip(runs, on_primary(choose), strict=True)
    ]


def alike(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs whose settings differ in their seeds alone, together; one program trains them."""
    found: dict[Config, list[Run]] = {}
    for run in runs:
        found.setdefault(dataclasses.replace(run.config, seed=0), []).append(run)
    return list(found.values())


def _begun(run: Run, options: RunOptions) -> dict[str, Any] | None:
    """What a run chose that has begun, if these settings are its own."""
    if options.overwrite or not (run.workdir.path / "run.json").is_file():
        return None
    settled = run.workdir.settled(run.config)
    if settled != run.workdir.config() or left_to_data(settled):
        return None
    there = dict(flat(settled.to_dict()))
    return {name: there[name] for name in left_to_data(run.config)}


def _best(runs: Sequence[Run], options: RunOptions) -> list[dict[str, Any]]:
    config, (first, other) = runs[0].config, CANDIDATES
    names = left_to_data(config)
    averages_alone = not DETECTORS[config.detector.detector].whitened
    if averages_alone or not all(run.split.seen for run in runs):
        return [dict.fromkeys(names, other if averages_alone else first) for _ in runs]
    store = Store(options.cache_dir, on_host(options.feature_memory))
    named = config.features
    trunk = load_trunk(named.trunk, named.trunk_weights, store.folder, levels=named.levels)
    best = []
    for run, found in zip(runs, _left_out_aucs(runs, trunk, store, options), strict=True):
        doubt = _DOUBT / len(run.split.seen)
        clear = 1 - found[other] + doubt < _LESS * (1 - found[first] + doubt)
        chosen = other if clear else first
        best.append(dict.fromkeys(names, chosen))
        if options.progress:
            whose = f"seed {run.config.seed}: " if len(runs) > 1 else ""
            each = ", ".join(f"{auc:.3f} with {counted(p, 'pooling')}" for p, auc in found.items())
            log.info(
                "%staken: %s (AUC-ROC of labelled anomalies left out: %s)",
                whose, counted(chosen, "pooling"), each,
            )  # fmt: skip
    return best


def _left_out_aucs(
    runs: Sequence[Run], trunk: Trunk, store: Store, options: RunOptions
) -> list[dict[int, float]]:
    """Density's of each run, for every number of poolings."""
    config = runs[0].config

    def maps_of(paths: Sequence[ImageSource], label: str) -> tuple[FeatureMaps, list[ImageSource]]:
        """The maps of the images that can be read, and these."""
        skip, progress = config.data.skip_bad_images, options.progress
        maps, kept = extract(
            paths, trunk, config.features, store, skip_bad=skip, progress=progress, label=label
        )
        return maps, [paths[i] for i in kept]

    tiles, means = tiles_of(config.features), len(averaged(config.features.views))
    most = Blocks(CANDIDATES[0], means)
    aucs = []
    # Every seed of a data set has the same training normals.
    known: dict[tuple[ImageSource, ...], tuple[Float[np.ndarray, "n p*d"], Whitening | None]] = {}
    for run in runs:
        paths = run.split.train_normals
        if paths not in known:
            maps, _ = maps_of(paths, "training normals")
            pooled = pooled_features(tuple(map(tiles.apart, maps)), most)
            whitening = (
                fit_whitening(pooled, SCALES, trunk.parts, most.total) if len(pooled) else None
            )
            known[paths] = pooled, whitening
        pooled, whitening = known[paths]
        seen, labelled = maps_of([s.path for s in run.split.seen], "labelled anomalies")
        aucs.append(dict.fromkeys(CANDIDATES, 0.5))
        if whitening is None or not len(seen[0]):
            continue
        marked = marked_pixels(run.config, labelled)
        chosen = defect_tiles(tiles, seen, averages_of(pooled, most.total), marked, trunk.parts)
        own = pooled_features(chosen, most)
        for p in CANDIDATES:
            part, width = whitening.of_first(p * means), p * means * SCALES * trunk.channels
            aucs[-1][p] = left_out_auc(run.config, part, pooled[:, :width], own[:, :width])
    return aucs


def left_out_auc(
    config: Config,
    whitening: Whitening,
    normals: Float[np.ndarray, "n p*d"],
    anomalies: Float[np.ndarray, "m p*d"],
) -> float:
    """AUC-ROC of labelled anomalies that are left out, against the training normals, by Density.

    Args:
        config: the settings of the detector are used, and the seed.
        whitening: that of the normals.
        normals: pooled features of the training normals.
        anomalies: those of the labelled anomalies, at least one.
    """
    blocks = normals.shape[1] // len(whitening.averages[0])
    detector = dataclasses.replace(config.detector, detector="density")
    channels = whitening.mean.shape[1]
    functional, model = make_detector(detector, channels, jax.random.key(0), blocks)
    model = functional.inferring(model)
    averages = averages_of(normals, blocks)
    groups = jnp.asarray(similar_normals(averages, detector.groups, config.seed))
    known, seen = (jnp.asarray(whitening.whitened(x), jnp.float32) for x in (normals, anomalies))
    model = _prepared(functional, model, known, seen, known[:0], groups, whitening.colouring())
    return float(model.stats["left_out_auc"])


@functools.partial(jax.jit, static_argnums=0)
def _prepared(functional: Functional, model: Model, *fitted_to: Array) -> Model:
    return functional.prepared_by_pooled(model, *fitted_to)
