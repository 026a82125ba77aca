"""The base detector alone: all training images as one set, no subsets, one model."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from ahl_jax.config.settings import Config
from ahl_jax.detectors.protocol import Functional, Model
from ahl_jax.learning.batches import draw_batches
from ahl_jax.learning.learner import (
    EpochLog,
    TrainingData,
    TrainState,
    learning_rate,
    optimizer,
    train_steps,
)


class Plain:
    """Trains a detector by itself, with the batches and the schedule of AHL's inner steps."""

    def __init__(self, config: Config, functional: Functional):
        self.config = config
        self.functional = functional
        self.optimizer = optimizer(config.learning.inner_optimizer, config.learning.clip)

    def init(
        self, model: Model, data: TrainingData, key: Key[Array, ""]
    ) -> tuple[TrainState, Key[Array, ""]]:
        """A fresh optimiser; the key is the run's."""
        del data
        return TrainState(model, self.optimizer.init(model.params)), key

    def epoch(
        self, state: tuple[TrainState, Key[Array, ""]], data: TrainingData, epoch: Array
    ) -> tuple[tuple[TrainState, Key[Array, ""]], EpochLog]:
        """One gradient step on each of ``steps`` batches."""
        trained, key = state
        learning = self.config.learning
        batches = draw_batches(
            jax.random.fold_in(key, epoch),
            data.everything,
            steps=learning.steps,
            batch=learning.batch,
            references=self.config.detector.references,
        )
        rate = learning_rate(learning.lr_base, learning, epoch)
        trained, losses = train_steps(self.functional, self.optimizer, trained, data, batches, rate)
        nan = jnp.full(1, jnp.nan)
        losses = losses.mean(0)
        return (trained, key), EpochLog(losses, jnp.full_like(losses, jnp.nan), nan, nan, nan[0])

    def model(self, state: tuple[TrainState, Key[Array, ""]]) -> Model:
        """The detector as trained so far."""
        return state[0].model

    def with_model(
        self, state: tuple[TrainState, Key[Array, ""]], model: Model
    ) -> tuple[TrainState, Key[Array, ""]]:
        """Another detector, with the optimiser as it is."""
        return state[0]._replace(model=model), state[1]


class Fit(Plain):
    """Leaves the detector as it was prepared: closed forms without any training."""

    def epoch(
        self, state: tuple[TrainState, Key[Array, ""]], data: TrainingData, epoch: Array
    ) -> tuple[tuple[TrainState, Key[Array, ""]], EpochLog]:
        """No step at all."""
        del data, epoch
        nan = jnp.full(1, jnp.nan)
        losses = jnp.full(len(self.functional.kind.heads), jnp.nan)
        return state, EpochLog(losses, losses, nan, nan, nan[0])
