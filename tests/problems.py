"""A small training problem with three clusters of normals and separable anomalies."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ahl_jax.backbones.batch_norm import WeightedBatchNorm
from ahl_jax.config.presets import with_settings
from ahl_jax.config.settings import Config, DataConfig, DetectorConfig
from ahl_jax.detectors.inputs import Inputs
from ahl_jax.detectors.protocol import DeviationDetector, Head
from ahl_jax.learning import learner
from ahl_jax.learning.problem import Problem, make_problem

SIDES = ((4, 5), (3, 3))
"""Height and width of the two scales."""

CHANNELS = 4
GENERATORS = 3

prepared = jax.jit(learner.prepared, static_argnums=(0, 3))
"""One program, as training has it: operation by operation the compiler takes many times as long."""


class Curved(DeviationDetector):
    """A detector of few parameters, with a loss that is curved in them and running moments."""

    table = (Head("bent", targets=(0, 1, 1)),)
    margin = 5.0

    def __init__(self, channels: int, config: DetectorConfig, *, rngs: nnx.Rngs) -> None:
        del config
        self.first = nnx.Linear(channels, 3, use_bias=False, rngs=rngs)
        self.norm = WeightedBatchNorm(3)
        self.last = nnx.Linear(3, 1, rngs=rngs)

    def head_scores(self, inputs: Inputs, reference: Inputs, weights: Any = None) -> Any:
        hidden = self.first(inputs.pooled - reference.pooled)
        return 3 * self.last(jnp.tanh(self.norm(hidden, weights)(hidden))).mean(1)

    def location_maps(self, inputs: Inputs, reference: Inputs) -> Any:
        raise NotImplementedError


def make_config(**settings: Any) -> Config:
    """A quick config; settings are named as on the command line."""
    values = {
        "steps": 2, "batch": 9, "passes": 2, "epochs": 2, "hidden": 3, "references": 2,
        "history": 2, "subsets": 3, **settings,
    }  # fmt: skip
    return with_settings(Config(DataConfig("none")), values)


def make_maps(
    images: int, random: np.random.RandomState, centre: np.ndarray | float = 0.0
) -> list[np.ndarray]:
    """Feature maps [images, h, w, CHANNELS] around ``centre`` ([images, CHANNELS] or a number)."""
    middle = np.broadcast_to(centre, (images, CHANNELS))[:, None, None]
    return [middle + 0.3 * random.normal(size=(images, *side, CHANNELS)) for side in SIDES]


def make_setting(
    config: Config,
    normals: int = 15,
    anomalies: int = 5,
    per_generator: int = 6,
    dtype: type = np.float32,
) -> Problem:
    """Normals in three clusters (channels 0, 1), anomalies off in 2, pseudo-anomalies in 3.

    The bank is on the device.
    """
    return make_problem(config, *setting_maps(normals, anomalies, per_generator, dtype))


def setting_maps(
    normals: int = 15, anomalies: int = 5, per_generator: int = 6, dtype: type = np.float32
) -> tuple[Any, ...]:
    """The maps of ``make_setting``, and each pseudo-anomaly's generator and source."""
    random = np.random.RandomState(0)
    angle = 2 * np.pi * (np.arange(normals) % 3) / 3
    centres = np.stack([2 * np.cos(angle), 2 * np.sin(angle), 0 * angle, 0 * angle], 1)
    source = np.arange(GENERATORS * per_generator) % normals
    parts = [
        make_maps(normals, random, centres),
        make_maps(anomalies, random, np.array([0.0, 0.0, 2.0, 0.0])),
        make_maps(len(source), random, centres[source] + np.array([0, 0, 0, 1.5])),
    ]
    parts = [[m.astype(dtype) for m in maps] for maps in parts]
    return *parts, np.arange(len(source)) // per_generator, source


def as_float64(tree: Any) -> Any:
    """Every floating-point leaf in float64 (under ``jax.enable_x64``)."""
    return jax.tree.map(
        lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def assert_trees_close(actual: Any, expected: Any, **tolerance: float) -> None:
    """The same structure and nearly the same numbers."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(plain(a), plain(b), err_msg=where, **tolerance)


def assert_trees_equal(actual: Any, expected: Any) -> None:
    """The same structure and bit-identical numbers."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(plain(a), plain(b), err_msg=jax.tree_util.keystr(path))


def plain(x: Any) -> np.ndarray:
    """A leaf as a NumPy array; keys as their data."""
    is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)
