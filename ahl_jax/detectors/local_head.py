"""A head for small defects: the few locations of an image that stand out most.

Beside a detector that reads whole images. Fitted in closed form, by a ``Localizer`` of the feature
map without its coarsest level: how far these locations are from those of normal images, and how far
they lie in the direction of the labelled anomalies' hottest ones.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ahl_jax.detectors.heads import top_mean
from ahl_jax.detectors.localizer import Localizer, far_and_towards

_TOP = 0.05
"""The share of the locations, at least one, that stand for an image: 3 of 8 x 8."""

_FAR = 0.25
"""How much the distance counts, in standard deviations of the normals."""

_FEW = 3
"""Labelled anomalies by which their direction counts half; it tells more, the more there are."""

_BEFORE = 4
"""How many normals the deviations that are expected count as: one of a distance is half of the mean
distance, and one of a product 1.5 times the direction's length."""

_TINY = 1e-12


class LocalHead(NamedTuple):
    """What ``local_scores`` computes with, all float32."""

    localizer: Localizer
    gain: Float[np.ndarray | Array, "2"]
    """How much distance and direction count, by the deviations of the normals."""

    bias: Float[np.ndarray | Array, ""]
    """Puts the mean of the normals at 0."""

    of_normals: Float[np.ndarray | Array, " n"]
    """The scores of the training normals, or of their tiles, each by a localizer without it."""


_Array = TypeVar("_Array", np.ndarray, Array)


def finer_levels(
    maps: Float[_Array, "b h w m*c"], parts: Sequence[int]
) -> Float[_Array, "b h w k"]:
    """The levels of the first mean over views, without the coarsest where there are others.

    Args:
        maps: features of b images, with means over views side by side.
        parts: the channels of the levels, the coarsest first.
    """
    total = sum(parts)
    return maps[..., parts[0] if len(parts) > 1 else 0 : total]


def extremes(localizer: Localizer, fine: Float[Array, "b h w k"]) -> Float[Array, "b 2"]:
    """Squared distance and product with the direction, each the mean of its highest locations."""
    b = fine.shape[0]
    both = far_and_towards(localizer, fine)
    return jnp.stack([top_mean(x.reshape(b, -1), _TOP) for x in both], axis=1)


def make_local_head(
    localizer: Localizer, of_normals: Float[np.ndarray, "n 2"], labelled: int
) -> LocalHead:
    """The head of n normals.

    Args:
        localizer: of all normals, with the direction of the labelled anomalies.
        of_normals: ``extremes`` of each by a localizer without it, at least one.
        labelled: how many labelled anomalies there are.
    """
    n, mean = len(of_normals), of_normals.mean(0, dtype=np.float64)
    expected = np.array([0.5 * mean[0], 1.5 * np.linalg.norm(localizer.direction)])
    variance = (n * of_normals.var(0, dtype=np.float64) + _BEFORE * expected**2) / (n + _BEFORE)
    counts = np.array([_FAR, labelled / (labelled + _FEW)])
    gain = np.where(variance > _TINY, counts / np.sqrt(np.maximum(variance, _TINY)), 0)
    bias = -mean @ gain
    scores = of_normals @ gain + bias
    return LocalHead(localizer, *(np.asarray(x, np.float32) for x in (gain, bias, scores)))


def local_scores(
    head: LocalHead | None, maps: Float[Array, "b h w m*c"], channels: int
) -> Float[Array, " b"] | None:
    """Scores of b images, or tiles, in standard deviations of the normals; 0 is their mean.

    Args:
        head: the head; without one there are no scores.
        maps: features on the larger scale, not whitened, with means over views side by side.
        channels: of one of these means, c.
    """
    if head is None:
        return None
    width = head.localizer.mean.shape[-1]
    fine = finer_levels(maps, [channels - width, width] if width < channels else [width])
    both = extremes(head.localizer, fine)
    return (both * jnp.asarray(head.gain)).sum(1) + jnp.asarray(head.bias)
