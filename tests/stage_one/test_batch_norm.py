"""The trunk's batch norm in training: what PyTorch does, and what is folded of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ahl_jax import Config
from ahl_jax.backbones import Trunk, Unfolded, folded_trunk, load_trunk
from ahl_jax.config.presets import with_settings
from ahl_jax.stage_one.model import half_size, start
from tests.goldens.inputs import GOLDENS, TRAINING_NORMS, random_images, resnet_state_dict
from tests.stage_one.tiny import images, loaded


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    path = tmp_path_factory.mktemp("resnet") / "weights.safetensors"
    save_file({k: v.copy() for k, v in resnet_state_dict("resnet18").items()}, path)
    return load_trunk("resnet18", path, apart=True)


@pytest.fixture
def one_step(config: Config) -> Config:
    changed = {"batch_norm": "trained", "augment": "none", "stage_one_steps": 1}
    return with_settings(config, changed)


def norm_of(tree: dict, name: str) -> dict[str, np.ndarray]:
    """The batch norm that PyTorch calls so."""
    if name == "bn1":
        return tree["stem"]["norm"]
    layer, block, part, *_ = name.split(".")
    return tree["blocks"][f"{layer}_{block}"][{"bn2": "second", "downsample": "skip"}[part]]["norm"]


def test_a_forward_pass_its_moments_and_its_gradient_are_those_of_torch(resnet: Trunk) -> None:
    def loss(params: dict, stats: dict) -> tuple:
        maps, after = resnet.apply_unfolded(
            Unfolded(params, stats), random_images(64, 64), jnp.ones(2)
        )
        return jnp.square(maps).mean(), (maps, after)

    assert resnet.unfolded is not None
    gradient, (maps, stats) = jax.jit(jax.grad(loss, has_aux=True))(*resnet.unfolded)
    with np.load(GOLDENS / "training.npz") as golden:
        np.testing.assert_allclose(maps, golden["maps"], atol=1e-3 * golden["maps"].max())
        for name in TRAINING_NORMS:
            found = norm_of(stats, name) | norm_of(gradient, name)
            for part in ("mean", "var", "scale", "shift"):
                expected = golden[f"{name}.{part}"]
                scale = np.abs(expected).max()
                np.testing.assert_allclose(found[part], expected, atol=1e-3 * scale, err_msg=name)


def test_images_of_no_weight_are_in_no_moment(resnet: Trunk) -> None:
    assert resnet.unfolded is not None
    pictures = np.concatenate([random_images(64, 64), np.full((1, 64, 64, 3), 255, np.float32)])
    weights = np.array([1, 1, 0], np.float32)
    maps, stats = jax.jit(resnet.apply_unfolded)(resnet.unfolded, pictures, weights)
    # What PyTorch has for the others alone.
    with np.load(GOLDENS / "training.npz") as golden:
        scale = golden["maps"].max()
        np.testing.assert_allclose(maps[:2], golden["maps"], atol=1e-3 * scale)
        for name in TRAINING_NORMS:
            for part in ("mean", "var"):
                expected = golden[f"{name}.{part}"]
                scale = np.abs(expected).max()
                np.testing.assert_allclose(norm_of(stats, name)[part], expected, atol=1e-3 * scale)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_apart_and_folded_weights_give_the_same(resnet: Trunk, name: str) -> None:
    trunk = resnet if name == "resnet18" else load_trunk(name, apart=True)
    assert trunk.unfolded is not None
    assert folded_trunk(name, trunk.unfolded).digest == trunk.digest
    maps, stats = jax.jit(trunk.apply_unfolded)(trunk.unfolded, random_images(64, 64), None)
    folded = np.asarray(trunk(random_images(64, 64)))
    np.testing.assert_allclose(maps, folded, atol=1e-5 * np.abs(folded).max())
    jax.tree.map(np.testing.assert_array_equal, stats, trunk.unfolded.stats)


@pytest.mark.slow
def test_the_moments_follow_both_scales_and_the_references(one_step: Config) -> None:
    learner, state = start(one_step, loaded(one_step))
    normals, anomalies = images(12), images(4, 1)
    after, _ = jax.jit(learner.epoch)(state, normals, anomalies, 0)
    key = jax.random.split(jax.random.fold_in(state.key, 0), 1)[0]
    batch_key, _, reference_key = jax.random.split(key, 3)
    batch, _ = learner.batch(batch_key, normals, anomalies)
    count = one_step.detector.references
    chosen = normals[jax.random.choice(reference_key, 12, (count,), False)]
    everything = np.concatenate([batch, chosen.astype(np.float32)])
    kernel = np.asarray(state.trunk["first"]["kernel"])
    mean, var = np.zeros(5), np.ones(5)
    for scale in (everything, np.asarray(half_size(everything))):
        n, side = len(scale), scale.shape[1] // 8
        patches = (scale / 128 - 1).reshape(n, side, 8, side, 8, 3).swapaxes(2, 3)
        out = patches.reshape(-1, 8 * 8 * 3).astype(np.float64) @ kernel.reshape(-1, 5)
        mean = 0.9 * mean + 0.1 * out.mean(0)
        var = 0.9 * var + 0.1 * out.var(0, ddof=1)
    found = after.trunk_stats["first"]["norm"]
    np.testing.assert_allclose(found["mean"], mean, atol=1e-4)
    np.testing.assert_allclose(found["var"], var, rtol=1e-3)
    # Everything in the trunk is trained.
    for before, now in zip(*map(jax.tree.leaves, (state.trunk, after.trunk)), strict=True):
        assert (np.asarray(before) != np.asarray(now)).mean() > 0.5


def test_what_training_leaves_is_folded_as_it_is_at_inference(one_step: Config) -> None:
    learner, state = start(one_step, loaded(one_step))
    before = learner.inference(state)
    state, losses = jax.jit(learner.epoch)(state, images(12), images(4, 1), 0)
    assert np.isfinite(losses).all()
    after = learner.inference(state)
    assert after.digest != before.digest == load_trunk("tiny").digest
    pictures = images(2, 5).astype(np.float32)
    apart, _ = learner.trunk.apply_unfolded(
        Unfolded(state.trunk, state.trunk_stats), pictures, None
    )
    np.testing.assert_allclose(after(pictures), apart, atol=1e-4)


@pytest.mark.slow
def test_recomputed_activations_update_the_moments_once(one_step: Config) -> None:
    found = []
    for remat in (False, True):
        one = with_settings(one_step, {"remat": remat})
        learner, state = start(one, loaded(one))
        found.append(jax.jit(learner.epoch)(state, images(12), images(4, 1), 0)[0].trunk_stats)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)
