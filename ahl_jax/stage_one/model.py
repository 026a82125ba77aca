"""The training of trunk and detector from images: pure functions of arrays.

A batch has equal thirds of normals, labelled anomalies and pseudo-anomalies, which are made from
normals on the device, in every step anew. Gradients go through both scales and the references. The
trunk's batch norm is either trained too, or stays as ImageNet training left it, folded into the
kernels.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, UInt8

from ahl_jax.backbones import (
    Trunk,
    Unfolded,
    folded_trunk,
    products_in,
    trunk_from_params,
)
from ahl_jax.common.errors import UserError
from ahl_jax.common.text import counted
from ahl_jax.config.settings import Config, DetectorConfig
from ahl_jax.detectors import Functional, Inputs, Model, make_detector, make_inputs
from ahl_jax.detectors.inputs import mean_of
from ahl_jax.detectors.losses import Prior, draw_prior
from ahl_jax.detectors.protocol import ANOMALY, NORMAL, PSEUDO, Params
from ahl_jax.distributed.mesh import data_shards, split_images
from ahl_jax.features.maps import half_size, trunk_dtype
from ahl_jax.learning.learner import apply_step, learning_rate
from ahl_jax.pseudo import GENERATORS

P = ParamSpec("P")
Out = TypeVar("Out")
Images = UInt8[Array, "n size size 3"]


class State(NamedTuple):
    """Everything that an epoch hands to the next."""

    trunk: Params
    trunk_stats: Params
    """Running moments of its batch norm; empty where that is frozen."""

    model: Model
    optimizer: optax.OptState
    prior: Prior
    key: Key[Array, ""]
    """An epoch uses it folded with its number, so a resumed run repeats nothing."""


@dataclass(frozen=True, eq=False)
class StageOne:
    """Holds no arrays but those of the trunk to start from."""

    config: Config
    trunk: Trunk
    functional: Functional

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam with weight decay in the gradient, without the learning rate."""
        decay = optax.add_decayed_weights(self.config.stage_one.weight_decay)
        return optax.chain(
            optax.clip_by_global_norm(self.config.learning.clip), decay, optax.scale_by_adam()
        )

    def epoch(
        self, state: State, normals: Images, anomalies: Images, epoch: Array
    ) -> tuple[State, Float[Array, " heads"]]:
        """One epoch; also returns the mean loss of each head.

        Args:
            state: what the epoch before left.
            normals: all training normals.
            anomalies: all labelled anomalies.
            epoch: its number, from 0.
        """
        one = self.config.stage_one
        rate = learning_rate(one.stage_one_lr, self.config.learning, epoch)
        keys = jax.random.split(jax.random.fold_in(state.key, epoch), one.stage_one_steps)

        def step(state: State, key: Key[Array, ""]) -> tuple[State, Float[Array, " heads"]]:
            batch_key, augment_key, reference_key = jax.random.split(key, 3)
            images, labels = self.batch(batch_key, normals, anomalies)
            images = augmented(augment_key, images, one.augment)
            count = min(self.config.detector.references, len(normals))
            references = normals[jax.random.choice(reference_key, len(normals), (count,), False)]

            def loss(params: Params) -> tuple[Array, tuple[Params, Params, Array]]:
                model = Model(params["detector"], state.model.stats)
                inputs, reference, trunk_stats = self.seen(
                    with_blocks(state.trunk, params["trunk"]),
                    state.trunk_stats,
                    images,
                    references.astype(jnp.float32),
                )
                reference = mean_of(reference, jnp.ones(count))
                weights = jnp.ones(labels.shape, jnp.float32)
                total, (stats, losses) = self.functional.loss(
                    model, inputs, reference, labels, weights, state.prior
                )
                return total, (trunk_stats, stats, losses)

            params = self.trained(state.trunk, state.model)
            gradient, (trunk_stats, stats, losses) = jax.grad(loss, has_aux=True)(params)
            updates, optimizer = self.optimizer.update(gradient, state.optimizer, params)
            params = apply_step(params, updates, rate)
            model = Model(params["detector"], stats)
            after = state._replace(
                trunk=with_blocks(state.trunk, params["trunk"]),
                trunk_stats=trunk_stats,
                model=model,
                optimizer=optimizer,
            )
            return after, losses

        state, losses = jax.lax.scan(step, state, keys)
        return state, losses.mean(0)

    def trained(self, trunk: Params, model: Model) -> Params:
        """Everything that stage one trains."""
        count = self.config.stage_one.stage_one_blocks
        if count is not None:
            blocks = trunk["blocks"]
            trunk = {"blocks": {name: blocks[name] for name in sorted(blocks)[-count:]}}
        return {"trunk": trunk, "detector": model.params}

    def batch(
        self, key: Key[Array, ""], normals: Images, anomalies: Images
    ) -> tuple[Float[Array, "b size size 3"], Int[Array, " b"]]:
        """A batch's images in 0..255, and their labels; every generator makes as many as it can."""
        names = self.config.pseudo.generators
        third, more = divmod(self.config.stage_one.stage_one_batch, 3)
        counts = {NORMAL: third, ANOMALY: third + (more > 1), PSEUDO: third + (more > 0)}
        keys = iter(jax.random.split(key, 3 + 2 * len(names)))
        parts = [_drawn(next(keys), normals, counts[NORMAL])]
        parts += [_drawn(next(keys), anomalies, counts[ANOMALY])]
        # Sources are other images, where there are any: two neighbours in a random order.
        order = jax.random.permutation(next(keys), len(normals))
        order = jnp.resize(order, (counts[PSEUDO] + 1,))
        for number, name in enumerate(names):
            own = order[number : counts[PSEUDO] : len(names)]
            source = order[number + 1 : counts[PSEUDO] + 1 : len(names)]
            made = jax.vmap(GENERATORS[name])(
                jax.random.split(next(keys), len(own)),
                normals[own].astype(jnp.float32),
                normals[source].astype(jnp.float32),
            )
            parts.append(jnp.round(made))
        labels = np.repeat(list(counts), list(counts.values()))
        return jnp.concatenate(parts), jnp.asarray(labels, jnp.int32)

    def seen(
        self,
        params: Params,
        stats: Params,
        images: Float[Array, "b size size 3"],
        references: Float[Array, "r size size 3"],
    ) -> tuple[Inputs, Inputs, Params]:
        """The detector's inputs of a batch and of its references, and the trunk's new moments."""
        if not stats:
            return self.inputs(params, split_images(images)), self.inputs(params, references), stats
        # Both in one batch, so that both are normalised alike; devices can share it evenly.
        b, count = len(images), len(images) + len(references)
        more = jnp.repeat(references[-1:], -count % data_shards(), axis=0)
        batch = jnp.concatenate([images, references, more])
        weights = (jnp.arange(len(batch)) < count).astype(jnp.float32)
        apply = self._recomputed(self.trunk.apply_unfolded)
        params = self._products(params)
        maps = []
        for scale in (batch, half_size(batch)):
            found, stats = apply(Unfolded(params, stats), split_images(scale), weights)
            maps.append(found)
        inputs, reference = (
            make_inputs([scale[part] for scale in maps]) for part in (slice(b), slice(b, count))
        )
        return inputs, reference, stats

    def inputs(self, params: Params, images: Float[Array, "b size size 3"]) -> Inputs:
        """A detector's inputs of images: the features of a frozen trunk at two scales."""
        params, apply = self._products(params), self._recomputed(self.trunk.apply)
        return make_inputs([apply(params, scale) for scale in (images, half_size(images))])

    def inference(self, state: State) -> Trunk:
        """The trunk of a state on the host, batch norm folded in."""
        if state.trunk_stats:
            unfolded = Unfolded(state.trunk, state.trunk_stats)
            return folded_trunk(self.trunk.name, unfolded, self.trunk.levels)
        return trunk_from_params(self.trunk.name, state.trunk, self.trunk.levels)

    def _products(self, params: Params) -> Params:
        dtype = trunk_dtype(self.config.features.precision, jax.default_backend())
        return products_in(dtype, params)

    def _recomputed(self, apply: Callable[P, Out]) -> Callable[P, Out]:
        return jax.checkpoint(apply) if self.config.stage_one.remat else apply


