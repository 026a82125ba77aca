"""The base of every learner: training data on the device, a gradient step, a scan of steps."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from ahl_jax.config.settings import LearningConfig
from ahl_jax.detectors.blocks import in_blocks
from ahl_jax.detectors.inputs import Inputs, mean_of
from ahl_jax.detectors.losses import Prior
from ahl_jax.detectors.protocol import Functional, Model, Params
from ahl_jax.distributed.mesh import data_shards, from_bank, over_subsets, split_images
from ahl_jax.learning.bank import FeatureBank
from ahl_jax.learning.batches import Batch, PoolSet


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "inputs", "support", "query", "everything", "followed", "labels", "error_weights",
        "groups", "colouring", "reference", "prior",
    ],
    meta_fields=[],
)  # fmt: skip
@dataclass(frozen=True)
class TrainingData:
    """Everything that a run reads, on the device once.

    For several seeds in one program every field but ``inputs`` has a leading seed axis.
    """

    inputs: FeatureBank
    """The bank: every training image of every seed, which the index arrays point into."""

    support: PoolSet
    """Support sets D_i^s, leading axis T."""

    query: PoolSet
    """Query sets D_i^q, leading axis T."""

    everything: PoolSet
    """All training images as one set, without a subset axis."""

    followed: Int[Array, " n"]
    """The images that psi follows: all normals and labelled anomalies."""

    labels: Float[Array, " n"]
    """y_j of those: 0 for normals, 1 for anomalies."""

    error_weights: Float[Array, "t n"]
    """c_j of AHL Eq. 6 of those, 0 outside of D'."""

    groups: Int[Array, " normals"]
    """Which group of similar normals each normal belongs to."""

    colouring: Float[Array, "d d"] | None
    """``Whitening.colouring`` of the features, where the detector has a closed form and reads them
    whitened."""

    reference: Int[Array, " r"]
    """The normals that inference compares with."""

    prior: Prior

    def images(self, index: Int[Array, " b"], *, same: bool = False) -> Inputs:
        """A batch of images of the bank, divided among the devices of the mesh's data axis.

        Args:
            index: positions in the bank.
            same: whether they are the same for all subsets.
        """
        bank: Any = self.inputs
        return split_images(from_bank(_take, bank, index, same=same))

    def reference_of(
        self, index: Int[Array, " r"], weights: Float[Array, " r"], *, same: bool = False
    ) -> Inputs:
        """The weighted mean of images of the bank, with no batch axis; ``same`` as above."""
        bank: Any = self.inputs
        return mean_of(from_bank(_take, bank, index, same=same), weights)

    def inference_reference(self) -> Inputs:
        """The mean of the reference normals, the same images at every scale."""
        weights = jnp.ones(self.reference.shape, self.labels.dtype)
        return self.reference_of(self.reference, weights, same=True)


def of_each_subset(
    function: Callable[[TrainingData, Any, Any], Any], data: TrainingData, shared: Any, own: Any
) -> Any:
    """``over_subsets`` of functions of the training data.

    Args:
        function: of the data, ``shared`` and one subset's ``own``.
        data: its bank may be divided among devices.
        shared: what all subsets have.
        own: a pytree of arrays with a leading subset axis.
    """

    def one(bank: Any, shared: tuple[TrainingData, Any], own: Any) -> Any:
        rest, others = shared
        return function(dataclasses.replace(rest, inputs=bank), others, own)

    rest = dataclasses.replace(data, inputs=NO_BANK)
    return over_subsets(one, data.inputs, (rest, shared), own)


def _take(inputs: Any, index: Int[Array, "*b"]) -> Any:
    return inputs.take(index)


SCORE_BATCH = 256
"""Images per step of a pass over all training images."""

NO_BANK: Any = ()
"""For ``dataclasses.replace``, where a seed's data is handled without the shared features."""


def prepared(functional: Functional, model: Model, data: TrainingData, normals: int) -> Model:
    """The model that training starts from, see ``Detector.prepare``.

    Args:
        functional: the detector.
        model: the detector as it is made.
        data: the training images; ``followed`` begins with the normals.
        normals: how many normals there are.
    """
    made = data.everything.pseudo.members[: None if functional.kind.by_pseudo else 0]
    of_normals, others = data.followed[:normals], data.followed[normals:]

    def one(model: Model) -> Model:
        # The normals apart: of 100,000 of them a copy of what is measured takes gigabytes.
        measured, rest = (
            in_batches(lambda index: functional.measured(model, data.images(index)), read)
            for read in (of_normals, jnp.concatenate([others, made]))
        )
        of_anomalies, of_pseudo = jnp.split(rest, [len(others)])
        return functional.prepared(
            model, measured, of_anomalies, of_pseudo, data.groups, data.colouring
        )

    return functional.each(one, model)


