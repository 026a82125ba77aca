"""HADG: heterogeneous anomaly distribution generation, as index arrays into the bank of images."""

import itertools
import logging
import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from ahl_jax.common.errors import UserError
from ahl_jax.common.text import counted
from ahl_jax.config.settings import SubsetConfig
from ahl_jax.learning.batches import Pool, PoolSet, pad_pools

log = logging.getLogger(__name__)

SMALLEST_CLUSTER = 3
"""Clusters with fewer members are dropped."""

HOLISTIC = -1
"""Cluster number of the holistic subset's halves."""

_MOST_ASSIGNED = 2000
_ROUNDS = 50


@dataclass(frozen=True)
class Roles:
    """The kind of each training image, by its position in the bank.

    The order is: n normals, then M labelled anomalies, then the pseudo-anomalies.
    """

    normals: int
    anomalies: int
    generator: Int[np.ndarray, " p"]
    """Which generator made each pseudo-anomaly."""

    origin: Int[np.ndarray, " p"]
    """The normal that each pseudo-anomaly was made from."""

    @property
    def normal_index(self) -> Int[np.ndarray, " n"]:
        """Positions of the normals."""
        return np.arange(self.normals)

    @property
    def anomaly_index(self) -> Int[np.ndarray, " m"]:
        """Positions of the labelled anomalies."""
        return self.normals + np.arange(self.anomalies)

    @property
    def pseudo_index(self) -> Int[np.ndarray, " p"]:
        """Positions of the pseudo-anomalies."""
        return self.normals + self.anomalies + np.arange(len(self.generator))


@dataclass(frozen=True)
class Subset:
    """One heterogeneous subset D_i: positions in the bank, for the support and the query set."""

    clusters: tuple[int, int]
    generators: tuple[int, int]
    normals: tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]
    anomalies: tuple[Int[np.ndarray, " c"], Int[np.ndarray, " d"]]
    pseudo: tuple[Int[np.ndarray, " e"], Int[np.ndarray, " f"]]


def check_clusters(clusters: int, normals: int) -> None:
    """Refuse more clusters than there are normals, or normals too few for any two clusters.

    Raises:
        UserError: saying so.
    """
    if normals < clusters:
        raise UserError(
            f"`clusters` is {clusters}, but there are only {normals} training normals; "
            "use fewer clusters or give more normals"
        )
    if normals < 2 * SMALLEST_CLUSTER:
        raise UserError(
            f"AHL needs two clusters of {SMALLEST_CLUSTER} or more normals, and there are only "
            f'{normals} training normals; give more normals, or choose `method="base"`'
        )


def similar_normals(
    features: Float[np.ndarray, "n d"], groups: int, seed: int
) -> Int[np.ndarray, " n"]:
    """The k-means group of each normal, numbered in the order of their first members.

    There are at most as many groups as normals that differ.
    """
    groups = min(groups, len(features))
    if groups == 1:
        return np.zeros(len(features), int)
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        found = KMeans(groups, n_init=10, random_state=seed).fit_predict(features)
    # Parallel k-means may number the same groups differently from run to run.
    _, first, which = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[which]


