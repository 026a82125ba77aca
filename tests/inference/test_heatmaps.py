"""Heat maps as pictures and as numbers."""

import numpy as np
import pytest

from ahl_jax.inference.heatmaps import legend, outlined, overlay, regions


def test_regions_are_those_above_the_level_the_hottest_first() -> None:
    heat = np.zeros((16, 16), np.float32)
    heat[2, 3], heat[8:10, 10:14] = 5, 9
    hot, warm = regions(heat, 1, 16, 16)
    assert hot == (10, 8, 4, 2, 8 / 256, 9)
    assert warm == (3, 2, 1, 1, 1 / 256, 5)
    assert regions(heat, 9, 16, 16) == []
    # Corners touch.
    heat[10, 14] = 9
    assert regions(heat, 1, 16, 16)[0][:4] == (10, 8, 5, 3)


@pytest.mark.parametrize("scale", [4, 400])
def test_regions_have_the_size_of_the_image(scale: int) -> None:
    heat = np.zeros((16, 16), np.float32)
    heat[4:8, 8:12] = 9
    (found,) = regions(heat, 4.5, 16 * scale, 16 * scale)
    wanted = np.array([8, 4, 4, 4]) * scale
    # A pixel of those at which regions are told apart.
    np.testing.assert_allclose(found[:4], wanted, rtol=0, atol=max(1, 2 * 16 * scale / 1024))
    assert found.area == pytest.approx(1 / 16, rel=0.1)


def test_an_outline_leaves_what_it_is_around() -> None:
    image = np.full((20, 20, 3), 100, np.uint8)
    marks = np.zeros((20, 20), bool)
    marks[5:12, 5:12] = True
    drawn = outlined(image, marks)
    assert (drawn[6:11, 6:11] == 100).all()
    assert (drawn[5, 5:12] == 255).all()
    assert (drawn[4, 4:13] == 0).all()
    assert (drawn[:4] == 100).all()
    assert (outlined(image, marks & False) == image).all()


def test_what_is_hotter_than_the_level_is_outlined() -> None:
    image, heat = np.full((32, 32, 3), 100, np.uint8), np.zeros((32, 32), np.float32)
    heat[8:16, 8:16] = 9
    plain = overlay(image, heat, (0, 5))
    drawn = overlay(image, heat, (0, 5), level=4.5)
    np.testing.assert_array_equal(drawn, outlined(plain, heat > 4.5))
    assert (drawn != plain).any()


def test_the_legend_names_the_outline_only_where_there_is_one() -> None:
    with_line, without = legend(outline=True), legend(outline=False)
    assert len(with_line) > len(without)
    assert (without < 255).any()
