"""Features of a whole image: its maps, pooled over their locations."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ahl_jax.detectors.inputs import Blocks, means_of, pool_blocks

_ROWS = 64

Maps = Sequence[Float[np.ndarray, "n h w c"]]
"""Feature maps of n images, one array per scale."""


def global_averages(maps: Maps, means: int = 1) -> Float[np.ndarray, "n d"]:
    """The averages over the locations of each image, scale beside scale, in float32.

    Args:
        maps: of n images.
        means: how many means over views they hold; those of the first are averaged.
    """
    return pooled_features([means_of(m, means)[0] for m in maps], Blocks(1, 1))


def pooled_features(maps: Maps, blocks: Blocks) -> Float[np.ndarray, "n b*d"]:
    """``pool_blocks`` of each image, one after the other, each scale beside scale."""
    n, width = len(maps[0]), blocks.poolings * sum(m.shape[-1] for m in maps)
    found = np.empty((n, width), np.float32)
    # Summed in float64, which of all images at once would take twice their maps' memory, or more.
    for start in range(0, n, _ROWS):
        few = [m[start : start + _ROWS] for m in maps]
        rows = pool_blocks(few, blocks, np.float64)
        np.concatenate(rows, axis=1, out=found[start : start + _ROWS], casting="same_kind")
    return found


def averages_of(pooled: Float[np.ndarray, "n b*d"], blocks: int) -> Float[np.ndarray, "n d"]:
    """The ``global_averages`` among pooled features of so many blocks."""
    return pooled[:, : pooled.shape[1] // blocks]
