"""CDL: collaborative differentiable learning of the unified detector g (AHL Algorithm 1).

An epoch trains T base models from g, each on the support set of its subset (Eq. 1), estimates each
one's importance w_i (Eq. 5 to 7), and moves g by the w-weighted gradient of the base models' query
losses (Eq. 2 to 4). Everything is a pure function of arrays: a vmap over the subsets around scans
over the steps, in one compiled program.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from ahl_jax.config.settings import Config
from ahl_jax.detectors.protocol import Functional, Model, Params
from ahl_jax.distributed.mesh import on_every_subset, over_subsets
from ahl_jax.learning.batches import Batch, PoolSet, draw_batches
from ahl_jax.learning.importance import Estimator, Importance
from ahl_jax.learning.learner import (
    SCORE_BATCH,
    EpochLog,
    TrainingData,
    TrainState,
    apply_step,
    batch_loss,
    learning_rate,
    of_each_subset,
    optimizer,
    train_steps,
)


class CDLState(NamedTuple):
    """The unified model g and everything that an epoch hands to the next."""

    model: Model
    optimizer: optax.OptState
    importance: Importance
    key: Key[Array, ""]
    """The run's key; an epoch uses it folded with its number, so a resumed run repeats nothing."""


class BaseResult(NamedTuple):
    """The outcome of training one base model from g."""

    model: Model
    """theta_i^t."""

    gradient: Params
    """Gradient of its query loss with respect to g."""

    support_losses: Float[Array, " heads"]
    query_losses: Float[Array, " heads"]