def in_batches(function: Callable[[Array], Any], index: Int[Array, " n"]) -> Any:
    """``function`` of n images, ``SCORE_BATCH`` at a time.

    Args:
        function: of the positions of some images; gives arrays with a row for each.
        index: all positions.
    """
    return in_blocks(function, index, SCORE_BATCH)


class EpochLog(NamedTuple):
    """The report of an epoch; NaN where a learner has no such thing."""

    support_losses: Float[Array, " heads"]
    query_losses: Float[Array, " heads"]
    errors: Float[Array, " t"]
    weights: Float[Array, " t"]
    psi_loss: Float[Array, ""]


class Learner(Protocol):
    """A way to train a detector: pure functions of arrays, so jit and vmap apply."""

    functional: Functional

    def init(self, model: Model, data: TrainingData, key: Key[Array, ""]) -> Any:
        """The state before the first epoch."""

    def epoch(self, state: Any, data: TrainingData, epoch: Array) -> tuple[Any, EpochLog]:
        """The state after one more epoch, whose number is ``epoch`` (from 0)."""

    def model(self, state: Any) -> Model:
        """The detector that inference uses."""

    def with_model(self, state: Any, model: Model) -> Any:
        """The state with another detector in it."""


def learning_rate(base: float, config: LearningConfig, epoch: Array) -> Float[Array, ""]:
    """Step decay."""
    return base * config.decay ** (epoch // config.decay_every)


def optimizer(kind: str, clip: float) -> optax.GradientTransformation:
    """Gradient clipping and Adam or plain SGD, without the learning rate.

    ``eps_root`` keeps Adam differentiable where a gradient is exactly zero; it is far below the
    squared gradients that matter.
    """
    inner = {"adam": optax.scale_by_adam(eps_root=1e-16), "sgd": optax.identity()}[kind]
    return optax.chain(optax.clip_by_global_norm(clip), inner)


def apply_step(params: Params, updates: Params, rate: Float[Array, ""]) -> Params:
    """Params - rate * updates."""
    return jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, params, updates)


def batch_loss(
    functional: Functional, params: Params, stats: Params, data: TrainingData, batch: Batch
) -> tuple[Float[Array, ""], tuple[Params, Float[Array, " heads"]]]:
    """A detector's loss on one batch; beside it the new running statistics and each head's loss."""
    batch = _divisible(batch)
    reference = data.reference_of(batch.reference, batch.reference_weights)
    return functional.loss(
        Model(params, stats),
        data.images(batch.index),
        reference,
        batch.labels,
        batch.weights,
        data.prior,
    )


def _divisible(batch: Batch) -> Batch:
    """A batch that devices can share evenly, filled up with images of no weight."""
    more = -batch.index.shape[0] % data_shards()
    if not more:
        return batch
    return dataclasses.replace(
        batch,
        index=jnp.pad(batch.index, (0, more), mode="edge"),
        weights=jnp.pad(batch.weights, (0, more)),
        labels=jnp.pad(batch.labels, (0, more), mode="edge"),
    )


class TrainState(NamedTuple):
    """A model in training."""

    model: Model
    optimizer: optax.OptState


def train_steps(
    functional: Functional,
    transform: optax.GradientTransformation,
    start: TrainState,
    data: TrainingData,
    batches: Batch,
    rate: Float[Array, ""],
    *,
    remat: bool = False,
) -> tuple[TrainState, Float[Array, "s heads"]]:
    """One gradient step per batch, in order (AHL Eq. 1); also returns each step's head losses.

    Args:
        functional: the detector.
        transform: what makes an update of a gradient.
        start: the model to start from and its optimiser state.
        data: the bank.
        batches: leading axis s.
        rate: learning rate.
        remat: recompute each step's forward pass when this is differentiated, to save memory.
    """

    def step(trained: TrainState, batch: Batch) -> tuple[TrainState, Float[Array, " heads"]]:
        (params, stats), state = trained
        loss = jax.value_and_grad(batch_loss, argnums=1, has_aux=True)
        (_, (stats, losses)), grads = loss(functional, params, stats, data, batch)
        updates, state = transform.update(grads, state, params)
        return TrainState(Model(apply_step(params, updates, rate), stats), state), losses

    return jax.lax.scan(jax.checkpoint(step) if remat else step, start, batches)
