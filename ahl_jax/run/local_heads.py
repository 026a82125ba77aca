"""Local heads: fitted to the stored feature maps of a run's training images."""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, Int

from ahl_jax.common.progress import Progress
from ahl_jax.detectors.local_head import LocalHead, extremes, finer_levels, make_local_head
from ahl_jax.detectors.localizer import Localizer, fit_localizer, pointed
from ahl_jax.distributed.part import Part
from ahl_jax.distributed.processes import rows_of_all
from ahl_jax.features.split import TrainingFeatures

_MOST = 400
"""Normals, or their tiles, that localizers are fitted to."""

_FOLDS = 4
"""Parts of the normals that localizers are fitted without, one after the other."""

_ROWS = 64
"""Images that are looked at at a time."""

_extremes = jax.jit(extremes)


@dataclass(frozen=True)
class FittedLocalizers:
    """Localizers of training normals, which those of several seeds share."""

    of_all: Localizer
    without: tuple[Localizer, ...]
    """Without each fold."""

    fold: Int[np.ndarray, " n"]
    """Which one each of this process's normals, or of their tiles, is of."""


def fit_localizers(
    features: TrainingFeatures, parts: tuple[int, ...], tiles: int, part: Part, *, progress: bool
) -> FittedLocalizers | None:
    """Localizers of a run's normals; None for one, that none could be fitted without.

    All processes call it.

    Args:
        features: the run's.
        parts: channels of the trunk's levels.
        tiles: how many a photograph has.
        part: this process's.
        progress: whether to show progress.
    """
    counts = features.counts[:, 0]
    total, start = int(counts.sum()), int(counts[: part.number].sum())
    photographs = total // tiles
    if photographs < 2:
        return None
    rng = np.random.default_rng(0)
    folds = min(_FOLDS, photographs)
    fold = np.repeat(rng.permutation(photographs) % folds, tiles)
    chosen = np.sort(rng.permutation(total)[:_MOST])
    own = chosen[(chosen >= start) & (chosen < start + counts[part.number])] - start
    some = rows_of_all(finer_levels(features.normals.maps[0], parts)[own], part)
    label = "localizers of training normals" if progress else None
    with Progress(folds + 1, label, unit="fit", verb="fit") as bar:

        def fitted(rows: Float[np.ndarray, "s h w k"]) -> Localizer:
            localizer = fit_localizer(rows)
            bar.update(1)
            return localizer

        without = tuple(fitted(some[fold[chosen] != k]) for k in range(folds))
        of_all = fitted(some)
    return FittedLocalizers(of_all, without, fold[start : start + counts[part.number]])


def fit_local_head(
    fitted: FittedLocalizers, features: TrainingFeatures, parts: tuple[int, ...], part: Part
) -> LocalHead:
    """The local head of a run. All processes call it.

    Args:
        fitted: localizers of its normals.
        features: the run's.
        parts: channels of the trunk's levels.
        part: this process's.
    """
    fine = finer_levels(features.normals.maps[0], parts)
    seen = rows_of_all(finer_levels(features.anomalies.maps[0], parts), part)

    def directed(localizer: Localizer) -> Localizer:
        return pointed(localizer, seen) if len(seen) else localizer

    own = np.empty((len(fitted.fold), 2), np.float32)
    for k, localizer in enumerate(map(directed, fitted.without)):
        rows = np.flatnonzero(fitted.fold == k)
        for start in range(0, len(rows), _ROWS):
            # The last ones are padded, so that there is one compilation.
            here = np.resize(rows[start : start + _ROWS], _ROWS)
            own[here] = _extremes(localizer, fine[here])
    of_normals = rows_of_all(own, part)
    return make_local_head(directed(fitted.of_all), of_normals, len(seen))