class CDL:
    """The learner of AHL."""

    def __init__(self, config: Config, functional: Functional):
        self.config = config
        self.functional = functional
        learning = config.learning
        self.inner = optimizer(learning.inner_optimizer, learning.clip)
        self.outer = optimizer("adam", learning.clip)
        self.estimator = Estimator(
            config.importance, config.subsets.subsets + config.subsets.holistic
        )

    def init(self, model: Model, data: TrainingData, key: Key[Array, ""]) -> CDLState:
        """G as given, w_i = 1/T, no scores yet."""
        key, psi_key = jax.random.split(key)
        return CDLState(
            model=model,
            optimizer=self.outer.init(model.params),
            importance=self.estimator.init(psi_key, data.labels.shape[0]),
            key=key,
        )

    def model(self, state: CDLState) -> Model:
        """G."""
        return state.model

    def with_model(self, state: CDLState, model: Model) -> CDLState:
        """Another g."""
        return state._replace(model=model)

    def epoch(self, state: CDLState, data: TrainingData, epoch: Array) -> tuple[CDLState, EpochLog]:
        """One epoch: per round, train the base models from g (Eq. 1), then update g (Eq. 2 to 4).

        The paper's epoch is one round. With several, the epoch's batches are split among them, and
        the importance scores are estimated in the last one.
        """
        learning = self.config.learning
        rounds = learning.updates_per_epoch
        support_key, query_key, psi_key = jax.random.split(jax.random.fold_in(state.key, epoch), 3)
        support = self._batches(support_key, data.support, rounds)
        query = self._batches(query_key, data.query, rounds)
        rate = learning_rate(learning.lr, learning, epoch)
        inner_rate = learning_rate(learning.lr_base, learning, epoch)

        def one_round(carry: tuple, xs: tuple) -> tuple:
            model, outer, importance = carry
            support, query, last = xs
            base = of_each_subset(self._train_base, data, (model, inner_rate), (support, query))
            # Not within the condition: devices may enter it at any time, and would then exchange
            # images in different orders. Where no scores are wanted it takes no steps.
            scores = self.scores(base.model, data, wanted=last)

            def estimate(importance: Importance, scores: Array, weights: Array) -> Importance:
                return self.estimator.update(
                    importance, scores, data.labels, weights, epoch, psi_key
                )

            seen = on_every_subset((importance, scores, data.error_weights))
            importance = on_every_subset(jax.lax.cond(last, estimate, lambda same, *_: same, *seen))
            with jax.named_scope("unified model, Eq. 3 and 4"):
                mix = functools.partial(_mix, importance.weights)
                updates, outer = self.outer.update(mix(base.gradient), outer, model.params)
                # Running statistics have no gradient: g takes the importance-weighted mean.
                model = Model(apply_step(model.params, updates, rate), mix(base.model.stats))
            return (model, outer, importance), (base.support_losses, base.query_losses)

        losses: tuple[Array, Array]
        last = jnp.arange(rounds) == rounds - 1
        start = (state.model, state.optimizer, state.importance)
        (model, outer, importance), losses = jax.lax.scan(one_round, start, (support, query, last))
        support_losses, query_losses = jax.tree.map(lambda x: x.mean((0, 1)), losses)
        log = EpochLog(
            support_losses, query_losses, importance.errors, importance.weights, importance.loss
        )
        return CDLState(model, outer, importance, state.key), log

    def _train_base(
        self, data: TrainingData, shared: tuple[Model, Array], own: tuple[Batch, Batch]
    ) -> BaseResult:
        (start, rate), (support, query) = shared, own
        return self.train_base(start, data, support, query, rate)

    @jax.named_scope("base models, Eq. 1")
    def train_base(
        self,
        start: Model,
        data: TrainingData,
        support: Batch,
        query: Batch,
        rate: Float[Array, ""],
    ) -> BaseResult:
        """Train one base model from g on its support batches (Eq. 1); gradient of its query loss.

        First order, the gradient at theta_i^t is g's gradient. Exact, it is pulled back through
        the inner steps.

        Args:
            start: g.
            data: the bank.
            support: support batches, leading axis s; ``passes`` scans over all of them.
            query: query batches, leading axis q.
            rate: learning rate of the inner steps.
        """
        learning = self.config.learning
        exact = learning.gradient == "exact"
        passes = jax.tree.map(
            lambda x: jnp.tile(x, (learning.passes,) + (1,) * (x.ndim - 1)), support
        )

        def inner(params: Params) -> tuple[Params, tuple[Params, Array]]:
            fresh = TrainState(Model(params, start.stats), self.inner.init(params))
            trained, losses = train_steps(
                self.functional, self.inner, fresh, data, passes, rate, remat=exact
            )
            return trained.model.params, (trained.model.stats, losses.mean(0))

        if exact:
            params, pull_back, (stats, losses) = jax.vjp(inner, start.params, has_aux=True)
        else:
            params, (stats, losses) = inner(start.params)
        model = Model(params, stats)
        gradient, query_losses = self._query_gradient(model, data, query)
        if exact:
            (gradient,) = pull_back(gradient)
        return BaseResult(model, gradient, losses, query_losses)

    @jax.named_scope("query gradient, Eq. 2")
    def _query_gradient(
        self, model: Model, data: TrainingData, query: Batch
    ) -> tuple[Params, Float[Array, " heads"]]:
        """Gradient of the mean loss over the query batches (Eq. 2), at the base model itself."""

        def add(total: Params, batch: Batch) -> tuple[Params, Float[Array, " heads"]]:
            grad = jax.grad(batch_loss, argnums=1, has_aux=True)
            grads, (_, losses) = grad(self.functional, model.params, model.stats, data, batch)
            return jax.tree.map(jnp.add, total, grads), losses

        total, losses = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, model.params), query)
        steps = losses.shape[0]
        return jax.tree.map(lambda g: g / steps, total), losses.mean(0)

    @jax.named_scope("scores of training images")
    def scores(
        self, models: Model, data: TrainingData, *, wanted: Bool[Array, ""] | bool = True
    ) -> Float[Array, "n t"]:
        """s_j^t: the base models' scores of every training image, on the scale of the labels.

        Args:
            models: leading axis T.
            data: the bank.
            wanted: whether to compute them; otherwise zeros.
        """
        images = data.labels.shape[0]
        batch = min(SCORE_BATCH, images)
        batches = jnp.where(wanted, -(-images // batch), 0)

        def of_one(data: TrainingData, batches: Array, model: Model) -> Float[Array, " n"]:
            reference = data.inference_reference()

            def score(number: Array, scores: Float[Array, " n"]) -> Float[Array, " n"]:
                # The last batch overlaps with the one before, so that no shape differs.
                start = jnp.minimum(number * batch, images - batch)
                index = jax.lax.dynamic_slice(data.followed, (start,), (batch,))
                inputs = data.images(index, same=True)
                found = self.functional.label_score(model, inputs, reference)
                return jax.lax.dynamic_update_slice(scores, found.astype(scores.dtype), (start,))

            return jax.lax.fori_loop(0, batches, score, jnp.zeros_like(data.labels))

        return of_each_subset(of_one, data, batches, models).T

    @jax.named_scope("batches")
    def _batches(self, key: Key[Array, ""], pools: PoolSet, rounds: int) -> Batch:
        """An epoch's batches, with leading axes rounds, T, steps of a round."""
        learning = self.config.learning
        subsets = pools[0].size.shape[0]
        draw = functools.partial(
            draw_batches,
            steps=learning.steps,
            batch=learning.batch,
            references=self.config.detector.references,
        )
        keys = jax.random.split(key, subsets)
        batches = over_subsets(lambda _, __, one: draw(*one), (), (), (keys, pools))
        return jax.tree.map(
            lambda x: x.reshape(subsets, rounds, -1, *x.shape[2:]).swapaxes(0, 1), batches
        )


def _mix(weights: Float[Array, " t"], tree: Params) -> Params:
    """The weighted sum over the leading axis of every leaf."""
    return jax.tree.map(lambda x: jnp.tensordot(weights.astype(x.dtype), x, axes=1), tree)
