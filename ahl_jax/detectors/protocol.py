"""The protocol of a base detector, and how the learning code runs one as a pure function.

A detector is a Flax NNX module that scores feature maps with one or more heads. It is split once
into its graph and its arrays; everything after that is a function of arrays, so that vmap over
subsets, scan over steps and differentiation through training apply.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ahl_jax.config.settings import DetectorConfig
from ahl_jax.detectors.blocks import in_blocks
from ahl_jax.detectors.inputs import Inputs
from ahl_jax.detectors.losses import Prior, deviation_loss, weighted_mean

NORMAL, ANOMALY, PSEUDO = 0, 1, 2
"""Labels of training samples."""

_ROWS = 4096
"""Images of which the scores of all heads are measured at a time."""

Params = dict[str, Any]
"""Nested dict of arrays."""


class Detector(nnx.Module):
    """A base detector: subclass it in a new file and add one line to ``DETECTORS``.

    The constructor takes ``(channels, config, *, rngs)``.
    """

    heads: ClassVar[tuple[str, ...]]
    """Names of the heads, in the order of the last axis of ``head_scores``."""

    whitened: ClassVar[bool] = False
    """Whether it needs whitened features, see ``ahl_jax.detectors.whitening``."""

    by_pooled: ClassVar[bool] = False
    """Whether pooled features alone decide its scores, until it is trained: it has
    ``measure_pooled`` and ``measured_scores`` then."""

    by_pseudo: ClassVar[bool] = False
    """Whether ``prepare`` reads pseudo-anomalies, so that those who only fit it make some."""

    takes_local: ClassVar[bool] = False
    """Whether a ``LocalHead`` may add to its scores: it has ``plus_local`` and the head ``local``,
    which shows that one's scores."""

    added: ClassVar[tuple[str, ...]] = ()
    """Matrices among the parameters that change nothing while they are 0; ``inferring`` leaves
    them without rows then."""

    trained: ClassVar[bool] = True
    """Whether there is anything to train after ``prepare``; otherwise only ``fit`` takes it."""

    @classmethod
    def has_closed_form(cls) -> bool:
        """Whether ``prepare`` sets anything."""
        return cls.prepare is not Detector.prepare

    @abstractmethod
    def __init__(self, channels: int, config: DetectorConfig, *, rngs: nnx.Rngs):
        raise NotImplementedError

    def measure(self, inputs: Inputs) -> Float[Array, "b r"]:
        """The rows that ``prepare`` reads, one for each of b images; by default empty."""
        return jnp.zeros((inputs.images, 0))

    def measure_pooled(self, z: Float[Array, "b d"]) -> Float[Array, "b r"]:
        """``measure`` of b images by their whitened pooled features.

        What depends on single locations, and decides no score, is 0.
        """
        raise NotImplementedError

    def measured_scores(self, rows: Float[Array, "b r"]) -> Float[Array, "b heads"]:
        """``head_scores`` at inference, of b images by what ``measure`` gives of them."""
        raise NotImplementedError

    def prepare(
        self,
        normals: Float[Array, "n r"],
        anomalies: Float[Array, "m r"],
        pseudo: Float[Array, "p r"],
        groups: Int[Array, " n"],
        colouring: Float[Array, "d d"] | None = None,
    ) -> None:
        """Set, in place, what training starts from by the training images; by default nothing.

        Args:
            normals: what ``measure`` gives of all training normals.
            anomalies: the same of all labelled anomalies, of which there may be none.
            pseudo: the same of all pseudo-anomalies, if the detector is ``by_pseudo``; else none.
            groups: to which of the ``DetectorConfig.groups`` groups each normal belongs.
            colouring: ``Whitening.colouring`` of the features; None where they are not whitened.
        """

    @abstractmethod
    def head_scores(
        self,
        inputs: Inputs,
        reference: Inputs,
        weights: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b heads"]:
        """Scores of b images.

        Args:
            inputs: b images.
            reference: the mean of some normal images, with no batch axis.
            weights: in training, how often each image counts in the batch (0 for padding); None
                at inference.
        """

    @abstractmethod
    def losses(
        self,
        head_scores: Float[Array, "b heads"],
        labels: Int[Array, " b"],
        weights: Float[Array, " b"],
        prior: Prior,
    ) -> Float[Array, " heads"]:
        """The training loss of each head, weighted means over the images; they are summed."""

    @abstractmethod
    def total_score(self, head_scores: Float[Array, "*b heads"]) -> Float[Array, "*b"]:
        """The anomaly score; higher is more anomalous."""

    def label_score(self, head_scores: Float[Array, "*b heads"]) -> Float[Array, "*b"]:
        """The score on the scale of the labels: 0 for an ideal normal, 1 for an ideal anomaly.

        AHL Eq. 6 compares scores with labels, so psi follows this one. Override it where the total
        score is on another scale.
        """
        return self.total_score(head_scores)

    def plus_local(
        self, scores: Float[Array, " b"], local: Float[Array, " b"]
    ) -> Float[Array, " b"]:
        """Total scores with what a ``LocalHead`` adds, of a detector that ``takes_local``."""
        raise NotImplementedError

    @abstractmethod
    def location_maps(self, inputs: Inputs, reference: Inputs) -> tuple[Float[Array, "b h w"], ...]:
        """Anomaly score of every location, one map per scale; higher is more anomalous."""


@dataclass(frozen=True)
class Head:
    """A head trained with the deviation loss."""

    name: str
    targets: tuple[int | None, int | None, int | None]
    """Target for normals, anomalies and pseudo-anomalies; None where the head does not train."""

    factor: float = 1
    """Its share in the total score; negative where a high score means normal."""


class DeviationDetector(Detector):
    """A detector whose heads are all trained with the deviation loss; score = weighted sum."""

    table: ClassVar[tuple[Head, ...]]
    margin: float

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "table"):
            cls.heads = tuple(head.name for head in cls.table)

    def losses(
        self,
        head_scores: Float[Array, "b heads"],
        labels: Int[Array, " b"],
        weights: Float[Array, " b"],
        prior: Prior,
    ) -> Float[Array, " heads"]:
        """Weighted mean deviation loss of every head over the images that it trains on."""
        lookup = jnp.array(
            [[(0, 0) if t is None else (t, 1) for t in head.targets] for head in self.table],
            dtype=head_scores.dtype,
        )
        targets, trains = lookup[:, labels, 0].T, lookup[:, labels, 1].T
        each = deviation_loss(head_scores, targets, prior, self.margin)
        return weighted_mean(each, weights[:, None] * trains)

    def total_score(self, head_scores: Float[Array, "*b heads"]) -> Float[Array, "*b"]:
        """Sum of the heads' scores, each with its factor."""
        return head_scores @ jnp.array([h.factor for h in self.table], head_scores.dtype)

    def label_score(self, head_scores: Float[Array, "*b heads"]) -> Float[Array, "*b"]:
        """The total score, scaled so that the heads' targets for normals and anomalies are 0 and 1.

        A target of 0 puts a head's score at 0, a target of 1 at the margin; a head that does not
        train on anomalies is taken to leave them at 0.
        """
        normal, anomaly = (
            self.margin * sum(h.factor * (h.targets[label] or 0) for h in self.table)
            for label in (NORMAL, ANOMALY)
        )
        # Heads that tell no difference by their targets keep their own scale.
        return (self.total_score(head_scores) - normal) / ((anomaly - normal) or 1.0)


