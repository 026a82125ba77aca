import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import DetectorConfig
from ahl_jax.detectors import DETECTORS, Model, make_detector, make_inputs
from ahl_jax.detectors.heads import top_mean
from ahl_jax.detectors.inputs import mean_of
from ahl_jax.detectors.losses import Prior
from tests.goldens import core_inputs as given
from tests.goldens.inputs import GOLDENS
from tests.problems import assert_trees_close

PRIOR = Prior(*map(jnp.float32, given.PRIOR))
GOLDEN = pytest.mark.parametrize("name", ["devnet", "dra"], indirect=True)
"""Detectors that have golden numbers; all others keep to the protocol all the same."""


def linear(torch: dict, *names: str) -> dict:
    """1x1 convolutions or linear layers side by side, as one kernel and bias."""
    kernels = [torch[f"{n}.weight"].reshape(torch[f"{n}.weight"].shape[0], -1).T for n in names]
    return {
        "kernel": np.concatenate(kernels, 1),
        "bias": np.concatenate([torch[f"{n}.bias"] for n in names]),
    }


def params_of(name: str, torch: dict) -> dict:
    """PyTorch's weights, or their gradients, in the detector's own layout."""
    if name == "devnet":
        return {"locate": linear(torch, "anomaly")}
    # [out, in, row, column] -> [(row, column, in), out].
    kernel = torch["residual.weight"].transpose(2, 3, 1, 0).reshape(-1, given.CHANNELS)
    return {
        "locate": linear(torch, "seen", "pseudo"),
        "residual": {"kernel": kernel},
        "norm": {"scale": torch["norm.weight"], "shift": torch["norm.bias"]},
        "residual_out": linear(torch, "residual_out"),
        "normality": linear(torch, "normality"),
        "normality_out": linear(torch, "normality_out"),
    }


class Setting:
    """A detector on the golden's images, with the golden's weights where it has some."""

    def __init__(self, name: str):
        config = DetectorConfig(
            detector=name, top_k=given.TOP_K, hidden=given.HIDDEN, margin=given.MARGIN
        )
        self.functional, fresh = make_detector(config, given.CHANNELS, jax.random.key(0))
        self.model = fresh
        if name in ("devnet", "dra"):
            mean, var = given.statistics()
            stats = {"norm": {"mean": mean, "var": var}} if name == "dra" else {}
            model = Model(params_of(name, given.weights(name)), stats)
            self.model = jax.tree.map(jnp.asarray, model)
        assert jax.tree.map(jnp.shape, self.model) == jax.tree.map(jnp.shape, fresh)
        images, references = given.maps()
        self.inputs = make_inputs(images)
        self.reference = mean_of(make_inputs(references), jnp.ones(given.REFERENCES))
        self.loss = jax.jit(jax.value_and_grad(self._loss, has_aux=True))
        self.heads = jax.jit(self.functional.head_scores)
        self.score = jax.jit(self.functional.score)
        self.maps = jax.jit(self.functional.location_maps)

    def _loss(self, params, inputs, labels, weights):
        model = Model(params, self.model.stats)
        return self.functional.loss(model, inputs, self.reference, labels, weights, PRIOR)

    def weighted(self):
        """Loss, statistics, losses and gradients of the batch with its images weighted."""
        times = jnp.asarray(given.TIMES, jnp.float32)
        return self.loss(self.model.params, self.inputs, jnp.asarray(given.LABELS), times)


