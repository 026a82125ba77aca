"""The choice of ``views``: whether an image and its turned copies are alike is told by the data.

A screw may lie in any way, and the mean over eight views finds more. A head has an up, and there
they find less.
"""

import dataclasses
import logging
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ahl_jax.backbones import Trunk, load_trunk
from ahl_jax.common.text import counted
from ahl_jax.config.presets import with_settings
from ahl_jax.config.settings import SCALES, Config, Views
from ahl_jax.data.records import ImageSource
from ahl_jax.detectors import make_detector
from ahl_jax.detectors.whitening import Whitening, fit_whitening
from ahl_jax.distributed.memory import on_host
from ahl_jax.distributed.processes import on_primary
from ahl_jax.features import FeatureMaps, Store, extract
from ahl_jax.features.images import global_averages
from ahl_jax.features.split import defect_tiles, marked_pixels
from ahl_jax.features.tiles import tiles_of
from ahl_jax.learning.hadg import similar_normals
from ahl_jax.run.claim import Run
from ahl_jax.run.options import RunOptions

log = logging.getLogger(__name__)

CANDIDATES: tuple[Views, ...] = (1, 8)
"""The numbers of views that are compared."""

_GAIN = 0.005
"""How much higher the AUC-ROC has to be with more views, which take so many times as long."""


def with_views(runs: Sequence[Run], options: RunOptions) -> list[Run]:
    """The runs, each with a number of views where their settings leave it to the data.

    All runs get the same one, and a run that has begun keeps its own. The measure is Density's
    ``left_out_auc`` by the trunk as it is before stage one, and its mean over the runs. Without
    labelled anomalies it is one view.

    Args:
        runs: runs that differ in their seeds alone.
        options: how they are carried out.

    Raises:
        UserError: for a bad image, unless the settings skip those, or weights that do not fit.
    """
    if runs[0].config.features.views != "auto":
        return list(runs)
    views = on_primary(lambda: _begun(runs, options) or _best(runs, options))
    chosen = {"views": views}
    return [dataclasses.replace(run, config=with_settings(run.config, chosen)) for run in runs]


def _begun(runs: Sequence[Run], options: RunOptions) -> Views | None:
    """The views of those runs that have begun, if these settings are theirs."""
    for run in runs:
        if not options.overwrite and (run.workdir.path / "run.json").is_file():
            settled = run.workdir.settled(run.config)
            if settled == run.workdir.config() and settled.features.views != "auto":
                return settled.features.views
    return None


def _best(runs: Sequence[Run], options: RunOptions) -> Views:
    if not all(run.split.seen for run in runs):
        return CANDIDATES[0]
    store = Store(options.cache_dir, on_host(options.feature_memory))
    named = runs[0].config.features
    trunk = load_trunk(named.trunk, named.trunk_weights, store.folder, levels=named.levels)
    found = {views: _left_out_auc(runs, views, trunk, store, options) for views in CANDIDATES}
    best = CANDIDATES[0]
    for views in CANDIDATES[1:]:
        if found[views] > found[best] + _GAIN:
            best = views
    if options.progress:
        each = ", ".join(f"{auc:.3f} with {counted(n, 'view')}" for n, auc in found.items())
        log.info("views: %d (AUC-ROC of labelled anomalies left out: %s)", best, each)
    return best


def _left_out_auc(
    runs: Sequence[Run], views: Views, trunk: Trunk, store: Store, options: RunOptions
) -> float:
    """Density's, the mean over the runs."""
    first = with_settings(runs[0].config, {"views": views})

    def maps_of(paths: Sequence[ImageSource], label: str) -> tuple[FeatureMaps, list[ImageSource]]:
        """The maps of the images that can be read, and these."""
        skip, progress = first.data.skip_bad_images, options.progress
        label = f"{label}, {counted(views, 'view')}"
        maps, kept = extract(
            paths, trunk, first.features, store, skip_bad=skip, progress=progress, label=label
        )
        return maps, [paths[i] for i in kept]

    tiles = tiles_of(first.features)
    aucs = []
    # Every seed of a data set has the same training normals.
    known: dict[tuple[ImageSource, ...], tuple[Float[np.ndarray, "n d"], Whitening | None]] = {}
    for run in runs:
        paths = run.split.train_normals
        if paths not in known:
            maps, _ = maps_of(paths, "training normals")
            found = global_averages(tuple(map(tiles.apart, maps)))
            whitening = fit_whitening(found, SCALES, trunk.parts) if len(found) else None
            known[paths] = found, whitening
        normals, whitening = known[paths]
        seen, labelled = maps_of([s.path for s in run.split.seen], "labelled anomalies")
        if whitening is not None and len(seen[0]):
            marked = marked_pixels(run.config, labelled)
            own = global_averages(defect_tiles(tiles, seen, normals, marked, trunk.parts))
            aucs.append(left_out_auc(run.config, whitening, normals, own))
    return float(np.mean(aucs)) if aucs else 0.5


def left_out_auc(
    config: Config,
    whitening: Whitening,
    normals: Float[np.ndarray, "n d"],
    anomalies: Float[np.ndarray, "m d"],
) -> float:
    """AUC-ROC of labelled anomalies that are left out, against the training normals, by Density.

    Args:
        config: the settings of the detector are used, and the seed.
        whitening: that of the normals.
        normals: global averages of the training normals.
        anomalies: those of the labelled anomalies, at least one.
    """

    def rows(averages: Float[np.ndarray, "b d"]) -> Float[jax.Array, "b r"]:
        z = (averages - np.ravel(whitening.mean)) @ np.asarray(whitening.averages)
        # The heads of single locations do not count.
        lengths = [np.linalg.norm(z, axis=1), *np.zeros((SCALES, len(z)))]
        return jnp.asarray(np.column_stack([z, *lengths]), jnp.float32)

    detector = dataclasses.replace(config.detector, detector="density")
    channels = normals.shape[1] // SCALES
    functional, model = make_detector(detector, channels, jax.random.key(0))
    groups = jnp.asarray(similar_normals(normals, detector.groups, config.seed))
    model = functional.prepared(model, rows(normals), rows(anomalies), groups)
    return float(model.stats["left_out_auc"])
