"""Pixel AUROC and AUPRO against straightforward references."""

import math

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from ahl_jax.inference.heatmaps import upsampled
from ahl_jax.run.pixel_metrics import _shrunk, pixel_metrics

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


def _aupro(heat: np.ndarray, masks: list[np.ndarray]) -> float:
    """Exact and slow: region by region at every threshold that there is, at full size."""
    scores = [upsampled(one, *mask.shape) for one, mask in zip(heat, masks, strict=True)]
    normal = np.sort(np.concatenate([one[~mask] for one, mask in zip(scores, masks, strict=True)]))
    regions = []
    for one, mask in zip(scores, masks, strict=True):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [np.sort(one[labels == i]) for i in range(1, count + 1)]
    thresholds = np.unique(np.concatenate([normal, *regions]))[::-1]

    def above(values: np.ndarray) -> np.ndarray:
        """The share of the values at each threshold or above it."""
        return 1 - np.searchsorted(values, thresholds, side="left") / len(values)

    fpr = np.concatenate([[0], above(normal)])
    pro = np.concatenate([[0], sum(above(region) for region in regions) / len(regions)])
    within = fpr < 0.3
    fpr, pro = [*fpr[within], 0.3], [*pro[within], np.interp(0.3, fpr, pro)]
    return float(np.trapezoid(pro, fpr) / 0.3)


@pytest.mark.parametrize(("seed", "signal"), [(0, 0.0), (1, 1.0), (2, 4.0)])
def test_against_references(seed: int, signal: float) -> None:
    heat, masks = _images(seed, signal)
    found = pixel_metrics(heat, masks)
    scores = np.stack([upsampled(one, SIZE, SIZE) for one in heat])
    assert found["auroc"] == pytest.approx(roc_auc_score(masks.ravel(), scores.ravel()), abs=1e-3)
    assert found["aupro"] == pytest.approx(_aupro(heat, list(masks)), abs=1e-3)


def _scattered(side: int) -> list[np.ndarray]:
    """Masks of two sizes, the second with 15 defects of 3 x 3 pixels."""
    small = np.zeros((side, side), bool)
    for top, left in np.random.default_rng(3).integers(0, side // 8 - 1, (15, 2)) * 8 + 3:
        small[top : top + 3, left : left + 3] = True
    large = np.zeros((side // 2, side), bool)
    large[100:180, 40:200] = True
    return [large, small, np.zeros((side, side // 2), bool)]


def test_small_defects_in_large_images_count() -> None:
    masks = _scattered(1024)
    heat = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
    heat[0, 8:12, 2:7] += 2
    found = pixel_metrics(heat, masks)
    assert found["aupro"] == pytest.approx(_aupro(heat, masks), abs=1e-3)
    assert found["images"] == 3


@pytest.mark.parametrize("shape", [(64, 64), (61, 67), (7, 300)])
def test_no_defect_is_lost_where_masks_are_shrunk(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ahl_jax.run.pixel_metrics._PIXELS", 400)
    for top in range(0, shape[0], 5):
        for left in range(0, shape[1], 7):
            mask = np.zeros(shape, bool)
            mask[top, left] = True
            small = _shrunk(mask)
            assert small.size <= 400
            assert small.sum() == 1
            factor = math.ceil(shape[1] / small.shape[1])
            np.testing.assert_array_equal(np.argwhere(small), [[top // factor, left // factor]])


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
    assert found == {"auroc": pytest.approx(1), "aupro": pytest.approx(1), "images": 2}


@pytest.mark.parametrize("value", [True, False])
def test_without_both_kinds_of_pixels_there_are_none(value: bool) -> None:
    assert pixel_metrics(np.zeros((1, 4, 4), np.float32), [np.full((SIZE, SIZE), value)]) == {}


def test_images_that_do_not_count_are_left_out() -> None:
    heat, masks = _images(1, 1.0)
    some = pixel_metrics(heat, [None, masks[1], None, *masks[3:5], None])
    assert some["images"] == 3
    kept = [1, 3, 4]
    assert some["aupro"] == pytest.approx(_aupro(heat[kept], list(masks[kept])), abs=1e-3)
