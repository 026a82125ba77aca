"""Ridge regression in closed form against scikit-learn's, which is fitted anew for every image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from ahl_jax.detectors.ridge import fit_ridge

CHANNELS = 6
FIT = jax.jit(fit_ridge)


def problem(normals: int, anomalies: int, pseudo: int):
    random = np.random.default_rng(normals + anomalies + pseudo)
    z = random.standard_normal((normals + anomalies + pseudo, CHANNELS))
    z[normals:] += random.standard_normal(CHANNELS)
    return np.split(z, [normals, normals + anomalies]), random.standard_normal((CHANNELS, CHANNELS))


def reference(parts, colouring):
    """Weights, labels, coloured features and the penalty, as the docstring has them."""
    normals, anomalies, pseudo = map(len, parts)
    kinds = [count for count in (anomalies, pseudo) if count]
    of_anomalies = np.repeat([1 / 2 / len(kinds) / count for count in kinds], kinds)
    weights = np.concatenate([np.full(normals, 1 / 2 / normals), of_anomalies])
    x = np.concatenate(parts) @ colouring
    mean = weights @ x
    penalty = 3 * (weights[:, None] * (x - mean) ** 2).sum() / len(x)
    return weights, np.repeat([0.0, 1.0], [normals, anomalies + pseudo]), x, penalty


@pytest.mark.parametrize("counts", [(12, 4, 7), (12, 1, 7), (40, 3, 0), (5, 1, 0), (9, 0, 4)])
def test_every_fit_is_scikit_learns_without_these_images(counts):
    parts, colouring = problem(*counts)
    weights, labels, x, penalty = reference(parts, colouring)
    normals, anomalies, _ = counts

    def score(of: int, *left_out: int) -> float:
        kept = np.setdiff1d(np.arange(len(x)), left_out)
        ridge = Ridge(penalty).fit(x[kept], labels[kept], weights[kept])
        return ridge.predict(x[of][None])[0]

    found = jax.tree.map(np.asarray, FIT(*parts, colouring))
    close = {"rtol": 2e-3, "atol": 2e-3}
    np.testing.assert_allclose(found.of_normals, [score(j) for j in range(normals)], **close)
    np.testing.assert_allclose(found.unseen, [score(j, j) for j in range(normals)], **close)
    ours = range(normals, normals + anomalies)
    np.testing.assert_allclose(found.own, [score(i, i) for i in ours], **close)
    without = [[score(j, j, i) for i in ours] for j in range(normals)]
    np.testing.assert_allclose(found.without, np.reshape(without, (normals, anomalies)), **close)
    offsets = found.of_normals - parts[0] @ found.direction
    np.testing.assert_allclose(offsets, offsets[0], **close)


def test_nothing_is_left_without_the_only_anomaly():
    parts, colouring = problem(5, 1, 0)
    found = FIT(*parts, colouring)
    assert not found.without.any()
    assert not found.own.any()


@pytest.mark.parametrize("normals", [4, 1])
def test_images_that_are_all_the_same_have_no_direction(normals):
    same = jnp.ones((4, CHANNELS))
    found = FIT(same[:normals], same[:0], same[:0], jnp.eye(CHANNELS))
    for values in found:
        np.testing.assert_allclose(values, 0, atol=1e-6)