def start(config: Config, trunk: Trunk) -> tuple[StageOne, State]:
    """How to train, and the state before the first epoch.

    Args:
        config: the run's settings.
        trunk: the one to start from; loaded with its batch norm apart, if that is to be trained.

    Raises:
        UserError: if there is no detector of that name, or the trunk has fewer blocks than are to
            be trained.
    """
    count, blocks = config.stage_one.stage_one_blocks, len(trunk.params.get("blocks", ()))
    if count is not None and count > blocks:
        raise UserError(
            f"`stage_one_blocks` is {count}, and the trunk {trunk.name} has "
            f"{counted(blocks, 'block')}; give fewer, or leave it out to train all of the trunk"
        )
    root = jax.random.fold_in(jax.random.key(config.seed), 1)
    model_key, prior_key, key = jax.random.split(root, 3)
    functional, model = make_detector(detector_config(config), trunk.channels, model_key)
    learner = StageOne(config, trunk, functional)
    params, stats = trunk.params, {}
    if config.stage_one.batch_norm == "trained":
        assert trunk.unfolded is not None
        params, stats = jax.tree.map(jnp.asarray, trunk.unfolded)
    optimizer = learner.optimizer.init(learner.trained(params, model))
    return learner, State(params, stats, model, optimizer, draw_prior(prior_key), key)


def with_blocks(trunk: Params, trained: Params) -> Params:
    """A trunk's parameters, those that are trained in their places."""
    if "blocks" not in trained:
        return trained
    return trunk | trained | {"blocks": trunk["blocks"] | trained["blocks"]}


def detector_config(config: Config) -> DetectorConfig:
    """The settings of the detector on top: AHL's, under its own name."""
    return dataclasses.replace(config.detector, detector=config.stage_one.stage_one_detector)


def augmented(
    key: Key[Array, ""], images: Float[Array, "b size size 3"], how: str
) -> Float[Array, "b size size 3"]:
    """Each image mirrored or turned at random, see ``StageOneConfig.augment``."""

    def one(key: Key[Array, ""], image: Float[Array, "size size 3"]) -> Array:
        across, down, turned = jax.random.bernoulli(key, shape=(3,))
        image = jnp.where(across, image[:, ::-1], image)
        image = jnp.where(down, image[::-1], image)
        if how == "turned":
            image = jnp.where(turned, image.swapaxes(0, 1), image)
        return image

    return images if how == "none" else jax.vmap(one)(jax.random.split(key, len(images)), images)


def _drawn(key: Key[Array, ""], images: Images, count: int) -> Float[Array, "count size size 3"]:
    """Images at random, none twice before all are used."""
    order = jax.random.permutation(key, len(images))
    return images[jnp.resize(order, (count,))].astype(jnp.float32)
