"""psi: a sequence model that foresees the base models' scores, and the importance scores from it.

psi sees the scores of the last K epochs and predicts this epoch's (AHL Eq. 5); it never sees a
label. Its predictions, held against the labels, estimate each base model's generalisation error
r_i (Eq. 6), and w_i = softmax(-r)_i (Eq. 7). Without psi, r_i is each model's error rate as it is.
"""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Key

from ahl_jax.config.settings import ImportanceConfig
from ahl_jax.detectors.protocol import Params

PSI_BATCH = 48
"""Images per batch of psi."""


class ScorePredictor(nnx.Module):
    """Two-layer bidirectional LSTM with T units each way, then 2T hidden nodes, then T scores.

    With h [n, 2T] the LSTM's last output, the prediction is ``W' relu(W h + b) + b'`` [n, T]; for
    T = 6 the hidden nodes are the paper's 12. Initial states are zero and there is no dropout, so
    the prediction is deterministic. ``unroll`` of the K epochs are in one turn of the LSTM's loop.
    """

    def __init__(self, subsets: int, *, unroll: int = 1, rngs: nnx.Rngs):
        def way(inputs: int) -> nnx.RNN:
            return nnx.RNN(nnx.LSTMCell(inputs, subsets, rngs=rngs), unroll=unroll)

        def layer(inputs: int) -> nnx.Bidirectional:
            return nnx.Bidirectional(way(inputs), way(inputs), rngs=rngs)

        self.first = layer(subsets)
        self.second = layer(2 * subsets)
        self.hidden = nnx.Linear(2 * subsets, 2 * subsets, rngs=rngs)
        self.out = nnx.Linear(2 * subsets, subsets, rngs=rngs)

    def __call__(self, history: Float[Array, "n k t"]) -> Float[Array, "n t"]:
        """Predicted scores from the scores of K epochs, the oldest first."""
        zeros = jnp.zeros((history.shape[0], history.shape[2]), history.dtype)
        states = ((zeros, zeros), (zeros, zeros))
        sequence = cast(Array, self.first(history, initial_carry=states))
        sequence = cast(Array, self.second(sequence, initial_carry=states))
        return self.out(nnx.relu(self.hidden(sequence[:, -1])))


class Importance(NamedTuple):
    """State of the estimator."""

    params: Params
    optimizer: optax.OptState
    history: Float[Array, "n k t"]
    """Scores of the last K epochs, the oldest first."""

    weights: Float[Array, " t"]
    """w_i."""

    errors: Float[Array, " t"]
    """r_i; NaN while there is no estimate."""

    loss: Float[Array, ""]
    """psi's mean squared error on this epoch's scores before it trained on them; NaN at first."""


def estimated_error(
    predicted: Float[Array, "n t"], labels: Float[Array, " n"], weights: Float[Array, "t n"]
) -> Float[Array, " t"]:
    """r_i (AHL Eq. 6): the weighted squared error of the predicted scores, averaged over D'.

    Args:
        predicted: psi's prediction of each base model's score.
        labels: y_j, 0 for normals and 1 for anomalies.
        weights: c_j for each subset, 0 outside of D'.
    """
    squared = jnp.square(predicted - labels[:, None]).T
    return (weights * squared).sum(1) / jnp.maximum((weights > 0).sum(1), 1)


def error_rate(
    scores: Float[Array, "n t"], labels: Float[Array, " n"], weights: Float[Array, "t n"]
) -> Float[Array, " t"]:
    """The share of the training images outside of its support set that each base model gets wrong.

    A score on the scale of the labels stands for an anomaly from 0.5 on.

    Args:
        scores: s_j^t, on the scale of the labels.
        labels: y_j, 0 for normals and 1 for anomalies.
        weights: c_j for each subset: 0 for its support normals, below 1 for its support anomalies.
    """
    wrong = (labels > 0.5) != (scores >= 0.5).T
    outside = jnp.where(labels > 0.5, weights == 1, weights > 0)
    return (wrong & outside).sum(1) / jnp.maximum(outside.sum(1), 1)


def importance_scores(errors: Float[Array, " t"]) -> Float[Array, " t"]:
    """w_i (AHL Eq. 7): the softmax of the negative errors."""
    return jax.nn.softmax(-errors)


