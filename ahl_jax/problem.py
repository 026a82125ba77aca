"""From feature maps to a training problem: bank, subsets, batches' pools, and a fresh model."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ahl_jax.backbones import TRUNKS
from ahl_jax.bank import HostBank, Maps, SharedBank, global_averages, shared_bank
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
    similar_normals,
)
from ahl_jax.learning import Learner, TrainingData
from ahl_jax.losses import draw_prior
from ahl_jax.plain import Fit, Plain
from ahl_jax.pseudo import GENERATORS
from ahl_jax.whitening import fit_whitening


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
    name, method = config.detector.detector, config.learning.method
    kind = DETECTORS[name]
    if kind.whitened and not config.features.whiten:
        raise UserError(f"the detector {name} needs --whiten; turn it on")
    if not kind.trained and method != "fit":
        raise UserError(f"the detector {name} has nothing to train; add --method fit")
    begun = config.source or (config.stage_one.stage_one and config.stage_one.stage_one_heads)
    if method == "fit" and kind.trained and not kind.calibrates() and not begun:
        able = [
            other + " (with --whiten)" * one.whitened
            for other, one in sorted(DETECTORS.items())
            if one.calibrates() or not one.trained
        ]
        raise UserError(
            f"the detector {name} has no closed form, so --method fit would leave its random "
            f"weights; choose another --method, or --detector {', '.join(able)}"
        )


LEARNERS: dict[str, Callable[[Config, Functional], Learner]] = {
    "ahl": CDL,
    "base": Plain,
    "fit": Fit,
    "ensemble": Ensemble,
}


def method_name(config: Config) -> str:
    """What a run trains, such as AHL(DRA)."""
    kind = DETECTORS[config.detector.detector].__name__
    names = {"ahl": f"AHL({kind})", "ensemble": f"An ensemble of {kind}"}
    return names.get(config.learning.method, kind)


def make_problem(
    config: Config,
    normals: Maps,
    anomalies: Maps,
    pseudo: Maps,
    generator: Int[np.ndarray, " p"],
    source: Int[np.ndarray, " p"],
) -> Problem:
    """Set up a run from the feature maps of its training images, one array per scale.

    Its bank is on the default device.

    Args:
        config: the run's settings.
        normals: maps of the n training normals.
        anomalies: maps of the M labelled anomalies.
        pseudo: maps of the pseudo-anomalies.
        generator: which generator made each pseudo-anomaly.
        source: which normal each pseudo-anomaly was made from.

    Raises:
        UserError: if the settings do not fit the data, such as too few normals for the clusters.
    """
    averages = global_averages(normals)
    whitening = fit_whitening(averages, len(normals)) if config.features.whiten else None
    maps = normals, anomalies, pseudo
    (bank,) = shared_bank([maps], config.features.precision, whitening=whitening)
    assert isinstance(bank.inputs, HostBank)
    bank = bank._replace(inputs=bank.inputs.on_device())
    return problem_on(config, bank, averages, generator, source)


def subsets_on(config: Config, roles: Bank, averages: Float[np.ndarray, "n d"]) -> list[Subset]:
    """The heterogeneous subsets of a run.

    Args:
        config: the run's settings.
        roles: what the positions of its images are.
        averages: ``global_averages`` of the n training normals, which k-means divides.

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
    source: Int[np.ndarray, " p"],
) -> Problem:
    """Set up a run whose images are in a bank.

    Args:
        config: the run's settings.
        bank: the features, and where the run's images are in them.
        averages: ``global_averages`` of the n training normals, which k-means divides.
        generator: which generator made each pseudo-anomaly.
        source: which normal each pseudo-anomaly was made from.

    Raises:
        UserError: if the settings do not fit the data, such as too few normals for the clusters.
    """
    anomalies = len(bank.place) - len(averages) - len(generator)
    roles = Bank(len(averages), anomalies, np.asarray(generator), np.asarray(source))
    subsets = subsets_on(config, roles, averages)
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
        groups=jnp.asarray(
            similar_normals(averages, config.detector.groups, config.seed), jnp.int32
        ),
        reference=place[rng.choice(roles.normals, references, replace=False)],
        prior=draw_prior(prior_key),
    )
    detector: Functional
    detector, model = make_model(config, bank.inputs.channels, model_key)
    learner = LEARNERS[config.learning.method](config, detector)
    return Problem(learner, model, data, subsets, run_key)
