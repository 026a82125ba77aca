"""Stage one on a tiny trunk: two convolutions with the stride of the real ones."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score

from ahl_jax import Config, UserError, evaluate, load, train, train_seeds
from ahl_jax.backbones import load_trunk
from ahl_jax.common.files import default_folder
from ahl_jax.config.presets import with_settings
from ahl_jax.data.types import Split
from ahl_jax.detectors import Model
from ahl_jax.features.split import load_split
from ahl_jax.stage_one.model import StageOne, State, augmented, half_size, start
from ahl_jax.stage_one.run import compile_epoch, mesh_of
from ahl_jax.storage.checkpoints import Checkpoints
from tests.runs import stopped_in_epoch
from tests.stage_one.tiny import SIZE, Tiny, images, run_stage_one


def one_epoch(config: Config, **changed: object) -> tuple[State, np.ndarray]:
    changed["stage_one_detector"] = "dra"
    learner, state = start(with_settings(config, changed), load_trunk("tiny"))
    state, losses = jax.jit(learner.epoch)(state, images(12), images(4, 1), 0)
    return state, np.asarray(losses)


def learner_of(config: Config) -> StageOne:
    return start(config, load_trunk("tiny"))[0]


@pytest.mark.parametrize(("size", "counts"), [(9, [3, 3, 3]), (11, [3, 4, 4])])
def test_a_batch_is_normals_anomalies_and_fresh_pseudo_anomalies(
    config: Config, size: int, counts: list[int]
) -> None:
    every = ("cutmix", "cutpaste", "draem")
    learner = learner_of(with_settings(config, {"stage_one_batch": size, "generators": every}))
    normals, anomalies = images(6), images(2, 1)
    batch = jax.jit(learner.batch)
    found, labels = batch(jax.random.key(0), normals, anomalies)
    assert np.bincount(labels).tolist() == counts
    assert found.shape == (size, SIZE, SIZE, 3)
    known = {one.tobytes() for one in normals}
    parts = np.split(np.asarray(found, np.uint8), np.cumsum(counts)[:2])
    assert {one.tobytes() for one in parts[0]} <= known
    # Two anomalies fill their third; both are there.
    assert {one.tobytes() for one in parts[1]} == {one.tobytes() for one in anomalies}
    for one in parts[2]:
        same = [(one == normal).all(-1).mean() for normal in normals]
        assert 0.2 < max(same) < 1
    again, _ = batch(jax.random.key(1), normals, anomalies)
    assert (found != again).any()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_augmentation_moves_pixels_and_changes_none(seed: int) -> None:
    picture = jnp.arange(2 * 4 * 4 * 3, dtype=jnp.float32).reshape(2, 4, 4, 3)
    mirrored = [picture[:, ::a, ::b] for a in (1, -1) for b in (1, -1)]
    turned = mirrored + [one.swapaxes(1, 2) for one in mirrored]
    key = jax.random.key(seed)
    for how, allowed in (("none", [picture]), ("mirrored", mirrored), ("turned", turned)):
        for found, versions in zip(augmented(key, picture, how), zip(*allowed, strict=True),
                                   strict=True):  # fmt: skip
            assert any((found == one).all() for one in versions)


def test_every_way_of_turning_occurs() -> None:
    picture = jnp.arange(16 * 3, dtype=jnp.float32).reshape(4, 4, 3)
    many = augmented(jax.random.key(0), jnp.stack([picture] * 99), "turned")
    assert len({one.tobytes() for one in np.asarray(many)}) == 8


@pytest.mark.slow
def test_the_last_blocks_alone_are_trained(config: Config) -> None:
    changed = {"stage_one_blocks": 2, "stage_one_steps": 1, "stage_one_batch": 3}
    config = with_settings(config, {**changed, "trunk": "efficientnet_lite0"})
    learner, state = start(config, load_trunk("efficientnet_lite0"))
    after, _ = jax.jit(learner.epoch)(state, images(4), images(2, 1), 0)
    for name, block in state.trunk["blocks"].items():
        for before, now in zip(*map(jax.tree.leaves, (block, after.trunk["blocks"][name])),
                               strict=True):  # fmt: skip
            assert (before != now).any() == (name in ("14", "15"))
    jax.tree.map(np.testing.assert_array_equal, after.trunk["stem"], state.trunk["stem"])
    # Nothing is kept of what is not trained.
    trained = jax.tree.leaves({name: state.trunk["blocks"][name] for name in ("14", "15")})
    size = sum(leaf.size for leaf in [*trained, *jax.tree.leaves(state.model.params)])
    assert sum(leaf.size for leaf in jax.tree.leaves(state.optimizer)) < 2 * size + 10
    with pytest.raises(UserError, match=r"`stage_one_blocks` is 17, and .* has 16 blocks; give"):
        start(with_settings(config, {"stage_one_blocks": 17}), load_trunk("efficientnet_lite0"))


def test_the_first_step_follows_the_gradient_of_the_loss_over_images(config: Config) -> None:
    """Against differences of the loss, computed scale by scale from the images."""
    config = with_settings(config, {"augment": "none", "stage_one_steps": 1})
    learner, state = start(config, load_trunk("tiny"))
    normals, anomalies = images(12), images(4, 1)
    after, losses = jax.jit(learner.epoch)(state, normals, anomalies, 0)
    key = jax.random.split(jax.random.fold_in(state.key, 0), 1)[0]
    batch, labels = jax.jit(learner.batch)(jax.random.split(key, 3)[0], normals, anomalies)

    def loss(bias: np.ndarray) -> float:
        trunk = state.trunk | {"second": state.trunk["second"] | {"bias": jnp.asarray(bias)}}
        maps = [learner.trunk.apply(trunk, x) for x in (batch, half_size(batch))]
        kernel, bias_of_head = (
            state.model.params["locate"][part].ravel() for part in ("kernel", "bias")
        )
        scores = []
        for scale in maps:
            values = np.abs(scale.reshape(len(batch), -1, 6) @ kernel + bias_of_head)
            k = max(1, int(values.shape[1] * config.detector.top_k))
            scores.append(np.sort(values, 1)[:, -k:].mean(1))
        score = (np.mean(scores, 0) - state.prior.mean) / state.prior.std
        each = np.where(labels == 0, np.abs(score), np.maximum(0, 5 - score))
        return float(each.mean())

    bias = np.asarray(state.trunk["second"]["bias"])
    assert loss(bias) == pytest.approx(float(losses.sum()), rel=1e-4)
    steps = 0.05 * np.eye(6, dtype=np.float32)
    slope = np.array([loss(bias + s) - loss(bias - s) for s in steps])
    moved = np.asarray(after.trunk["second"]["bias"]) - bias
    clear = np.abs(slope) > 0.1 * np.abs(slope).max()
    # Adam's first step is the learning rate against the sign of the gradient.
    np.testing.assert_allclose(moved[clear], -0.01 * np.sign(slope[clear]), rtol=0.01)


@pytest.mark.slow
def test_recomputing_activations_changes_nothing(config: Config) -> None:
    (kept, losses), (again, same) = one_epoch(config), one_epoch(config, remat=True)
    np.testing.assert_allclose(losses, same, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(kept.trunk), jax.tree.leaves(again.trunk), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.slow
def test_products_in_bfloat16_train_parameters_in_float32(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, losses = one_epoch(config)
    monkeypatch.setattr("ahl_jax.stage_one.model.trunk_dtype", lambda *_: jnp.bfloat16)
    state, found = one_epoch(config)
    np.testing.assert_allclose(found, losses, rtol=0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.trunk)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_it_learns_to_tell_anomalies_from_normals(config: Config, tmp_path: Path) -> None:
    split = load_split(config)
    changed = {"stage_one_epochs": 6, "stage_one_steps": 10}
    learner, state = start(with_settings(config, changed), load_trunk("tiny"))
    pictures = [
        np.stack([np.asarray(Image.open(path)) for path in paths])
        for paths in (split.train_normals, [s.path for s in split.seen])
    ]
    program = compile_epoch(learner, jax.make_mesh((1,), ("data",)))
    losses = []
    for number in range(6):
        state, each = program(state, *pictures, np.int32(number))
        losses.append(float(each.sum()))
    assert losses[-1] < 0.75 * losses[0]
    test = [np.asarray(Image.open(sample.path)) for sample in split.test]
    inputs = learner.inputs(state.trunk, np.stack(test).astype(np.float32))
    scores = learner.functional.score(state.model, inputs, inputs.take(np.array(0)))
    assert roc_auc_score([s.anomaly_class is not None for s in split.test], scores) > 0.95


@pytest.mark.parametrize("batch_norm", ["frozen", pytest.param("trained", marks=pytest.mark.slow)])
def test_stopped_and_resumed_it_ends_at_the_same_bits(
    config: Config, tmp_path: Path, batch_norm: str
) -> None:
    config = with_settings(config, {"batch_norm": batch_norm})
    whole = run_stage_one(config, tmp_path / "whole")
    assert whole.digest != load_trunk("tiny").digest
    with stopped_in_epoch(2), pytest.raises(KeyboardInterrupt):
        run_stage_one(config, tmp_path / "stopped")
    assert run_stage_one(config, tmp_path / "stopped").digest == whole.digest
    # Finished, it is read and nothing is trained; not even the images are needed.
    nothing = Split((Path("none.png"),), (), ())
    assert run_stage_one(config, tmp_path / "stopped", nothing).digest == whole.digest


@pytest.mark.slow
def test_train_takes_its_features_from_the_trained_trunk(config: Config, tmp_path: Path) -> None:
    config = with_settings(config, {"method": "base", "detector": "devnet", "epochs": 1})
    metrics = train(config, tmp_path / "run", progress=False)
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        name, params = checkpoints.load_trunk()
    stage_one = run_stage_one(config, default_folder())
    assert name == "tiny"
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(stage_one.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert evaluate(tmp_path / "run", progress=False) == metrics
    # Again: everything is there.
    assert train(config, tmp_path / "run", progress=False) == metrics


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["devnet", "dra"])
def test_the_detector_trained_from_images_is_tested_as_it_is(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector: str
) -> None:
    changed = {"stage_one_heads": True, "method": "fit", "stage_one_detector": detector}
    config = with_settings(config, changed | {"detector": detector, "stage_one_epochs": 1})
    train(config, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
    learner, state = start(config, load_trunk("tiny"))
    split = load_split(config)
    normals, anomalies = (
        np.stack([np.asarray(Image.open(path)) for path in paths])
        for paths in (split.train_normals, [sample.path for sample in split.seen])
    )
    program = compile_epoch(learner, mesh_of(config.stage_one.stage_one_batch))
    state, _ = program(state, normals, anomalies, np.int32(0))
    found = load(tmp_path / "run")
    test = [sample.path for sample in split.test]
    pictures = np.stack([np.asarray(Image.open(path)) for path in test]).astype(np.float32)
    inputs = learner.inputs(state.trunk, pictures)
    expected = learner.functional.score(state.model, inputs, found.scorer.reference)
    np.testing.assert_allclose(found.score(test), expected, rtol=1e-3, atol=1e-3)
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        kept = Model.from_arrays(checkpoints.load_detector())
    jax.tree.map(np.testing.assert_array_equal, kept, found.scorer.model)
    if detector == "dra":
        return  # Its running moments move, whatever the learning rate.
    # Training goes on from there, and what is kept is not trained again.
    monkeypatch.setattr("ahl_jax.stage_one.run.start", None)
    still = with_settings(config, {"method": "base", "epochs": 1, "lr_base": 1e-9})
    train(still, tmp_path / "base", cache_dir=tmp_path / "cache", progress=False)
    np.testing.assert_allclose(load(tmp_path / "base").score(test), found.score(test), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage_one": False}, "needs `stage_one=True`; add it"),
        ({"detector": "dra"}, "`stage_one_detector` is devnet where `detector` is dra"),
        ({"whiten": True}, "not whitened; leave out `stage_one_heads`"),
        ({"views": "2+8"}, "leave out `stage_one_heads`, or give `views=8`"),
        ({"method": "ensemble"}, "an ensemble starts from different weights"),
    ],
)
def test_heads_that_fit_nothing_are_refused(
    config: Config, tmp_path: Path, change: dict, message: str
) -> None:
    config = with_settings(config, {"stage_one_heads": True, "detector": "devnet"} | change)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_every_seed_has_a_trunk_of_its_own(config: Config, tmp_path: Path) -> None:
    train_seeds(config, tmp_path, [0, 1], progress=False)
    trunks = []
    for seed in (0, 1):
        with Checkpoints(tmp_path / f"seed-{seed}", read_only=True) as checkpoints:
            trunks.append(checkpoints.load_trunk()[1])
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, trunks), strict=True))


@pytest.mark.parametrize("name", ["density", "none"])
def test_a_detector_that_cannot_be_trained_from_images_is_refused(
    config: Config, tmp_path: Path, name: str
) -> None:
    config = with_settings(config, {"stage_one_detector": name})
    with pytest.raises(UserError, match=f"^`stage_one_detector` has no '{name}'; choose from"):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_image_that_cannot_be_read_is_refused_or_left_out(
    config: Config, tmp_path: Path
) -> None:
    split = load_split(config)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    with_bad = dataclasses.replace(split, train_normals=(*split.train_normals, bad))
    with pytest.raises(UserError, match=r"bad\.png"):
        run_stage_one(config, tmp_path / "refused", with_bad)
    skipping = with_settings(config, {"skip_bad_images": True, "stage_one_epochs": 1})
    left_out = run_stage_one(skipping, tmp_path / "left out", with_bad)
    assert left_out.digest == run_stage_one(skipping, tmp_path / "without").digest


_ON_DEVICES = """
import json, sys
import jax, numpy as np
from ahl_jax import backbones, preset
from ahl_jax.distributed.mesh import mesh_for, put_everywhere
from ahl_jax.config.presets import with_settings
from ahl_jax.stage_one.model import start
from ahl_jax.stage_one.run import compile_epoch
from tests.stage_one.tiny import Tiny, images, loaded
from pathlib import Path

