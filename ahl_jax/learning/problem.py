"""From feature maps to a training problem: bank, subsets, batches' pools, and a fresh model."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ahl_jax.config.settings import SCALES, Config, DataConfig
from ahl_jax.detectors import DETECTORS, Functional, Model, blocks_of
from ahl_jax.detectors.ensemble import make_model
from ahl_jax.detectors.losses import draw_prior
from ahl_jax.detectors.whitening import Whitening, fit_whitening
from ahl_jax.features.pooling import Maps, averages_of, pooled_features
from ahl_jax.learning.bank import HostBank, SharedBank, shared_bank
from ahl_jax.learning.base import Fit, Plain
from ahl_jax.learning.batches import PoolSet
from ahl_jax.learning.cdl import CDL
from ahl_jax.learning.ensemble import Ensemble
from ahl_jax.learning.hadg import (
    Roles,
    Subset,
    cluster_normals,
    error_weights,
    everything,
    make_subsets,
    pool_sets,
    random_groups,
    similar_normals,
)
from ahl_jax.learning.learner import Learner, TrainingData


@dataclass(frozen=True)
class Problem:
    """All that training needs."""

    learner: Learner
    model: Model
    """The detector before training."""

    data: TrainingData
    subsets: list[Subset]
    key: Key[Array, ""]


LEARNERS: dict[str, Callable[[Config, Functional], Learner]] = {
    "ahl": CDL,
    "base": Plain,
    "fit": Fit,
    "ensemble": Ensemble,
}


def make_problem(
    config: Config,
    normals: Maps,
    anomalies: Maps,
    pseudo: Maps,
    generator: Int[np.ndarray, " p"],
    origin: Int[np.ndarray, " p"],
) -> Problem:
    """Set up a run from the feature maps of its training images, one array per scale.

    Its bank is on the default device.

    Args:
        config: the run's settings.
        normals: maps of the n training normals.
        anomalies: maps of the M labelled anomalies.
        pseudo: maps of the pseudo-anomalies.
        generator: which generator made each pseudo-anomaly.
        origin: which normal each pseudo-anomaly was made from.

    Raises:
        UserError: if the settings do not fit the data, such as too few normals for the clusters.
    """
    blocks = blocks_of(config)
    pooled = pooled_features(normals, blocks)
    whitening = whitening_of(config, pooled)
    maps = normals, anomalies, pseudo
    (bank,) = shared_bank([maps], config.features.precision, whitening=whitening)
    assert isinstance(bank.inputs, HostBank)
    bank = bank._replace(inputs=bank.inputs.on_device())
    averages, colouring = averages_of(pooled, blocks.total), colouring_of(config, whitening)
    return problem_on(config, bank, averages, generator, origin, colouring)


def whitening_of(
    config: Config, pooled: Float[np.ndarray, "n b*d"], parts: Sequence[int] = ()
) -> Whitening | None:
    """The whitening that a run's detector reads features by; None where it reads them as they are.

    Args:
        config: the run's settings.
        pooled: the detector's blocks of ``pooled_features`` of the n training normals.
        parts: channels of the trunk's levels; by default all are one level's.
    """
    if not config.features.whiten:
        return None
    return fit_whitening(pooled, SCALES, parts, blocks_of(config).total)


def colouring_of(config: Config, whitening: Whitening | None) -> Float[np.ndarray, "d d"] | None:
    """``Whitening.colouring`` of a run's features, where its detector has a closed form."""
    if whitening is None or not DETECTORS[config.detector.detector].has_closed_form():
        return None
    return whitening.colouring()


def subsets_on(config: Config, roles: Roles, averages: Float[np.ndarray, "n d"]) -> list[Subset]:
    """The heterogeneous subsets of a run.

    Args:
        config: the run's settings.
        roles: what the positions of its images are.
        averages: ``averages_of`` the n training normals, which k-means divides.

    Raises:
        UserError: if there are too few normals for the clusters.
    """
    if config.learning.method != "ahl":
        clusters = [roles.normal_index] * 2  # Nothing else looks at the subsets.
    elif config.subsets.grouping == "random":
        clusters = random_groups(roles.normals, config.subsets.clusters, config.seed)
    else:
        clusters = cluster_normals(averages, config.subsets.clusters, config.seed)
    generators = len(config.pseudo.generators)
    return make_subsets(config.subsets, roles, clusters, generators, config.seed)


def problem_on(
    config: Config,
    bank: SharedBank,
    averages: Float[np.ndarray, "n d"],
    generator: Int[np.ndarray, " p"],
    origin: Int[np.ndarray, " p"],
    colouring: Float[np.ndarray, "d d"] | None = None,
) -> Problem:
    """Set up a run whose images are in a bank.

    Args:
        config: the run's settings.
        bank: the features, and where the run's images are in them.
        averages: ``averages_of`` the n training normals, which k-means divides.
        generator: which generator made each pseudo-anomaly.
        origin: which normal each pseudo-anomaly was made from.
        colouring: ``colouring_of`` the run.

    Raises:
        UserError: if the settings do not fit the data, such as too few normals for the clusters.
    """
    anomalies = len(bank.place) - len(averages) - len(generator)
    roles = Roles(len(averages), anomalies, np.asarray(generator), np.asarray(origin))
    subsets = subsets_on(config, roles, averages)
    support, query = pool_sets(subsets, roles)
    followed = roles.normals + roles.anomalies
    root = jax.random.key(config.seed)
    model_key, prior_key, run_key = jax.random.split(root, 3)
    references = min(config.detector.references, roles.normals)
    rng = np.random.default_rng([config.seed, 2])
    place = np.asarray(bank.place, np.int32)

    def placed(pools: PoolSet) -> PoolSet:
        return PoolSet(*(pool._replace(members=place[pool.members]) for pool in pools))

    groups = similar_normals(averages, config.detector.groups, config.seed)
    chosen = {
        "support": placed(support),
        "query": placed(query),
        "everything": placed(everything(roles)),
        "followed": place[:followed],
        "labels": (np.arange(followed) >= roles.normals).astype(np.float32),
        "error_weights": error_weights(subsets, roles),
        "groups": groups.astype(np.int32),
        "colouring": colouring,
        "reference": place[rng.choice(roles.normals, references, replace=False)],
    }
    data = TrainingData(inputs=bank.inputs, prior=draw_prior(prior_key), **jax.device_put(chosen))
    detector: Functional
    detector, model = make_model(config, bank.inputs.channels, model_key)
    # Which images are trained on is no matter to it, nor is the seed.
    learner = _learner(dataclasses.replace(config, data=DataConfig(""), seed=0), detector)
    return Problem(learner, model, data, subsets, run_key)


@functools.lru_cache(maxsize=8)
def _learner(config: Config, detector: Functional) -> Learner:
    """One for all runs with these settings, so that they share what is compiled."""
    return LEARNERS[config.learning.method](config, detector)