class Estimator:
    """Initialises and updates an ``Importance``; holds no arrays.

    Args:
        config: K, the learning rate of psi, and how w_i is set.
        subsets: T.
        batch: images per batch of psi.
    """

    def __init__(self, config: ImportanceConfig, subsets: int, batch: int = PSI_BATCH):
        self.config = config
        self.subsets = subsets
        self.batch = batch
        self.optimizer = optax.adam(config.psi_lr)
        # Flax's recurrent layers hold a random state for initial carries; ours are given.
        self.graph, _, *rest = nnx.split(self._module(jax.random.key(0)), nnx.Param, ...)
        (self.unused,) = rest

    def _module(self, key: Key[Array, ""]) -> ScorePredictor:
        # A turn of a loop costs a TPU more than the products in it. Elsewhere the loop stays, as
        # without it a CPU rounds otherwise.
        unroll = self.config.history if jax.default_backend() == "tpu" else 1
        return ScorePredictor(self.subsets, unroll=unroll, rngs=nnx.Rngs(key))

    def init(self, key: Key[Array, ""], images: int) -> Importance:
        """Uniform weights and an empty history for ``images`` training images."""
        params = nnx.to_pure_dict(nnx.state(self._module(key), nnx.Param))
        t = self.subsets
        return Importance(
            params=params,
            optimizer=self.optimizer.init(params),
            history=jnp.zeros((images, self.config.history, t)),
            # With a dtype, as after a restart: without one an epoch would be compiled anew.
            weights=jnp.full(t, 1 / t, float),
            errors=jnp.full(t, jnp.nan, float),
            loss=jnp.array(jnp.nan, float),
        )

    def predict(self, params: Params, history: Float[Array, "n k t"]) -> Float[Array, "n t"]:
        """Psi's prediction of the scores that follow ``history``."""
        return nnx.merge(self.graph, nnx.State(params), self.unused)(history)

    @jax.named_scope("importance, Eq. 5 to 7")
    def update(
        self,
        state: Importance,
        scores: Float[Array, "n t"],
        labels: Float[Array, " n"],
        error_weights: Float[Array, "t n"],
        epoch: Array,
        key: Key[Array, ""],
    ) -> Importance:
        """Take in an epoch's scores; from epoch K on, train psi on them and set r_i and w_i.

        Accuracy needs no history, so it sets them in every epoch.

        Args:
            state: state after the last epoch.
            scores: s_j^t, the base models' scores of every training image.
            labels: y_j, used for r_i only.
            error_weights: c_j of Eq. 6.
            epoch: t, from 0.
            key: orders psi's batches.
        """
        history = jnp.concatenate([state.history[:, 1:], scores[:, None]], axis=1)
        if self.config.importance == "uniform":
            return state._replace(history=history)
        if self.config.importance == "accuracy":
            errors = error_rate(scores, labels, error_weights).astype(state.errors.dtype)
            return state._replace(history=history, errors=errors, weights=importance_scores(errors))

        def estimate(state: Importance) -> Importance:
            params, optimizer, loss = self._train(state, scores, key)
            errors = estimated_error(self.predict(params, state.history), labels, error_weights)
            return Importance(params, optimizer, history, importance_scores(errors), errors, loss)

        return jax.lax.cond(
            epoch >= self.config.history, estimate, lambda s: s._replace(history=history), state
        )

    def _train(
        self, state: Importance, scores: Float[Array, "n t"], key: Key[Array, ""]
    ) -> tuple[Params, optax.OptState, Float[Array, ""]]:
        """Minimise psi's mean squared error on this epoch's scores, in one pass (AHL Eq. 5)."""
        images = scores.shape[0]
        batch = min(self.batch, images)
        batches = -(-images // batch)

        def loss_of(params: Params, history: Array, target: Array) -> Array:
            return jnp.square(self.predict(params, history) - target).mean()

        def step(carry: tuple[Params, optax.OptState], index: Array) -> tuple:
            params, optimizer = carry
            grads = jax.grad(loss_of)(params, state.history[index], scores[index])
            updates, optimizer = self.optimizer.update(grads, optimizer)
            return (optax.apply_updates(params, updates), optimizer), None

        def order(key: Key[Array, ""]) -> Array:
            # The last batch is filled up from the front, so every image is in at least one.
            shuffled = jax.random.permutation(key, images)
            return jnp.resize(shuffled, (batches, batch))

        # Split once, as runs of earlier versions did: they resume to the same result.
        (key,) = jax.random.split(key, 1)
        before = loss_of(state.params, state.history, scores)
        (params, optimizer), _ = jax.lax.scan(step, (state.params, state.optimizer), order(key))
        return params, optimizer, before
