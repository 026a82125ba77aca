"""Parts of the normals that a closed form is fitted without, one after the other.

Cross-conformal calibration (Vovk, 2015; Barber et al., 2021): every normal tells how high one that
the fit has not seen scores, and the detector in use is fitted to all of them.
"""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Fold(NamedTuple):
    """Normals that one fit leaves out, by their positions."""

    left_out: Int[np.ndarray, " k"]
    """As many in every fold, so that one program fits all."""

    own: int
    """How many of them, the first ones, are this fold's; every normal is one fold's."""


def make_folds(normals: int, share: float, seed: int) -> list[Fold]:
    """The normals divided at random into parts of the share, or of one where they are few.

    Args:
        normals: how many there are, at least two.
        share: of the normals that a fold leaves out, at most a half.
        seed: decides which ones.
    """
    folds = round(1 / share)
    if normals < 2 * folds:
        folds = normals
    order = np.random.default_rng([seed, 5]).permutation(normals)
    starts = np.arange(folds + 1) * normals // folds
    most = -(-normals // folds)
    return [
        # A smaller one leaves out the next ones too.
        Fold(order[(start + np.arange(most)) % normals], end - start)
        for start, end in itertools.pairwise(starts.tolist())
    ]
