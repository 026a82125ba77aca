"""Features of a whole image: its maps, pooled over their locations."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ahl_jax.detectors.inputs import Blocks, pool_blocks

_ROWS = 64

Maps = Sequence[Float[np.ndarray, "n h w c"]]
"""Feature maps of n images, one array per scale."""


def global_averages(maps: Maps) -> Float[np.ndarray, "n d"]:
    """The averages over the locations of each image, scale beside scale, in float32."""
    return pooled_features(maps, Blocks(1, 1))


def pooled_features(maps: Maps, blocks: Blocks) -> Float[np.ndarray, "n b*d"]:
    """``pool_blocks`` of each image, one after the other, each scale beside scale."""
    n, width = len(maps[0]), blocks.poolings * sum(m.shape[-1] for m in maps)
    found = np.empty((n, width), np.float32)
    # Summed in float64, which of all images at once would take twice their maps' memory, or more.
    for start in range(0, n, _ROWS):
        few = [m[start : start + _ROWS] for m in maps]
        of_scales = zip(*(pool_blocks(m, blocks, np.float64) for m in few), strict=True)
        rows = [each for block in of_scales for each in block]
        np.concatenate(rows, axis=1, out=found[start : start + _ROWS], casting="same_kind")
    return found


def averages_of(pooled: Float[np.ndarray, "n b*d"], blocks: Blocks) -> Float[np.ndarray, "n d"]:
    """The ``global_averages`` among pooled features, of the first mean over views."""
    return pooled[:, : pooled.shape[1] // blocks.total]