Tiny.weights = Path(sys.argv[1])
backbones.TRUNKS["tiny"] = Tiny
changed = json.loads(sys.argv[2])
config = with_settings(preset("debug", "x"), changed | {"generators": ("cutmix", "cutpaste")})
found = []
for count in (1, 3):
    mesh = mesh_for(1, 1, count, jax.devices()[:count])
    learner, state = start(config, loaded(config))
    placed = put_everywhere((state, images(12), images(4, 1)), mesh)
    program = compile_epoch(learner, mesh).lower(*placed, np.int32(0)).compile()
    state, losses = program(*placed, np.int32(0))
    found.append([float(x) for x in losses])
    shapes = program.as_text()
print(json.dumps({"losses": found, "own": f"f32[{sys.argv[3]},192,192,3]" in shapes,
                  "sums": "all-reduce" in shapes}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("batch_norm", "each"), [("frozen", 3), ("trained", 5)])
def test_devices_share_a_batch_to_the_result_of_one(tiny: None, batch_norm: str, each: int) -> None:
    changed = {
        "batch_norm": batch_norm,
        "references": 4,  # With the nine images of a batch, no multiple of three.
        "trunk": "tiny",
        "stage_one_steps": 2,
        "stage_one_batch": 9,
        "stage_one_lr": 0.001,
    }
    done = subprocess.run(
        [sys.executable, "-c", _ON_DEVICES, str(Tiny.weights), json.dumps(changed), str(each)],
        env=os.environ
        | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    one, three = found["losses"]
    np.testing.assert_allclose(one, three, rtol=1e-4)
    # Each device has a third of the images, and the gradients are summed.
    assert found["own"]
    assert found["sums"]
