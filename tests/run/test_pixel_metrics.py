"""Pixel AUROC and AUPRO against straightforward references."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from ahl_jax.inference.heatmaps import upsampled
from ahl_jax.run.pixel_metrics import pixel_metrics

SIZE = 32


def _images(seed: int, signal: float) -> tuple[np.ndarray, np.ndarray]:
    """Heat maps that know something of the masks; the first image is normal."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((6, SIZE, SIZE), bool)
    for mask in masks[1:]:
        for _ in range(rng.integers(1, 4)):
            top, left, height, width = rng.integers([0, 0, 2, 2], [24, 24, 8, 8])
            mask[top : top + height, left : left + width] = True
    blocks = masks.reshape(6, 8, 4, 8, 4).mean((2, 4))
    return (signal * blocks + rng.normal(size=(6, 8, 8))).astype(np.float32), masks


def _aupro(heat: np.ndarray, masks: np.ndarray) -> float:
    """Threshold by threshold, on the full resolution."""
    scores = np.stack([upsampled(one, SIZE, SIZE) for one in heat])
    regions = []
    for number, mask in enumerate(masks):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [(number, labels == i) for i in range(1, count + 1)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(scores)[::-1]:
        above = scores >= threshold
        overlap = np.mean([above[number][region].mean() for number, region in regions])
        points.append((above[~masks].mean(), overlap))
    fpr, pro = np.array(points).T
    grid = np.linspace(0, 0.3, 3001)
    return float(np.trapezoid(np.interp(grid, fpr, pro), grid) / 0.3)


@pytest.mark.parametrize(("seed", "signal"), [(0, 0.0), (1, 1.0), (2, 4.0)])
def test_against_references(seed: int, signal: float) -> None:
    heat, masks = _images(seed, signal)
    found = pixel_metrics(heat, masks)
    scores = np.stack([upsampled(one, SIZE, SIZE) for one in heat])
    assert found["auroc"] == pytest.approx(roc_auc_score(masks.ravel(), scores.ravel()), abs=2e-3)
    assert found["aupro"] == pytest.approx(_aupro(heat, masks), abs=5e-3)


def test_small_regions_count_as_much_as_large_ones() -> None:
    masks = np.zeros((1, SIZE, SIZE), bool)
    masks[0, :16, :16] = True
    masks[0, 24:28, 24:28] = True
    heat = np.zeros((1, SIZE, SIZE), np.float32)
    heat[0, :16, :16] = 1
    found = pixel_metrics(heat, masks)
    # One of the two is found whole, and nothing else: the other only where everything is.
    assert found["aupro"] == pytest.approx(0.5 + 0.5 * 0.15, abs=1e-3)
    assert found["auroc"] > 0.95


def test_perfect_maps_have_an_area_of_one() -> None:
    masks = np.zeros((2, SIZE, SIZE), bool)
    masks[1, 4:9, 4:9] = True
    found = pixel_metrics(masks.astype(np.float32), masks)
    assert found == {"auroc": pytest.approx(1), "aupro": pytest.approx(1)}


@pytest.mark.parametrize("value", [True, False])
def test_both_kinds_of_pixels_are_needed(value: bool) -> None:
    with pytest.raises(ValueError, match="normal and anomalous"):
        pixel_metrics(np.zeros((1, 4, 4), np.float32), np.full((1, SIZE, SIZE), value))
