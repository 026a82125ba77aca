"""Scores of feature maps by a trained detector, and the trained detector as saved arrays."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ahl_jax.config.settings import Config
from ahl_jax.detectors import Functional, Inputs, Model, make_inputs
from ahl_jax.detectors.ensemble import make_model
from ahl_jax.detectors.inputs import to_maps
from ahl_jax.detectors.local_head import LocalHead, local_scores
from ahl_jax.detectors.localizer import Localizer
from ahl_jax.detectors.whitening import Whitening
from ahl_jax.features import FeatureMaps
from ahl_jax.features.tiles import UNCUT, Tiles, tiles_of

_ABSENT = 2**20
"""Numbers that a detector of an earlier version may lack."""

BATCH = 64
"""Tiles that are scored at a time."""


class Outcome(NamedTuple):
    """Scores of b images."""

    scores: Float[np.ndarray, " b"]
    """Higher for more anomalous."""

    heads: Float[np.ndarray, "b heads"]
    """The score of each head."""

    heat: Float[np.ndarray, "b h w"]
    """The score of each location: the mean over the scales, on the grid of the larger one."""


def detect(
    functional: Functional,
    tiles: Tiles,
    model: Model,
    reference: Inputs,
    inputs: Inputs,
    local: Float[Array, " b*k"] | None = None,
) -> tuple[Float[Array, " b"], Float[Array, "b heads"], Float[Array, "b h w"]]:
    """The fields of ``Outcome``, of photographs whose tiles are the inputs; pure.

    Args:
        functional: the detector.
        tiles: the grid of k tiles.
        model: its arrays.
        reference: what its residual compares with.
        inputs: the tiles of b photographs.
        local: their ``local_scores``, if there is a local head.
    """
    maps = functional.location_maps(model, inputs, reference)
    shape = maps[0].shape
    heat = sum(jax.image.resize(scale, shape, "bilinear") for scale in maps) / len(maps)
    heads = functional.head_scores(model, inputs, reference)
    scores = functional.score(model, inputs, reference, local)
    if local is not None:
        shown = np.array([name == "local" for name in functional.kind.heads])
        heads = jnp.where(shown, local[:, None], heads)
    scores, heads = tiles.worst(scores, heads)
    return scores, heads, tiles.stitched(jnp.asarray(heat))


_maps_of = jax.jit(to_maps)
_detect = jax.jit(detect, static_argnums=(0, 1))
_local_scores = jax.jit(local_scores, static_argnums=2)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(
    functional: Functional,
    tiles: Tiles,
    model: Model,
    reference: Inputs,
    inputs: Inputs,
    local: Float[Array, " b*k"] | None,
) -> Float[Array, " b"]:
    return tiles.worst(functional.score(model, inputs, reference, local))[0]


@dataclass(frozen=True)
class Scorer:
    """A trained detector: g and the mean reference that its residual compares with."""

    functional: Functional
    model: Model
    reference: Inputs
    whitening: Whitening | None = None
    """Whitening of the features that it was trained on."""

    localizer: Localizer | None = None
    """Makes heat maps of finer features, in place of the detector; these are not among ``maps``."""

    local_head: LocalHead | None = None
    """What its scores have beside."""

    tiles: Tiles = UNCUT
    """The grid that photographs are cut into."""

    def score(self, maps: FeatureMaps) -> Float[np.ndarray, " n"]:
        """Anomaly scores of n images, higher for more anomalous.

        Args:
            maps: float32 [n, k h, w, c], one array per scale, k tiles one below the other.
        """
        return np.concatenate([np.zeros(0, np.float32), *self._batches(_score, maps)])

    def outcome(self, maps: FeatureMaps) -> Outcome:
        """Scores, head scores and the detector's own heat maps of n images, at least one.

        Args:
            maps: as for ``score``.
        """
        parts = zip(*self._batches(_detect, maps), strict=True)
        return Outcome(*(np.concatenate(part) for part in parts))

    def _batches(self, program: Callable[..., Any], maps: FeatureMaps) -> Iterator[Any]:
        """Runs the program, batch by batch."""
        images, size = len(maps[0]), max(1, BATCH // self.tiles.count)
        for start in range(0, images, size):
            # The last batch is padded, so that there is one compilation.
            rows = np.minimum(np.arange(start, start + size), images - 1)
            apart = [self.tiles.apart(scale[rows]) for scale in maps]
            inputs = make_inputs(apart, self.reference.patches.dtype, self.whitening)
            local = _local_scores(self.local_head, apart[0], inputs.channels)
            given = self.functional, self.tiles, self.model, self.reference, inputs, local
            batch = program(*given)
            yield jax.tree.map(lambda x, start=start: np.asarray(x)[: images - start], batch)

    def arrays(self) -> dict[str, Any]:
        """Everything but the architecture, as nested dicts of arrays."""
        reference = {f"scale{i}": features for i, features in enumerate(_maps_of(self.reference))}
        reference["averages"] = self.reference.pooled
        arrays = {"model": self.model.arrays(), "reference": reference}
        more = {"whitening": self.whitening, "localizer": self.localizer}
        arrays |= {name: part._asdict() for name, part in more.items() if part is not None}
        if (head := self.local_head) is not None:
            arrays["local_head"] = head._asdict() | {"localizer": head.localizer._asdict()}
        return arrays


def scorer_from_arrays(config: Config, arrays: dict[str, Any]) -> Scorer:
    """The inverse of ``Scorer.arrays``, for the detector that ``config`` trains."""
    saved_reference = dict(arrays["reference"])
    averages = saved_reference.pop("averages")
    maps: Sequence[np.ndarray] = [saved_reference[name][None] for name in sorted(saved_reference)]
    reference = make_inputs(maps).take(jnp.array(0))
    # Those of whitened features are not the averages of their maps.
    reference = dataclasses.replace(reference, pooled=jnp.asarray(averages))
    saved = Model.from_arrays(arrays["model"])
    functional: Functional

    def fresh(key: Key[Array, ""]) -> Model:
        nonlocal functional
        functional, model = make_model(config, reference.channels, key)
        return model

    # Settings of strangers may ask for more than there is memory.
    wanted = jax.eval_shape(fresh, jax.random.key(0))
    absent = {name: wanted.stats[name] for name in wanted.stats.keys() - saved.stats.keys()}
    known = Model(saved.params, absent | saved.stats)
    if jax.tree.map(jnp.shape, known) != jax.tree.map(jnp.shape, wanted):
        raise ValueError("the saved arrays do not fit the detector")
    if sum(each.size for each in jax.tree.leaves(absent)) > _ABSENT:
        raise ValueError(f"it lacks {', '.join(sorted(absent))}")
    if absent:
        # A statistic that an earlier version did not have is as it is made.
        saved = Model(saved.params, fresh(jax.random.key(0)).stats | saved.stats)
    whitening = Whitening(**arrays["whitening"]) if "whitening" in arrays else None
    localizer = None
    if "localizer" in arrays:
        parts = arrays["localizer"]
        # Of an earlier version, whose localizers knew no labelled anomalies.
        undirected = {"direction": np.zeros_like(parts["neighbours"][0])}
        localizer = Localizer(**(undirected | parts))
    local_head = None
    if "local_head" in arrays:
        parts = arrays["local_head"]
        local_head = LocalHead(**(parts | {"localizer": Localizer(**parts["localizer"])}))
    model = jax.tree.map(jnp.asarray, saved)
    tiles = tiles_of(config.features)
    return Scorer(functional, model, reference, whitening, localizer, local_head, tiles)
