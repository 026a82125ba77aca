"""How well heat maps find the anomalous pixels: pixel AUROC and AUPRO."""

import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import ndimage

from ahl_jax.data.frame import WHOLE, Frame
from ahl_jax.inference.heatmaps import upsampled

FPR_LIMIT = 0.3
"""AUPRO integrates up to this rate of false positives among normal pixels, as MVTec AD's does."""

_LEVELS = 4096
"""Values that pixels are told apart by; the error of an area is below its inverse."""

_PIXELS = 4_000_000
"""Masks of more pixels are shrunk, so that time and memory have a bound for each image."""


def pixel_metrics(
    heat: Float[np.ndarray, "n h w"],
    masks: Iterable[Bool[np.ndarray, "_ _"] | None],
    frame: Frame | None = None,
) -> dict[str, float]:
    """Areas under curves over all pixels of n images, at the size of the masks.

    Heat maps are brought there one at a time, and counted by quantiles, so memory does not grow
    with the images. A mask of more than ``_PIXELS`` pixels is shrunk by a whole number, to pixels
    that are anomalous where any of theirs is: no defect is too small to be counted.

    Args:
        heat: the score of each location.
        masks: the anomalous pixels of each image, of any sizes; none of a normal one, and None
            for an image that is not to count.
        frame: the part of an image that its heat map is of; all of it by default. Defects that are
            not looked at are missed.

    Returns:
        ``auroc``, the area under the ROC curve of pixels; ``aupro``, the mean over anomalous
        regions (8-connected) of the share of their pixels that is found, integrated over the
        false-positive rate up to ``FPR_LIMIT`` and divided by it (Bergmann et al., CVPR 2019); and
        ``images``, how many count. Empty where no pixel is anomalous, or none is normal.
    """
    edges = np.unique(np.quantile(heat, np.linspace(0, 1, _LEVELS))).astype(np.float32)
    normal, anomalous, regions = np.zeros((3, len(edges) + 1))
    images = 0
    for one, whole in zip(heat, masks, strict=True):
        if whole is None:
            continue
        images += 1
        mask = _shrunk(whole)
        seen = frame.seen(*whole.shape[::-1]) if frame else WHOLE
        height, width = mask.shape
        levels = np.searchsorted(edges, upsampled(one, height, width, seen), side="right")
        normal += _histogram(levels[~mask], len(normal))
        if mask.any():
            labels = ndimage.label(mask, structure=np.ones((3, 3)))[0][mask]
            found = levels[mask]
            anomalous += _histogram(found, len(normal))
            # Every region weighs as much as any other, however many pixels it has.
            regions += _histogram(found, len(normal), 1 / np.bincount(labels)[labels])
    if not anomalous.any() or not normal.any():
        return {}
    fpr, tpr, overlap = (_above(h / h.sum()) for h in (normal, anomalous, regions))
    limited = np.interp(FPR_LIMIT, fpr, overlap)
    inside = fpr < FPR_LIMIT
    area = np.trapezoid([*overlap[inside], limited], [*fpr[inside], FPR_LIMIT])
    return {
        "auroc": float(np.trapezoid(tpr, fpr)),
        "aupro": float(area / FPR_LIMIT),
        "images": images,
    }


def _shrunk(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "h w"]:
    """A mask of at most ``_PIXELS`` pixels, which are marked where any of theirs is."""
    factor = math.ceil(math.sqrt(mask.size / _PIXELS))
    if factor <= 1:
        return mask
    for axis in (0, 1):
        mask = np.logical_or.reduceat(mask, np.arange(0, mask.shape[axis], factor), axis)
    return mask


def _histogram(
    levels: Int[np.ndarray, " p"], size: int, weights: Float[np.ndarray, " p"] | None = None
) -> Shaped[np.ndarray, " size"]:
    return np.bincount(levels, weights, minlength=size)


def _above(share: Float[np.ndarray, " l"]) -> Float[np.ndarray, " m"]:
    """The share of pixels above each level, from none to all."""
    return np.concatenate([[0.0], np.cumsum(share[::-1])])
