import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ahl_jax.pseudo.noise import perlin_noise, top_share


def many(seed, count, height, width):
    """Noise of many keys."""
    make = jax.jit(jax.vmap(lambda key: perlin_noise(key, height, width)))
    return np.asarray(make(jax.random.split(jax.random.key(seed), count)))


def test_noise_is_smooth_bounded_and_defined_everywhere():
    noise = many(0, 40, 128, 96)
    assert np.isfinite(noise).all()
    assert np.abs(noise).max() <= 1
    # No seams and no constant corners: at most 32 cells across 96 pixels, a gradient of 1 per cell.
    steps = np.abs(np.diff(noise, axis=2)).max((1, 2))
    assert steps.max() < 1
    corners = noise[:, :8, :8]
    assert (corners.std((1, 2)) > 0).all()


def test_noise_has_coarse_and_fine_scales():
    noise = many(1, 60, 64, 64)
    roughness = np.abs(np.diff(noise, axis=1)).mean((1, 2)) / noise.std((1, 2))
    assert roughness.max() > 8 * roughness.min()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.25, 0.999])
def test_top_share_takes_the_highest_values(share):
    values = jax.random.normal(jax.random.key(2), (64, 64))
    mask = np.asarray(top_share(values, jnp.float32(share)))
    assert 0 < mask.sum() < mask.size
    assert np.asarray(values)[mask].min() > np.asarray(values)[~mask].max()
    assert mask.mean() == pytest.approx(share, abs=2 / mask.size)
