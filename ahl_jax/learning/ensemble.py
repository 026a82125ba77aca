"""T base detectors, each trained alone on all training images; the score is the mean of theirs."""

import jax
from jaxtyping import Array, Key

from ahl_jax.config.settings import Config
from ahl_jax.detectors import Functional, Model
from ahl_jax.learning.base import Plain
from ahl_jax.learning.learner import EpochLog, TrainingData, TrainState, of_each_subset


class Ensemble:
    """Trains T detectors side by side, each as ``Plain`` does with batches of its own."""

    def __init__(self, config: Config, functional: Functional):
        self.functional = functional
        self.plain = Plain(config, functional)

    def init(
        self, model: Model, data: TrainingData, key: Key[Array, ""]
    ) -> tuple[TrainState, Key[Array, " t"]]:
        """An optimiser and a key for each model."""
        keys = jax.random.split(key, len(jax.tree.leaves(model)[0]))
        return jax.vmap(lambda one, key: self.plain.init(one, data, key))(model, keys)

    def epoch(
        self, state: tuple[TrainState, Key[Array, " t"]], data: TrainingData, epoch: Array
    ) -> tuple[tuple[TrainState, Key[Array, " t"]], EpochLog]:
        """One epoch of every model; the losses are their means."""
        state, log = of_each_subset(
            lambda data, epoch, one: self.plain.epoch(one, data, epoch), data, epoch, state
        )
        return state, jax.tree.map(lambda x: x.mean(0), log)

    def model(self, state: tuple[TrainState, Key[Array, " t"]]) -> Model:
        """The detectors as trained so far."""
        return state[0].model

    def with_model(
        self, state: tuple[TrainState, Key[Array, " t"]], model: Model
    ) -> tuple[TrainState, Key[Array, " t"]]:
        """Other detectors, with the optimisers as they are."""
        return self.plain.with_model(state, model)
