"""psi: a sequence model that foresees the base models' scores, and the importance scores from it.

psi sees the scores of the last K epochs and predicts this epoch's (AHL Eq. 5); it never sees a
label. Its predictions, held against the labels, estimate each base model's generalisation error
r_i (Eq. 6), and w_i = softmax(-r)_i (Eq. 7). Without psi, r_i is each model's error rate as it is.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from ahl_jax.config.settings import ImportanceConfig
from ahl_jax.detectors.protocol import Params

PSI_BATCH = 48
"""Images per batch of psi."""


class ScorePredictor(nnx.Module):
    """Two-layer bidirectional LSTM with T units each way, then 2T hidden nodes, then T scores.

    With h [n, 2T] the LSTM's last output, the prediction is ``W' relu(W h + b) + b'`` [n, T]; for
    T = 6 the hidden nodes are the paper's 12. Initial states are zero and there is no dropout, so
    the prediction is deterministic.

    Flax's cells hold the parameters. Its own loop has 8 products in each of K turns, each way and
    layer. Here one product reads all K epochs for the four gates, and both ways take their turns
    together.
    """

    def __init__(self, subsets: int, *, rngs: nnx.Rngs):
        def way(inputs: int) -> nnx.RNN:
            return nnx.RNN(nnx.LSTMCell(inputs, subsets, rngs=rngs))

        def layer(inputs: int) -> nnx.Bidirectional:
            return nnx.Bidirectional(way(inputs), way(inputs), rngs=rngs)

        self.first = layer(subsets)
        self.second = layer(2 * subsets)
        self.hidden = nnx.Linear(2 * subsets, 2 * subsets, rngs=rngs)
        self.out = nnx.Linear(2 * subsets, subsets, rngs=rngs)

    def __call__(self, history: Float[Array, "n k t"]) -> Float[Array, "n t"]:
        """Predicted scores from the scores of K epochs, the oldest first."""
        epochs = history.swapaxes(0, 1)
        both = jnp.stack([epochs, epochs[::-1]])
        ahead, back = _Gates.of(self.first).outputs(both).swapaxes(0, 1)
        epochs = jnp.concatenate([ahead, back[::-1]], axis=-1)
        # Of the second layer the last epoch's outputs are read, and the way back begins with it.
        second = _Gates.of(self.second)
        ahead = second.way(0).outputs(epochs[None])[-1, 0]
        back = second.way(1).first_output(epochs[None, -1])[0]
        return self.out(nnx.relu(self.hidden(jnp.concatenate([ahead, back], axis=-1))))


class _Gates(NamedTuple):
    """The parameters of d LSTM cells; the gates i, f, g and o lie side by side."""

    inputs: Float[Array, "d i 4t"]
    recurrent: Float[Array, "d t 4t"]
    bias: Float[Array, "d 4t"]

    @classmethod
    def of(cls, layer: nnx.Bidirectional) -> "_Gates":
        """Those of the forward and the backward way."""
        cells: list[Any] = [
            cast(nnx.RNN, way).cell for way in (layer.forward_rnn, layer.backward_rnn)
        ]

        def joined(values: Callable[[Any], Sequence[Any]]) -> Array:
            return jnp.stack([jnp.concatenate([v[...] for v in values(c)], -1) for c in cells])

        return cls(
            joined(lambda c: [g.kernel for g in (c.ii, c.if_, c.ig, c.io)]),
            joined(lambda c: [g.kernel for g in (c.hi, c.hf, c.hg, c.ho)]),
            joined(lambda c: [g.bias for g in (c.hi, c.hf, c.hg, c.ho)]),
        )

    def way(self, number: int) -> "_Gates":
        """Those of one cell."""
        return _Gates(*(x[number : number + 1] for x in self))

    def outputs(self, sequences: Float[Array, "d k n i"]) -> Float[Array, "k d n t"]:
        """The cells' outputs in every turn, each of its own sequence, from states of zero."""
        read = jnp.einsum("dkni,dig->kdng", sequences, self.inputs) + self.bias[:, None]
        # A turn of a loop takes an accelerator longer than the products in it.
        unroll = jax.default_backend() != "cpu"
        return jax.lax.scan(self._turn, self._start(read[0]), read, unroll=unroll)[1]

    def first_output(self, inputs: Float[Array, "d n i"]) -> Float[Array, "d n t"]:
        """Their outputs in the first turn alone."""
        read = inputs @ self.inputs + self.bias[:, None]
        return self._turn(self._start(read), read)[1]

    def _start(self, read: Float[Array, "d n 4t"]) -> tuple[Array, Array]:
        zeros = jnp.zeros_like(read[..., : self.recurrent.shape[1]])
        return zeros, zeros

    def _turn(
        self, state: tuple[Array, Array], read: Float[Array, "d n 4t"]
    ) -> tuple[tuple[Array, Array], Float[Array, "d n t"]]:
        cell, output = state
        i, f, g, o = jnp.split(read + output @ self.recurrent, 4, axis=-1)
        cell = nnx.sigmoid(f) * cell + nnx.sigmoid(i) * jnp.tanh(g)
        output = nnx.sigmoid(o) * jnp.tanh(cell)
        return (cell, output), output


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
        module = nnx.eval_shape(lambda: self._module(jax.random.key(0)))
        # Flax's layers hold a random state too, which nothing here reads.
        self.graph, _, *rest = nnx.split(module, nnx.Param, ...)
        (self.unused,) = rest

    def _module(self, key: Key[Array, ""]) -> ScorePredictor:
        return ScorePredictor(self.subsets, rngs=nnx.Rngs(key))

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

        # One array for psi's many small ones: Adam and its moments are one pass over it.
        params, unravel = ravel_pytree(state.params)

        def loss_of(params: Array, history: Array, target: Array) -> Array:
            return jnp.square(self.predict(unravel(params), history) - target).mean()

        def step(carry: tuple[Array, optax.OptState], index: Array) -> tuple:
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
        before = loss_of(params, state.history, scores)
        moments = _of_dicts(lambda x, _: ravel_pytree(x)[0], state.optimizer, state.optimizer)
        (params, moments), _ = jax.lax.scan(step, (params, moments), order(key))
        optimizer = _of_dicts(lambda _, x: unravel(x), state.optimizer, moments)
        return unravel(params), optimizer, before


def _of_dicts(function: Callable[[Params, Any], Any], tree: Any, other: Any) -> Any:
    """``other`` with what stands where ``tree`` has a dict replaced by ``function`` of both."""

    def one(x: Any, y: Any) -> Any:
        return function(x, y) if isinstance(x, dict) else y

    return jax.tree.map(one, tree, other, is_leaf=lambda x: isinstance(x, dict))
