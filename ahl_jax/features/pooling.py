"""Features of a whole image: its maps, pooled over their locations."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ahl_jax.detectors.inputs import POOLINGS

_ROWS = 64

Maps = Sequence[Float[np.ndarray, "n h w c"]]
"""Feature maps of n images, one array per scale."""


def global_averages(maps: Maps) -> Float[np.ndarray, "n d"]:
    """The averages over the locations of each image, scale beside scale, in float32."""
    return pooled_features(maps, 1)


def pooled_features(maps: Maps, poolings: int) -> Float[np.ndarray, "n p*d"]:
    """The first ``POOLINGS`` of each image, one after the other, each scale beside scale."""
    n, width = len(maps[0]), poolings * sum(m.shape[-1] for m in maps)
    found = np.empty((n, width), np.float32)
    # Summed in float64, which of all images at once would take twice their maps' memory, or more.
    for start in range(0, n, _ROWS):
        few = [m[start : start + _ROWS] for m in maps]
        rows = [pool(m, np.float64) for pool in POOLINGS[:poolings] for m in few]
        np.concatenate(rows, axis=1, out=found[start : start + _ROWS], casting="same_kind")
    return found


def averages_of(pooled: Float[np.ndarray, "n p*d"], poolings: int) -> Float[np.ndarray, "n d"]:
    """The ``global_averages`` among pooled features."""
    return pooled[:, : pooled.shape[1] // poolings]