class Model(NamedTuple):
    """The arrays of a detector."""

    params: Params
    """Trained by gradients."""

    stats: Params
    """Running statistics."""

    def arrays(self) -> dict[str, Params]:
        """Both by name, for a checkpoint; only those that the detector has."""
        return {name: values for name, values in self._asdict().items() if values}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Any]) -> "Model":
        """The inverse of ``arrays``."""
        return cls(arrays.get("params", {}), arrays.get("stats", {}))


@dataclass(frozen=True)
class Functional:
    """A detector as pure functions of a ``Model``."""

    graph: nnx.GraphDef
    kind: type[Detector]

    def merge(self, model: Model) -> Detector:
        """The module with the arrays of ``model``."""
        return nnx.merge(self.graph, nnx.State(model.params), nnx.State(model.stats))

    def inferring(self, model: Model) -> Model:
        """The model for inference: those of ``Detector.added`` that are 0 take no room or time."""
        matrices = {name: model.params[name] for name in self.kind.added}
        empty = {name: x[..., :0, :] for name, x in matrices.items() if not jnp.any(x)}
        return model._replace(params=model.params | empty)

    def each(self, function: Callable[[Model], Model], model: Model) -> Model:
        """``function`` of every detector that the model holds, which is one."""
        return function(model)

    def measured(self, model: Model, inputs: Inputs) -> Float[Array, "b r"]:
        """The rows of ``Detector.measure``."""
        return self.merge(model).measure(inputs)

    def prepared(
        self,
        model: Model,
        normals: Float[Array, "n r"],
        anomalies: Float[Array, "m r"],
        pseudo: Float[Array, "p r"],
        groups: Int[Array, " n"],
        colouring: Float[Array, "d d"] | None = None,
    ) -> Model:
        """The model after ``Detector.prepare``."""
        detector = self.merge(model)
        detector.prepare(normals, anomalies, pseudo, groups, colouring)
        return functional(detector)[1]

    def prepared_by_pooled(
        self,
        model: Model,
        normals: Float[Array, "n d"],
        anomalies: Float[Array, "m d"],
        pseudo: Float[Array, "p d"],
        groups: Int[Array, " n"],
        colouring: Float[Array, "d d"],
    ) -> Model:
        """The same by whitened pooled features alone, of a detector that is ``by_pooled``."""
        measure = self.merge(model).measure_pooled
        rows = in_blocks(measure, normals, _ROWS), measure(anomalies), measure(pseudo)
        return self.prepared(model, *rows, groups, colouring)

    def score_by_pooled(
        self, model: Model, z: Float[Array, "b d"], local: Float[Array, " b"] | None = None
    ) -> Float[Array, " b"]:
        """``score`` by whitened pooled features alone."""
        detector = self.merge(model)
        return _total(detector, detector.measured_scores(detector.measure_pooled(z)), local)

    def loss(
        self,
        model: Model,
        inputs: Inputs,
        reference: Inputs,
        labels: Int[Array, " b"],
        weights: Float[Array, " b"],
        prior: Prior,
    ) -> tuple[Float[Array, ""], tuple[Params, Float[Array, " heads"]]]:
        """Sum of the heads' losses on a training batch; beside it the new stats and each loss."""
        detector = self.merge(model)
        losses = detector.losses(
            detector.head_scores(inputs, reference, weights), labels, weights, prior
        )
        return losses.sum(), (_pure(nnx.state(detector, nnx.BatchStat)), losses)

    def head_scores(
        self, model: Model, inputs: Inputs, reference: Inputs
    ) -> Float[Array, "b heads"]:
        """Scores of every head at inference."""
        return self.merge(model).head_scores(inputs, reference)

    def score(
        self,
        model: Model,
        inputs: Inputs,
        reference: Inputs,
        local: Float[Array, " b"] | None = None,
    ) -> Float[Array, " b"]:
        """Anomaly scores at inference, with those of a ``LocalHead`` if it has one."""
        detector = self.merge(model)
        return _total(detector, detector.head_scores(inputs, reference), local)

    def location_maps(
        self, model: Model, inputs: Inputs, reference: Inputs
    ) -> tuple[Float[Array, "b h w"], ...]:
        """Anomaly score of every location at inference, one map per scale."""
        return self.merge(model).location_maps(inputs, reference)

    def label_score(self, model: Model, inputs: Inputs, reference: Inputs) -> Float[Array, " b"]:
        """Scores at inference on the scale of the labels."""
        detector = self.merge(model)
        return detector.label_score(detector.head_scores(inputs, reference))


def functional(detector: Detector) -> tuple[Functional, Model]:
    """Split a detector into pure functions and its arrays."""
    graph, params, *others = nnx.split(detector, nnx.Param, nnx.BatchStat)
    (stats,) = others
    return Functional(graph, type(detector)), Model(_pure(params), _pure(stats))


def _total(
    detector: Detector, head_scores: Float[Array, "b heads"], local: Float[Array, " b"] | None
) -> Float[Array, " b"]:
    scores = detector.total_score(head_scores)
    return scores if local is None else detector.plus_local(scores, local)


def _pure(state: nnx.State) -> Params:
    return nnx.to_pure_dict(state)