def cluster_normals(
    features: Float[np.ndarray, "n d"], clusters: int, seed: int
) -> list[Int[np.ndarray, " m"]]:
    """k-means clusters of the normals as index arrays; tiny ones are dropped with a warning.

    Where fewer than two remain, as where a few outliers lie far from all others, the normals are
    divided into clusters of nearly equal size, with a warning.

    Raises:
        UserError: if the normals are too few for two clusters of ``SMALLEST_CLUSTER``.
    """
    check_clusters(clusters, len(features))
    normals = len(features)
    which = similar_normals(features, clusters, seed)
    members = [np.flatnonzero(which == c) for c in range(clusters)]
    kept = [m for m in members if len(m) >= SMALLEST_CLUSTER]
    if len(kept) >= 2:
        if len(kept) < clusters:
            log.warning(
                "%d of %d clusters had fewer than %d members and were dropped",
                clusters - len(kept),
                clusters,
                SMALLEST_CLUSTER,
            )
        return kept
    possible = min(clusters, normals // SMALLEST_CLUSTER)
    log.warning(
        "k-means left %s of %d or more of the %d training normals, and AHL needs two; they are "
        "divided into %d clusters of equal size",
        counted(len(kept), "cluster"),
        SMALLEST_CLUSTER,
        normals,
        possible,
    )
    return balanced_clusters(features, possible, seed)


def balanced_clusters(
    features: Float[np.ndarray, "n d"], clusters: int, seed: int
) -> list[Int[np.ndarray, " m"]]:
    """Clusters of nearly equal size: k-means whose assignments are the cheapest with these sizes.

    Every channel counts the same, so that no outlier decides alone (Malinen and Franti, 2014). Of
    more than ``_MOST_ASSIGNED`` normals chance decides, as the assignment takes cubic time.
    """
    normals = len(features)
    if normals > _MOST_ASSIGNED:
        return random_groups(normals, clusters, seed)
    scale = features.std(0)
    scaled = (features - features.mean(0)) / np.where(scale > 0, scale, 1)
    slots = np.sort(np.arange(normals) % clusters)  # The cluster of each place.
    rng = np.random.default_rng([seed, 4])
    centres = scaled[rng.choice(normals, clusters, replace=False)]
    which = slots
    for _ in range(_ROUNDS):
        image, place = linear_sum_assignment(cdist(scaled, centres, "sqeuclidean")[:, slots])
        before, which = which, slots[place[np.argsort(image)]]
        if np.array_equal(before, which):
            break
        centres = np.stack([scaled[which == c].mean(0) for c in range(clusters)])
    return [np.flatnonzero(which == c) for c in range(clusters)]


def random_groups(normals: int, groups: int, seed: int) -> list[Int[np.ndarray, " m"]]:
    """The normals in random groups of nearly equal size, in place of clusters.

    Raises:
        UserError: if they are too few for groups of ``SMALLEST_CLUSTER``.
    """
    if normals < groups * SMALLEST_CLUSTER:
        raise UserError(
            f"`clusters` is {groups}, but {normals} training normals make no {groups} random "
            f"groups of {SMALLEST_CLUSTER}; use fewer clusters or give more normals"
        )
    shuffled = np.random.default_rng([seed, 3]).permutation(normals)
    return [np.sort(members) for members in np.array_split(shuffled, groups)]


def _cycle_pairs(
    items: int, count: int, rng: np.random.Generator, *, shuffle_first: bool
) -> list[tuple[int, int]]:
    """``count`` ordered pairs of different items, none repeated before all are used."""
    every = list(itertools.permutations(range(items), 2))
    pairs: list[tuple[int, int]] = []
    while len(pairs) < count:
        whole = not pairs and not shuffle_first and count >= len(every)
        order = np.arange(len(every)) if whole else rng.permutation(len(every))
        pairs += [every[k] for k in order]
    return pairs[:count]


def make_subsets(
    config: SubsetConfig,
    roles: Roles,
    clusters: list[Int[np.ndarray, " m"]],
    generators: int,
    seed: int,
) -> list[Subset]:
    """T subsets, each with support and query normals from two different clusters.

    Labelled anomalies: a random half in support (the larger one if M is odd), the rest in query;
    a single one is in both. Pseudo-anomalies: from two different generators, and made from the
    set's own normals where the generator has any of those.

    Args:
        config: T, whether to add the holistic subset, whether query shares the support anomalies.
        roles: what the positions are.
        clusters: positions of the normals of each cluster.
        generators: how many generators there are.
        seed: seed of every choice.
    """
    rng = np.random.default_rng([seed, 1])
    pairs = _cycle_pairs(len(clusters), config.subsets, rng, shuffle_first=False)
    normals = [(clusters[a], clusters[b]) for a, b in pairs]
    if config.holistic:
        shuffled = rng.permutation(roles.normal_index)
        half = len(shuffled) // 2
        pairs.append((HOLISTIC, HOLISTIC))
        normals.append((np.sort(shuffled[:half]), np.sort(shuffled[half:])))
    makers = _cycle_pairs(generators, len(pairs), rng, shuffle_first=True)
    return [
        Subset(
            clusters=pair,
            generators=maker,
            normals=sides,
            anomalies=_halve(roles.anomaly_index, rng, share=config.share_anomalies),
            pseudo=(
                _pseudo_of(roles, maker[0], sides[0]),
                _pseudo_of(roles, maker[1], sides[1]),
            ),
        )
        for pair, sides, maker in zip(pairs, normals, makers, strict=True)
    ]


def _halve(
    anomalies: Int[np.ndarray, " m"], rng: np.random.Generator, *, share: bool
) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    if len(anomalies) == 1:
        return anomalies, anomalies
    shuffled = rng.permutation(anomalies)
    half = (len(anomalies) + 1) // 2
    return np.sort(shuffled[:half]), np.sort(anomalies if share else shuffled[half:])


def _pseudo_of(roles: Roles, generator: int, normals: Int[np.ndarray, " n"]) -> np.ndarray:
    made = roles.generator == generator
    own = made & np.isin(roles.origin, normals)
    return roles.pseudo_index[own if own.any() else made]


def pool_sets(subsets: list[Subset], roles: Roles) -> tuple[PoolSet, PoolSet]:
    """The support and the query sets as padded index arrays with a leading T axis.

    Their shapes depend on the counts of the roles and on T alone, not on how k-means split the
    normals: other clusters or another seed need no other compiled program.
    """
    most_made = int(np.bincount(roles.generator).max(initial=0))

    def side(k: int) -> PoolSet:
        return PoolSet(
            normals=pad_pools([s.normals[k] for s in subsets], roles.normals),
            anomalies=pad_pools([s.anomalies[k] for s in subsets]),
            pseudo=pad_pools([s.pseudo[k] for s in subsets], most_made),
        )

    return side(0), side(1)


def everything(roles: Roles) -> PoolSet:
    """All training images as one set with no leading axis: what a detector alone trains on."""
    sets = (roles.normal_index, roles.anomaly_index, roles.pseudo_index)
    return PoolSet(*(Pool(m.astype(np.int32), np.array(len(m), np.int32)) for m in sets))


def error_weights(subsets: list[Subset], roles: Roles) -> Float[np.ndarray, "t n"]:
    """c_j of AHL Eq. 6 for each subset and training image; 0 where j is not in D'.

    D' is every training image, pseudo-anomalies aside, without the subset's support normals.
    c_j is 1.0 for an anomaly that the base model does not train on, else 0.5.
    """
    weights = np.full((len(subsets), roles.normals + roles.anomalies), 0.5, np.float32)
    weights[:, roles.normals :] = 1.0
    for row, subset in zip(weights, subsets, strict=True):
        row[subset.normals[0]] = 0.0
        row[subset.anomalies[0]] = 0.5
    return weights
