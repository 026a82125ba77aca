"""How well heat maps find the anomalous pixels: pixel AUROC and AUPRO."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from ahl_jax.inference.heatmaps import upsampled

FPR_LIMIT = 0.3
"""AUPRO integrates up to this rate of false positives among normal pixels, as MVTec AD's does."""

_LEVELS = 4096
"""Values that pixels are told apart by; the error of an area is below its inverse."""


def pixel_metrics(
    heat: Float[np.ndarray, "n h w"], masks: Iterable[Bool[np.ndarray, "size size"]]
) -> dict[str, float]:
    """Areas under curves over all pixels of n images, at the size of the masks.

    Heat maps are brought there one at a time, and counted by quantiles, so memory does not grow
    with the images.

    Args:
        heat: the score of each location.
        masks: the anomalous pixels of each image; none of a normal one. All of one size.

    Returns:
        ``auroc``, the area under the ROC curve of pixels; and ``aupro``, the mean over anomalous
        regions (8-connected) of the share of their pixels that is found, integrated over the
        false-positive rate up to ``FPR_LIMIT`` and divided by it (Bergmann et al., CVPR 2019).

    Raises:
        ValueError: if no pixel is anomalous, or none is normal.
    """
    edges = np.unique(np.quantile(heat, np.linspace(0, 1, _LEVELS)))
    normal = np.zeros(len(edges) + 1)
    anomalous, regions = np.zeros(len(edges) + 1), np.zeros(len(edges) + 1)
    count = 0
    for one, mask in zip(heat, masks, strict=True):
        levels = np.searchsorted(edges, upsampled(one, *mask.shape), side="right")
        normal += _histogram(levels[~mask], len(normal))
        labels, found = ndimage.label(mask, structure=np.ones((3, 3)))
        for region in range(1, found + 1):
            part = _histogram(levels[labels == region], len(normal))
            anomalous += part
            regions += part / part.sum()
        count += found
    if not count or not normal.any():
        raise ValueError("pixel metrics need normal and anomalous pixels")
    fpr, tpr, overlap = (_above(h / h.sum()) for h in (normal, anomalous, regions))
    limited = np.interp(FPR_LIMIT, fpr, overlap)
    inside = fpr < FPR_LIMIT
    area = np.trapezoid([*overlap[inside], limited], [*fpr[inside], FPR_LIMIT])
    return {"auroc": float(np.trapezoid(tpr, fpr)), "aupro": float(area / FPR_LIMIT)}


def _histogram(levels: Int[np.ndarray, " p"], size: int) -> Int[np.ndarray, " size"]:
    return np.bincount(levels, minlength=size)


def _above(share: Float[np.ndarray, " l"]) -> Float[np.ndarray, " m"]:
    """The share of pixels above each level, from none to all."""
    return np.concatenate([[0.0], np.cumsum(share[::-1])])
