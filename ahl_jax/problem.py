"""From feature maps to a training problem: bank, subsets, batches' pools, and a fresh model."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from ahl_jax.backbones import TRUNKS
from ahl_jax.bank import Maps, SharedBank, shared_bank
from ahl_jax.batches import PoolSet
from ahl_jax.cdl import CDL
from ahl_jax.config import Config
from ahl_jax.detectors import DETECTORS, Functional, Model
from ahl_jax.ensemble import Ensemble, make_model
from ahl_jax.errors import UserError
from ahl_jax.hadg import (
    Bank,
    Subset,
    cluster_normals,
    error_weights,
    everything,
    make_subsets,
    pool_sets,
    random_groups,
)
from ahl_jax.learning import Learner, TrainingData
from ahl_jax.losses import draw_prior
from ahl_jax.plain import Plain
from ahl_jax.pseudo import GENERATORS


@dataclass(frozen=True)
class Problem:
    """All that training needs."""

    learner: Learner
    model: Model
    """The detector before training."""

    data: TrainingData
    subsets: list[Subset]
    key: Key[Array, ""]


def check_names(config: Config) -> None:
    """Find a name that no registry has before any work is done.

    Raises:
        UserError: naming the option and the choices.
    """
    for option, names, known in (
        ("detector", [config.detector.detector], DETECTORS),
        ("trunk", [config.features.trunk], TRUNKS),
        ("generators", config.pseudo.generators, GENERATORS),
    ):
        for name in names:
            if name not in known:
                raise UserError(
                    f"--{option} has no '{name}'; choose from {', '.join(sorted(known))}"
                )


LEARNERS: dict[str, Callable[[Config, Functional], Learner]] = {
    "ahl": CDL,
    "base": Plain,
    "ensemble": Ensemble,
}


def make_problem(
    config: Config,
    normals: Maps,
    anomalies: Maps,
    pseudo: Maps,
    generator: Int[np.ndarray, " p"],
    source: Int[np.ndarray, " p"],
    *,
    bank: SharedBank | None = None,
) -> Problem:
    """Set up a run from the feature maps of its training images, one array per scale.

    Args:
        config: the run's settings.
        normals: maps of the n training normals.
        anomalies: maps of the M labelled anomalies.
        pseudo: maps of the pseudo-anomalies.
        generator: which generator made each pseudo-anomaly.
        source: which normal each pseudo-anomaly was made from.
        bank: features that are on the device already, and where this run's images are in them, in
            the order normals, anomalies, pseudo-anomalies; made from the maps if not given.

    Raises:
        UserError: if the settings do not fit the data, such as too few normals for the clusters.
    """
    roles = Bank(len(normals[0]), len(anomalies[0]), np.asarray(generator), np.asarray(source))
    if bank is None:
        (bank,) = shared_bank([(normals, anomalies, pseudo)], config.features.precision)
    if config.subsets.grouping == "random":
        clusters = random_groups(roles.normals, config.subsets.clusters, config.seed)
    else:
        pooled = np.concatenate([m.mean(axis=(1, 2), dtype=np.float64) for m in normals], axis=1)
        clusters = cluster_normals(pooled, config.subsets.clusters, config.seed)
    subsets = make_subsets(
        config.subsets, roles, clusters, len(config.pseudo.generators), config.seed
    )
    support, query = pool_sets(subsets, roles)
    followed = roles.normals + roles.anomalies
    root = jax.random.key(config.seed)
    model_key, prior_key, run_key = jax.random.split(root, 3)
    references = min(config.detector.references, roles.normals)
    rng = np.random.default_rng([config.seed, 2])
    place = jnp.asarray(bank.place, jnp.int32)

    def placed(pools: PoolSet) -> PoolSet:
        return PoolSet(*(pool._replace(members=place[pool.members]) for pool in pools))

    data = TrainingData(
        inputs=bank.inputs,
        support=placed(support),
        query=placed(query),
        everything=placed(everything(roles)),
        followed=place[:followed],
        labels=jnp.asarray(np.arange(followed) >= roles.normals, jnp.float32),
        error_weights=jnp.asarray(error_weights(subsets, roles)),
        reference=place[rng.choice(roles.normals, references, replace=False)],
        prior=draw_prior(prior_key),
    )
    detector: Functional
    detector, model = make_model(config, bank.inputs.channels, model_key)
    learner = LEARNERS[config.learning.method](config, detector)
    return Problem(learner, model, data, subsets, run_key)
