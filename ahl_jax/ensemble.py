"""T base detectors, each trained alone on all training images; the score is the mean of theirs."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
from jaxtyping import Array, Float, Key

from ahl_jax.config import Config
from ahl_jax.detectors import Functional, Inputs, Model, make_detector
from ahl_jax.devices import over_subsets
from ahl_jax.learning import EpochLog, Trained, TrainingData
from ahl_jax.plain import Plain


@dataclass(frozen=True)
class MeanScore(Functional):
    """The scores of models with a leading axis T.

    ``merge``, ``loss``, ``measured`` and ``calibrated`` are of one of them.
    """

    def each(self, function: Callable[[Model], Model], model: Model) -> Model:
        """``function`` of every one of the models."""
        return jax.vmap(function)(model)

    def score(self, model: Model, inputs: Inputs, reference: Inputs) -> Float[Array, " b"]:
        """The mean over the models."""
        return jax.vmap(super().score, (0, None, None))(model, inputs, reference).mean(0)

    def head_scores(
        self, model: Model, inputs: Inputs, reference: Inputs
    ) -> Float[Array, "b heads"]:
        """The mean over the models."""
        return jax.vmap(super().head_scores, (0, None, None))(model, inputs, reference).mean(0)

    def location_maps(
        self, model: Model, inputs: Inputs, reference: Inputs
    ) -> tuple[Float[Array, "b h w"], ...]:
        """The means over the models."""
        maps = jax.vmap(super().location_maps, (0, None, None))(model, inputs, reference)
        return tuple(scale.mean(0) for scale in maps)


def make_model(config: Config, channels: int, key: Key[Array, ""]) -> tuple[Functional, Model]:
    """The fresh detector that ``config`` trains; an ensemble has T, with a leading axis.

    Raises:
        UserError: if there is no detector of that name.
    """
    one, model = make_detector(config.detector, channels, key)
    if config.learning.method != "ensemble":
        return one, model
    keys = jax.random.split(key, config.subsets.subsets)
    models = jax.vmap(lambda key: make_detector(config.detector, channels, key)[1])(keys)
    return MeanScore(one.graph, one.kind), models


class Ensemble:
    """Trains T detectors side by side, each as ``Plain`` does with batches of its own."""

    def __init__(self, config: Config, functional: Functional):
        self.functional = functional
        self.plain = Plain(config, functional)

    def init(
        self, model: Model, data: TrainingData, key: Key[Array, ""]
    ) -> tuple[Trained, Key[Array, " t"]]:
        """An optimiser and a key for each model."""
        keys = jax.random.split(key, len(jax.tree.leaves(model)[0]))
        return jax.vmap(lambda one, key: self.plain.init(one, data, key))(model, keys)

    def epoch(
        self, state: tuple[Trained, Key[Array, " t"]], data: TrainingData, epoch: Array
    ) -> tuple[tuple[Trained, Key[Array, " t"]], EpochLog]:
        """One epoch of every model; the losses are their means."""
        state, log = over_subsets(
            lambda shared, one: self.plain.epoch(one, *shared), (data, epoch), state
        )
        return state, jax.tree.map(lambda x: x.mean(0), log)

    def model(self, state: tuple[Trained, Key[Array, " t"]]) -> Model:
        """The detectors as trained so far."""
        return state[0].model

    def with_model(
        self, state: tuple[Trained, Key[Array, " t"]], model: Model
    ) -> tuple[Trained, Key[Array, " t"]]:
        """Other detectors, with the optimisers as they are."""
        return self.plain.with_model(state, model)