@pytest.fixture(scope="module", params=sorted(DETECTORS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def setting(name):
    return Setting(name)


@pytest.fixture(scope="module")
def golden(name):
    with np.load(GOLDENS / "core.npz") as arrays:
        prefix = f"{name}/"
        return {k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)}


@GOLDEN
def test_scores_equal_pytorch_at_inference(setting, golden):
    heads = setting.heads(setting.model, setting.inputs, setting.reference)
    np.testing.assert_allclose(heads, golden["eval/heads"], rtol=1e-4, atol=1e-5)
    score = setting.score(setting.model, setting.inputs, setting.reference)
    np.testing.assert_allclose(score, golden["eval/score"], rtol=1e-4, atol=1e-5)


@GOLDEN
def test_scores_equal_pytorch_in_training(setting, golden):
    @jax.jit
    def in_training(model, times):
        detector = setting.functional.merge(model)
        return detector.head_scores(setting.inputs, setting.reference, times)

    heads = in_training(setting.model, jnp.asarray(given.TIMES, jnp.float32))
    np.testing.assert_allclose(heads, golden["train/heads"], rtol=1e-4, atol=1e-5)


@GOLDEN
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_losses_gradients_and_statistics_equal_pytorch(name, golden, platform, monkeypatch):
    # A detector may compute the same in another order on TPUs.
    monkeypatch.setattr("jax.default_backend", lambda: platform)
    setting = Setting(name)
    (total, (stats, losses)), grads = setting.weighted()
    np.testing.assert_allclose(losses, golden["train/losses"], rtol=1e-4, atol=1e-5)
    assert total == pytest.approx(golden["train/losses"].sum(), rel=1e-4)
    prefix = "train/grad/"
    torch = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
    assert_trees_close(grads, params_of(name, torch), rtol=1e-3, atol=1e-5)
    if name == "dra":
        expected = {"norm": {"mean": golden["train/mean"], "var": golden["train/var"]}}
        assert_trees_close(stats, expected, rtol=1e-4, atol=1e-5)


def test_a_weighted_batch_is_the_batch_with_its_images_repeated(setting):
    weighted = setting.weighted()
    repeat = np.arange(len(given.TIMES)).repeat(given.TIMES)
    repeated = setting.loss(
        setting.model.params,
        setting.inputs.take(repeat),
        jnp.asarray(given.LABELS[repeat]),
        jnp.ones(len(repeat)),
    )
    assert_trees_close(weighted, repeated, rtol=1e-4, atol=1e-5)


def test_images_of_weight_zero_change_nothing(setting):
    inputs = jax.tree.map(lambda x: jnp.concatenate([x, 100 + x[:2]]), setting.inputs)
    labels = jnp.concatenate([given.LABELS, jnp.array([0, 1])])
    weights = jnp.concatenate([given.TIMES, jnp.zeros(2)]).astype(jnp.float32)
    padded = setting.loss(setting.model.params, inputs, labels, weights)
    assert_trees_close(padded, setting.weighted(), rtol=1e-4, atol=1e-5)


def test_an_image_is_scored_the_same_alone_and_in_any_company(setting):
    together = setting.score(setting.model, setting.inputs, setting.reference)
    alone = setting.score(setting.model, setting.inputs.take(jnp.array([2])), setting.reference)
    np.testing.assert_allclose(alone[0], together[2], rtol=1e-5)


def test_location_maps_have_the_maps_shape(setting):
    maps = setting.maps(setting.model, setting.inputs, setting.reference)
    assert [m.shape for m in maps] == [(len(given.LABELS), *side) for side in given.SIDES]
    assert all(np.isfinite(m).all() for m in maps)


@GOLDEN
def test_location_maps_agree_with_the_heads(name, setting):
    model = setting.model
    # Normality belongs to whole images; without the residual's weights only seen + pseudo is left.
    if name == "dra":
        params = {**setting.model.params}
        params["residual_out"] = jax.tree.map(jnp.zeros_like, params["residual_out"])
        params["locate"] = {
            part: value.at[..., 1].set(0.0) for part, value in params["locate"].items()
        }
        model = Model(params, setting.model.stats)
    maps = setting.maps(model, setting.inputs, setting.reference)
    top = [top_mean(m.reshape(m.shape[0], -1), given.TOP_K) for m in maps]
    heads = setting.heads(model, setting.inputs, setting.reference)
    np.testing.assert_allclose(jnp.stack(top).mean(0), heads[:, 0], rtol=1e-5)


def test_the_residual_part_of_a_location_map_lies_where_the_feature_differs():
    setting = Setting("dra")
    params = {**setting.model.params}
    params["locate"] = jax.tree.map(jnp.zeros_like, params["locate"])
    model = Model(params, setting.model.stats)
    before = setting.maps(model, setting.inputs, setting.reference)[0][0]
    images, _ = given.maps()
    images[0][0, 5, 4] += 10
    after = setting.maps(model, make_inputs(images), setting.reference)[0][0]
    changed = np.abs(np.asarray(after - before)) > 1e-6
    # 8x7: rows 1 to 6 and columns 0 to 5 are patches; row 7 and column 6 take the nearest one's.
    expected = np.zeros((8, 7), bool)
    expected[4:8, 3:7] = True
    np.testing.assert_array_equal(changed, expected)


@pytest.mark.parametrize(("locations", "taken"), [(4, 1), (10, 1), (19, 1), (20, 2), (196, 19)])
def test_a_head_averages_a_tenth_of_the_locations_and_at_least_one(locations, taken):
    values = np.random.RandomState(0).permutation(locations).astype(np.float32)
    expected = np.sort(values)[-taken:].mean()
    assert top_mean(jnp.asarray(values), 0.1) == pytest.approx(expected)


def test_the_heads_and_their_names():
    assert DETECTORS["devnet"].heads == ("anomaly",)
    assert DETECTORS["dra"].heads == ("seen", "pseudo", "residual", "normality")
    assert DETECTORS["flos"].heads == DETECTORS["saoe"].heads == ("anomaly",)
    assert DETECTORS["mlep"].heads == ("distance", "prediction")


def test_an_unknown_detector_is_the_users_error():
    known = "density, devnet, dra, flos, gaussian, mlep, patchcore, saoe"
    with pytest.raises(UserError, match=f"no detector 'draa'; choose from {known}"):
        make_detector(DetectorConfig(detector="draa"), 4, jax.random.key(0))


def test_fresh_weights_follow_the_key(name):
    config = DetectorConfig(detector=name)
    models = [make_detector(config, 4, jax.random.key(k))[1] for k in (0, 0, 1)]
    first, same, other = (ravel_pytree(model.params)[0] for model in models)
    np.testing.assert_array_equal(first, same)
    # What starts from zeros, as density does, or does not train, has nothing that is drawn.
    fixed = name == "density" or not DETECTORS[name].trained
    assert np.allclose(first, other) == (not first.any()) == fixed
