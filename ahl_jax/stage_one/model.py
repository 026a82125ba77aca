"""The training of trunk and detector from images: pure functions of arrays.

A batch has equal thirds of normals, labelled anomalies and pseudo-anomalies, which are made from
normals on the device, in every step anew. Gradients go through both scales and the references. The
trunk's batch norm stays as ImageNet training left it: it is folded into the kernels.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, UInt8

from ahl_jax.backbones import Trunk, products_in
from ahl_jax.config import Config, DetectorConfig
from ahl_jax.detectors import Functional, Inputs, Model, make_detector, make_inputs
from ahl_jax.detectors.inputs import mean_of
from ahl_jax.detectors.protocol import ANOMALY, NORMAL, PSEUDO, Params
from ahl_jax.devices import split_images
from ahl_jax.features.images import half_size, trunk_dtype
from ahl_jax.learning import apply_step, learning_rate
from ahl_jax.losses import Prior, draw_prior
from ahl_jax.pseudo import GENERATORS

Images = UInt8[Array, "n size size 3"]


class State(NamedTuple):
    """Everything that an epoch hands to the next."""

    trunk: Params
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

            def loss(params: Params) -> tuple[Array, tuple[Params, Array]]:
                model = Model(params["detector"], state.model.stats)
                inputs = self.inputs(params["trunk"], split_images(images))
                reference = self.inputs(params["trunk"], references.astype(jnp.float32))
                reference = mean_of(reference, jnp.ones(count))
                weights = jnp.ones(labels.shape, jnp.float32)
                return self.functional.loss(model, inputs, reference, labels, weights, state.prior)

            params = trained(state.trunk, state.model)
            gradient, (stats, losses) = jax.grad(loss, has_aux=True)(params)
            updates, optimizer = self.optimizer.update(gradient, state.optimizer, params)
            params = apply_step(params, updates, rate)
            model = Model(params["detector"], stats)
            return state._replace(trunk=params["trunk"], model=model, optimizer=optimizer), losses

        state, losses = jax.lax.scan(step, state, keys)
        return state, losses.mean(0)

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

    def inputs(self, params: Params, images: Float[Array, "b size size 3"]) -> Inputs:
        """What a detector reads of images: the trunk's features at two scales."""
        features = self.config.features
        params = products_in(trunk_dtype(features.precision, jax.default_backend()), params)
        apply = self.trunk.apply
        if self.config.stage_one.remat:
            apply = jax.checkpoint(apply)
        return make_inputs([apply(params, scale) for scale in (images, half_size(images))])


def start(config: Config, trunk: Trunk) -> tuple[StageOne, State]:
    """How to train, and the state before the first epoch.

    Raises:
        UserError: if there is no detector of that name.
    """
    root = jax.random.fold_in(jax.random.key(config.seed), 1)
    model_key, prior_key, key = jax.random.split(root, 3)
    functional, model = make_detector(detector_config(config), trunk.channels, model_key)
    learner = StageOne(config, trunk, functional)
    optimizer = learner.optimizer.init(trained(trunk.params, model))
    return learner, State(trunk.params, model, optimizer, draw_prior(prior_key), key)


def trained(trunk: Params, model: Model) -> Params:
    """Everything that stage one trains."""
    return {"trunk": trunk, "detector": model.params}


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
