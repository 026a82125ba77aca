"""Two methods on the same splits and seeds."""

import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple

from scipy import stats


class Paired(NamedTuple):
    """How far one method is ahead of another."""

    mean: float
    """Mean of the differences over the seeds."""

    low: float
    """Lower end of the 95 % confidence interval of that mean (Student's t); NaN for one seed."""

    high: float
    """Upper end."""

    ahead: int
    """Seeds with a difference above 0."""

    seeds: int


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Paired:
    """The paired differences ``ours - theirs`` over the seeds that both have, at least one.

    Args:
        ours: figure of each seed.
        theirs: figure of each seed of the other method.
    """
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    n = len(differences)
    mean, half = statistics.mean(differences), math.nan
    if n > 1:
        half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return Paired(mean, mean - half, mean + half, sum(d > 0 for d in differences), n)
