"""The model of many chips, without a compiler."""

import pytest

from experiments.benchmarks.scaling import HOP_SECONDS, RING_BYTES, Model, Point, best, model_of
from experiments.benchmarks.scaling import share_of as share


def points() -> list[Point]:
    """A chip takes 10 ms for each of its subsets."""
    made = [(8, 8), (8, 2), (64, 64), (64, 8)]
    return [Point(1, t, n, 10 * t / n, 100 * t / n) for t, n in made]


def model() -> Model:
    return model_of(points(), summed=0, gathered=0)


def hops(chips: int) -> float:
    return 3e3 * (chips - 1) * HOP_SECONDS


@pytest.mark.parametrize(
    ("seeds", "subsets", "chips", "own"),
    [(1, 6, 8, (1, 3)), (1, 8, 256, (1, 1)), (64, 8, 64, (1, 8)), (64, 8, 512, (1, 1)),
     (3, 8, 8, (3, 1)), (2, 6, 4, (1, 3))],
)  # fmt: skip
def test_a_chip_has_what_training_would_give_it(seeds, subsets, chips, own):
    assert share(seeds, subsets, chips) == own


def test_the_model_goes_through_what_it_was_made_of():
    for point in points():
        expected = point.ms + hops(point.chips)
        assert model().epoch(1, point.subsets, point.chips) == pytest.approx(expected)


def test_between_and_beyond_the_points_it_is_a_line():
    assert model().epoch(1, 6, 8) == pytest.approx(30 + hops(2))
    assert model().epoch(1, 64, 1) == pytest.approx(640)
    # Two seeds on a chip, one after the other.
    assert model().epoch(16, 8, 8) == pytest.approx(2 * 80)


def test_more_than_a_chip_holds_has_no_time():
    assert model().epoch(20, 8, 1) is not None
    assert model().epoch(21, 8, 1) is None


def test_the_exchange_is_a_rings():
    sent = model()._replace(summed=10**9, gathered=10**6)
    more = 1e3 * (2e9 + 8e6) * 7 / 8 / RING_BYTES
    assert sent.epoch(1, 8, 8) == pytest.approx(10 + hops(8) + more)


def test_chips_help_until_each_has_one_subset():
    assert best(model(), 1, 8) == 8
    assert best(model(), 1, 6) == 2
    assert best(model(), 8, 8) == 64
