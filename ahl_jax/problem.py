"""From feature maps to a training problem: bank, subsets, batches' pools, and a fresh model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ahl_jax.backbones import TRUNKS
from ahl_jax.cdl import CDL
from ahl_jax.config import Config
from ahl_jax.detectors import DETECTORS, Functional, Model, make_detector
from ahl_jax.detectors.inputs import make_inputs
from ahl_jax.errors import UserError
from ahl_jax.hadg import (
    Bank,
    Subset,
    cluster_normals,
    error_weights,
    everything,
    make_subsets,
    pool_sets,
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


LEARNERS: dict[str, Callable[[Config, Functional], Learner]] = {"ahl": CDL, "base": Plain}


def make_problem(
    config: Config,
    normals: Sequence[Float[np.ndarray, "n h w c"]],
    anomalies: Sequence[Float[np.ndarray, "m h w c"]],
    pseudo: Sequence[Float[np.ndarray, "p h w c"]],
    generator: Int[np.ndarray, " p"],
    source: Int[np.ndarray, " p"],
) -> Problem:
    """Set up a run from the feature maps of its training images, one array per scale.

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
    bank = Bank(len(normals[0]), len(anomalies[0]), np.asarray(generator), np.asarray(source))
    maps = [np.concatenate(parts) for parts in zip(normals, anomalies, pseudo, strict=True)]
    inputs = make_inputs(maps)
    pooled = np.concatenate([m.mean(axis=(1, 2), dtype=np.float64) for m in normals], axis=1)
    clusters = cluster_normals(pooled, config.subsets.clusters, config.seed)
    subsets = make_subsets(
        config.subsets, bank, clusters, len(config.pseudo.generators), config.seed
    )
    support, query = pool_sets(subsets)
    root = jax.random.key(config.seed)
    model_key, prior_key, run_key = jax.random.split(root, 3)
    references = min(config.detector.references, bank.normals)
    rng = np.random.default_rng([config.seed, 2])
    labels = np.zeros(bank.normals + bank.anomalies, np.float32)
    labels[bank.normals :] = 1
    data = TrainingData(
        inputs=inputs,
        support=support,
        query=query,
        labels=jnp.asarray(labels),
        error_weights=jnp.asarray(error_weights(subsets, bank)),
        everything=everything(bank),
        reference=jnp.asarray(rng.choice(bank.normals, references, replace=False)),
        prior=draw_prior(prior_key),
    )
    detector: Functional
    detector, model = make_detector(config.detector, inputs[0].channels, model_key)
    learner = LEARNERS[config.learning.method](config, detector)
    return Problem(learner, model, data, subsets, run_key)
