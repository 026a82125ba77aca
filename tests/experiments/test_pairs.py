"""Two methods on the same splits and seeds."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.tables.pairs import paired

numbers = st.dictionaries(st.integers(0, 99), st.floats(0, 1), min_size=2, max_size=9)


@given(ours=numbers, theirs=numbers)
def test_the_paired_interval_is_that_of_the_paired_t_test(ours, theirs) -> None:
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return
    result = paired(ours, theirs)
    a, b = (np.array([one[seed] for seed in seeds]) for one in (ours, theirs))
    assert result.mean == pytest.approx((a - b).mean(), abs=1e-12)
    assert (result.ahead, result.seeds) == ((a > b).sum(), len(seeds))
    if len(seeds) == 1:
        assert math.isnan(result.low)
        assert math.isnan(result.high)
    elif np.ptp(a - b) > 1e-6:
        low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert (result.low, result.high) == (pytest.approx(low), pytest.approx(high))


def test_the_paired_interval_of_known_figures() -> None:
    result = paired({0: 0.9, 1: 0.8, 2: 0.7}, {0: 0.8, 1: 0.75, 2: 0.75})
    # 4.303 is the 97.5 % point of Student's t with two degrees of freedom.
    half = 4.302653 * statistics.stdev([0.1, 0.05, -0.05]) / math.sqrt(3)
    assert result == (
        pytest.approx(0.1 / 3), pytest.approx(0.1 / 3 - half), pytest.approx(0.1 / 3 + half), 2, 3
    )  # fmt: skip
