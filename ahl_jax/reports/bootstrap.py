"""How far AUC-ROC and AUC-PR depend on which images a test happens to have."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

RESAMPLES = 1000

_SEED = 0
_AT_ONCE = 2_000_000
"""Counts that are worked on at a time; bounds the memory."""


class Interval(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class Resampled(NamedTuple):
    """Metrics of a test, and of tests that are drawn from it."""

    values: Float[np.ndarray, "2"]
    """AUC-ROC and AUC-PR of the test itself."""

    draws: Float[np.ndarray, "b 2"]
    """The same of b draws."""

    def intervals(self) -> tuple[Interval, Interval]:
        """AUC-ROC and AUC-PR with the percentiles 2.5 and 97.5 of the draws."""
        low, high = np.percentile(self.draws, [2.5, 97.5], axis=0)
        roc, pr = (Interval(*map(float, one)) for one in zip(self.values, low, high, strict=True))
        return roc, pr

    def minus(self, other: "Resampled") -> "Resampled":
        """The difference to another detector on the same images: the draws are the same ones."""
        return Resampled(self.values - other.values, self.draws - other.draws)


def resample(
    scores: Float[np.ndarray, " n"], normal: Bool[np.ndarray, " n"], draws: int = RESAMPLES
) -> Resampled:
    """The metrics of a test and of draws from it, with replacement, of as many images.

    Normals and anomalies are drawn apart. The draws depend on ``normal`` alone, so those of two
    detectors on the same images can be compared draw by draw.

    Args:
        scores: anomaly scores.
        normal: which images are normal; both kinds must be there.
        draws: how many.
    """
    rng = np.random.default_rng(_SEED)
    kinds = [np.flatnonzero(kind) for kind in (normal, ~normal)]
    found = [_areas(scores, normal, np.ones((1, len(scores)), int))]
    step = max(1, _AT_ONCE // len(scores))
    for start in range(0, draws, step):
        counts = np.zeros((min(step, draws - start), len(scores)), int)
        for row in counts:
            for images in kinds:
                row[images] = np.bincount(rng.integers(len(images), size=len(images)),
                                          minlength=len(images))  # fmt: skip
        found.append(_areas(scores, normal, counts))
    return Resampled(found[0][0], np.concatenate(found[1:]))


def resample_one(
    normals: Float[np.ndarray, " n"], anomalies: Float[np.ndarray, " m"], draws: int = RESAMPLES
) -> Resampled:
    """As ``resample``, at a cost that hardly grows with n; not to be compared draw by draw.

    Which of the normals between two anomalies are drawn makes no difference, only how many are.

    Args:
        normals: their scores.
        anomalies: their scores.
        draws: how many.
    """
    steps, found = np.unique(anomalies, return_counts=True)
    between = np.searchsorted(steps, normals) + np.searchsorted(steps, normals, "right")
    _, first, passed = np.unique(between, return_index=True, return_counts=True)
    groups = passed, found
    scores = np.concatenate([normals[first], steps])
    normal = np.arange(len(scores)) < len(first)
    rng = np.random.default_rng(_SEED)
    drawn = [rng.multinomial(each.sum(), each / each.sum(), draws) for each in groups]
    whole, *_ = _areas(scores, normal, np.concatenate(groups)[None])
    return Resampled(whole, _areas(scores, normal, np.concatenate(drawn, axis=1)))


def _areas(
    scores: Float[np.ndarray, " n"], normal: Bool[np.ndarray, " n"], counts: Int[np.ndarray, "b n"]
) -> Float[np.ndarray, "b 2"]:
    """AUC-ROC and AUC-PR where image i is there ``counts[:, i]`` times."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    ordered = counts[:, order]
    # How many anomalies and normals score at least as high as each distinct score.
    hits = np.cumsum(ordered * ~normal[order], axis=1)[:, ends]
    alarms = np.cumsum(ordered * normal[order], axis=1)[:, ends]
    more_hits, more_alarms = (np.diff(x, axis=1, prepend=0) for x in (hits, alarms))
    roc = (more_alarms * (hits - more_hits / 2)).sum(1) / (hits[:, -1] * alarms[:, -1])
    precision = hits / np.maximum(hits + alarms, 1)
    return np.stack([roc, (more_hits * precision).sum(1) / hits[:, -1]], axis=1)
