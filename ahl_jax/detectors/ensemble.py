"""T detectors of one kind as one detector, whose score is the mean of theirs."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
from jaxtyping import Array, Float, Key

from ahl_jax.config.settings import Config
from ahl_jax.detectors import blocks_of, make_detector
from ahl_jax.detectors.inputs import Inputs
from ahl_jax.detectors.protocol import Functional, Model


@dataclass(frozen=True)
class MeanScore(Functional):
    """The scores of models with a leading axis T.

    ``merge``, ``loss``, ``measured`` and ``prepared`` are of one of them.
    """

    def each(self, function: Callable[[Model], Model], model: Model) -> Model:
        """``function`` of every one of the models."""
        return jax.vmap(function)(model)

    def score(
        self,
        model: Model,
        inputs: Inputs,
        reference: Inputs,
        local: Float[Array, " b"] | None = None,
    ) -> Float[Array, " b"]:
        """The mean over the models."""
        of_each = jax.vmap(super().score, (0, None, None, None))
        return of_each(model, inputs, reference, local).mean(0)

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

    def make(key: Key[Array, ""]) -> tuple[Functional, Model]:
        return make_detector(config.detector, channels, key, blocks_of(config).total)

    one, model = make(key)
    if config.learning.method != "ensemble":
        return one, model
    keys = jax.random.split(key, config.subsets.subsets)
    models = jax.vmap(lambda key: make(key)[1])(keys)
    return MeanScore(one.graph, one.kind), models
