"""ONNX files against JAX: primitives, detectors, trunks, and a run from images to decisions."""

import contextlib
import dataclasses
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from jax import lax

from ahl_jax import Predictor, UserError, load
from ahl_jax.backbones.convolution import convolve_each
from ahl_jax.cli.main import main
from ahl_jax.config.presets import with_settings
from ahl_jax.config.settings import DetectorConfig
from ahl_jax.data.images import read_image
from ahl_jax.detectors import DETECTORS, make_detector, make_inputs
from ahl_jax.detectors.inputs import mean_of
from ahl_jax.detectors.local_head import LocalHead, local_scores
from ahl_jax.detectors.localizer import Localizer, heat_of
from ahl_jax.detectors.whitening import Whitening
from ahl_jax.features.maps import two_scales
from ahl_jax.features.tiles import Tiles
from ahl_jax.inference.scorer import detect
from ahl_jax.inference.threshold import Calibration
from experiments.benchmarks.extract import benchmark_trunk
from tests.goldens import core_inputs
from tests.runs import FinishedRun

onnx = pytest.importorskip("onnx", reason="it is written with onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="it is run with onnxruntime")

from ahl_jax.inference.onnx.convert import to_onnx  # noqa: E402

EXAMPLE = Path(__file__).parents[2] / "docs/examples/onnx/score.py"
SAME = 1e-4
TILES = Tiles(1, 2, 0.25)


def session(model: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def results(session: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def check(function: Callable[..., dict], constants: Any, *arrays: np.ndarray) -> Any:
    """Write a function of constants and arrays of n rows, and compare 1 row and all with JAX's."""
    (n,) = jax_export.symbolic_shape("n")
    given = {f"x{i}": x for i, x in enumerate(arrays)}
    inputs = {name: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype) for name, x in given.items()}
    model = to_onnx(function, constants, inputs, {})
    onnx.checker.check_model(model, full_check=True)
    written = session(model.SerializeToString())
    expected = jax.jit(function)(constants, *arrays)
    for rows in (1, len(arrays[0])):
        found = results(written, {name: x[:rows] for name, x in given.items()})
        assert found.keys() == expected.keys()
        for name, x in expected.items():
            assert found[name].dtype == x.dtype
            near = SAME * max(1, np.abs(x).max())
            np.testing.assert_allclose(found[name], x[:rows], SAME, near, err_msg=name)
    return model


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


X, INDEX = normal(3, 6, 5), np.array([[4, 0], [1, 2], [3, 3]])

PRIMITIVES: dict[str, Callable[..., Any]] = {
    "elementwise": lambda x: jnp.tanh(x) * lax.rsqrt(jnp.square(x) + 1) - jnp.exp(-jnp.abs(x)),
    "activations": lambda x: jax.nn.gelu(x, approximate=False) + jax.nn.sigmoid(x),
    "softmax": lambda x: jax.nn.softmax(x, -1),
    "clip": lambda x: jnp.clip(jnp.minimum(x, 2), -1, 1) + jax.nn.relu(x),
    "floor": lambda x: jnp.floor(x) + jnp.sign(x) + x**3 / 2 + jnp.log1p(x**2),
    "compare": lambda x: jnp.where((x > 0) & ~(x >= 1) | (x != x), x, -x),
    "reduce": lambda x: x.max(1) + x.min(1) + x.mean((1, 2))[:, None] + x.prod(1),
    "order": lambda x: jnp.sort(x, 1) + jnp.cumsum(x, 1) + jnp.cumsum(x, 2, dtype=x.dtype),
    "top": lambda x: lax.top_k(x, 3)[0].sum(1) + x.argmax(2).sum(1)[:, None] + x.argmin(1)[:, :3],
    "shape": lambda x: jnp.stack([x[:, ::-1], jnp.swapaxes(x, 1, 2).reshape(x.shape)]).sum(0),
    "split": lambda x: jnp.concatenate([*jnp.split(x, [2, 2], 1), x[:, :1]], 1),
    "pad": lambda x: lax.pad(x, 1.0, ((0, 0, 0), (2, -1, 0), (0, 1, 0))),
    "edge": lambda x: jnp.pad(x, ((0, 0), (1, 1), (2, 0)), mode="edge"),
    "dot": lambda x: jnp.einsum("nab,ncb->nac", x, x) + jnp.einsum("nab,bc->nac", x, X[1].T),
    "rows": lambda x: X[1] @ jnp.swapaxes(x, 1, 2) + jnp.einsum("nab,nab->n", x, x)[:, None, None],
    "columns": lambda x: x[:, INDEX] + x[:, [1, 0]][:, :1, None],
    "cells": lambda x: x[..., INDEX[:, :1], INDEX[None, :, 1]],
    "lookup": lambda x: jnp.asarray(X)[1, x[:, :, 0].argmax(1)],
    "along": lambda x: jnp.take_along_axis(x, jnp.argmax(x, 2)[..., None], 2),
    "outside": lambda x: jnp.asarray(X[0]).at[x[:, :, 0].argmax(1) + 3].get(mode="fill"),
    "interp": lambda x: jnp.interp(x.sum(1), jnp.linspace(-2, 2, 9), jnp.arange(9.0) ** 2),
    "loop": lambda x: lax.fori_loop(0, 3, lambda i, y: y / 2 + i, x),
    "images": lambda x: lax.map(lambda one: (one * X[0]).sum(0), x),
    "resize": lambda x: jax.image.resize(x, (x.shape[0], 9, 9), "bilinear"),
    "cubic": lambda x: jax.image.resize(x, (x.shape[0], 4, 3), "cubic"),
    "pool": lambda x: lax.reduce_window(
        x[..., None], -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1),
        ((0, 0), (1, 1), (0, 1), (0, 0)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRIMITIVES)
def test_functions_are_what_they_are_in_jax(name: str) -> None:
    check(lambda _, x: {"found": PRIMITIVES[name](x)}, None, X)


def test_images_in_another_layout_are_convolved_without_turning_between_layers() -> None:
    """A trunk of a convolution, one by channel and one of single pixels, with a stride."""
    kernels = [normal(3, 3, 2, 4), normal(3, 3, 4), normal(4, 5)]

    def trunk(kernels: Any, x: jax.Array) -> dict[str, jax.Array]:
        full, single, pixels = kernels
        x = jnp.clip(
            lax.conv(x.transpose(0, 3, 1, 2), full.transpose(3, 2, 0, 1), (1, 1), "SAME"), 0, 6
        )
        found = convolve_each(x.transpose(0, 2, 3, 1), single, jnp.full(4, 0.3), 2, (0, 1))
        return {"maps": jax.nn.relu(found) @ pixels}

    model = check(trunk, kernels, normal(3, 8, 8, 2))
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Conv") == 3
    assert kinds.count("Transpose") == 2
    assert "Mul" not in kinds


@pytest.mark.parametrize("name", DETECTORS)
def test_each_detector_scores_maps_of_tiles_as_in_jax(name: str) -> None:
    config = DetectorConfig(detector=name, hidden=6, coreset=40, groups=2)
    functional, model = make_detector(config, core_inputs.CHANNELS, jax.random.key(0))
    rng = np.random.default_rng(0)
    model = jax.tree.map(
        lambda x: np.abs(x + 0.3 * rng.normal(size=x.shape)).astype(np.float32), model
    )
    images, others = core_inputs.maps()
    images = [np.concatenate([each, each[::-1]], axis=1) for each in images]
    width = 2 * core_inputs.CHANNELS
    whitening = Whitening(
        normal(2, width // 2), normal(2, width // 2, width // 2), normal(width, width)
    )
    reference = mean_of(make_inputs([jnp.asarray(m) for m in others], None, whitening), jnp.ones(3))
    takes_local = DETECTORS[name].takes_local
    calibration = Calibration(np.linspace(-1, 3, 30).astype(np.float32), (0.0, 1.0))

    def program(arrays: Any, *maps: jax.Array) -> dict[str, jax.Array]:
        model, reference, whitening = arrays
        inputs = make_inputs([*map(TILES.apart, maps)], None, whitening)
        local = inputs.pooled[:, 0, 0] if takes_local else None
        scores, heads, heat = detect(functional, TILES, model, reference, inputs, local)
        chance = calibration.probability(scores, jnp)
        return {"score": scores, "heads": heads, "heat": heat, "probability": chance}

    check(program, (model, reference, whitening), *images)


def test_tiles_views_heat_maps_and_local_head_are_what_they_are_in_jax() -> None:
    kernel, location = normal(4, 4, 3, 5) / 100, normal(8, 4, 5)
    localizer = Localizer(location, normal(5, 5), normal(30, 5), normal(5))
    of_some = Localizer(normal(4, 4, 3), normal(3, 3), normal(20, 3), normal(3))
    local_head = LocalHead(of_some, normal(2), np.float32(0.5), normal(7))

    def trunk(kernel: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        numbers = ("NHWC", "HWIO", "NHWC")
        maps = lax.conv_general_dilated(images, kernel, (4, 4), "VALID", dimension_numbers=numbers)
        return maps, maps

    def program(arrays: Any, images: jax.Array) -> dict[str, jax.Array]:
        kernel, localizer, local_head = arrays
        cut = TILES.cut(images, 16)
        maps = two_scales(trunk, "2+8", jnp.dtype(jnp.float32), kernel, cut)
        large, small, fine = map(TILES.together, maps)
        heat = TILES.stitched(TILES.apart(heat_of(localizer, fine)))
        local = local_scores(local_head, TILES.apart(large), 5)
        (worst,) = TILES.worst(local)
        return {"large": large, "small": small, "heat": heat, "local": worst}

    images = np.random.default_rng(0).integers(0, 256, (3, 16, 28, 3)).astype(np.uint8)
    check(program, (kernel, localizer, local_head), images)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["convnext_tiny", "dinov2_vits14_reg", "efficientnet_lite2", "resnet18", "resnet50"]
)
def test_each_trunk_gives_the_features_of_jax(name: str) -> None:
    trunk = benchmark_trunk(name)

    def program(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        return dict(zip(("maps", "fine"), trunk.apply_with_fine(params, images), strict=True))

    images = np.random.default_rng(0).uniform(0, 255, (3, 64, 64, 3)).astype(np.float32)
    check(program, trunk.params, images)


def test_what_has_no_rule_is_one_sentence_that_names_it() -> None:
    with pytest.raises(
        UserError, match=r"^there is no export to ONNX of the primitive cbrt; .*\w$"
    ):
        check(lambda _, x: {"found": jnp.cbrt(x)}, None, X)


@pytest.fixture(scope="module")
def predictor(finished: FinishedRun) -> Predictor:
    """Of a run with a crop and a margin."""
    whole = load(finished.workdir)
    framing = {"crop": (5, 10, 80, 60), "keep_aspect": True}
    return dataclasses.replace(whole, config=with_settings(whole.config, framing))


@pytest.fixture(scope="module")
def exported(
    predictor: Predictor, finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The file and the message."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr("ahl_jax.inference.export.load", lambda _: predictor)
        main(["export", str(finished.workdir), str(path), "--fpr", "0.2"])
    return path, said.getvalue()


@pytest.fixture(scope="module")
def file(exported: tuple[Path, str]) -> Path:
    return exported[0]


def test_the_message_says_how_photographs_are_read(exported: tuple[Path, str]) -> None:
    assert "RGB images of 192 x 192 pixels with ONNX Runtime" in exported[1]
    assert "is the crop 5 10 80 60 of a photograph, within a margin that keeps its" in exported[1]


def test_a_run_scores_images_as_predict_does(predictor: Predictor, file: Path) -> None:
    written = session(str(file))
    images = np.random.default_rng(3).integers(0, 256, (3, 12, 12, 3)).astype(np.uint8)
    images = images.repeat(16, 1).repeat(16, 2)
    expected = predictor.of_arrays(images)
    chances = predictor.calibrated().probability(expected.scores)
    for rows in (1, 3):
        found = results(written, {"images": images[:rows]})
        np.testing.assert_allclose(found["score"], expected.scores[:rows], atol=SAME)
        np.testing.assert_allclose(found["heads"], expected.heads[:rows], atol=SAME)
        np.testing.assert_allclose(found["heat"], expected.heat[:rows], atol=1e-3)
        np.testing.assert_allclose(found["probability"], chances[:rows], atol=SAME)
        assert found["threshold"] == np.float32(predictor.calibrated().cut(0.2).threshold)
        np.testing.assert_array_equal(found["decision"], found["score"] > found["threshold"])
    middle = np.sort(found["score"])[1]
    again = results(written, {"images": images, "set_threshold": np.array(middle)})
    assert again["threshold"] == middle
    np.testing.assert_array_equal(again["decision"], found["score"] > middle)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_example_says_the_same_without_jax(
    predictor: Predictor, file: Path, weave: Path, runtime: str
) -> None:
    pytest.importorskip(runtime)
    paths = [weave / "test/spot/00.png", weave / "test/good/00.png"]
    images = np.stack([read_image(path, predictor.frame) for path in paths])
    found = results(session(str(file)), {"images": images})
    hide = "import runpy, sys; sys.modules['jax'] = sys.modules['ahl_jax'] = None; "
    code = hide + "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(EXAMPLE), str(file), *map(str, paths)]
    options = ["--runtime", runtime, "--threshold", str(found["score"].mean())]
    done = subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE, timeout=200)
    anomalies = found["score"] > found["score"].mean()
    assert anomalies.any()
    lines = zip(done.stdout.decode().splitlines(), paths, found["score"], anomalies, strict=True)
    for line, path, score, anomaly in lines:
        name, number, decision = line.split("\t")
        assert name == str(path)
        assert float(number) == pytest.approx(score, abs=2e-3)
        assert decision == ("anomaly" if anomaly else "normal")


def test_the_example_ends_in_a_sentence(file: Path, weave: Path, tmp_path: Path) -> None:
    photo, junk = weave / "test/spot/00.png", tmp_path / "junk.onnx"
    junk.write_text("junk")
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(photo.read_bytes()[:60])
    for arguments, message in [
        ([junk, photo], f"{junk} is no model of `ahl export`"),
        ([file, damaged], f"left out: {damaged} cannot be read as a photograph"),
        ([file, weave], f"{weave} is a folder; name its files"),
        ([file, photo, "--threshold", "nan"], "nan is no finite number"),
    ]:
        command = [sys.executable, str(EXAMPLE), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
    command = [sys.executable, str(EXAMPLE), *map(str, (file, damaged, photo))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [str(photo)]


@pytest.mark.slow
def test_the_example_of_eight_bits(file: Path, weave: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    goods = list(map(str, sorted(weave.glob("test/good/*.png"))))
    spots = list(map(str, sorted(weave.glob("test/spot/*.png"))))
    small = tmp_path / "small.xml"

    def said(*command: object) -> list[str]:
        run = [sys.executable, *map(str, command)]
        return subprocess.check_output(run, text=True, timeout=250).splitlines()

    *_, before, after, last = said(EXAMPLE.with_name("quantize.py"), file, small, *goods)
    assert before.startswith("float32: the median score is ")
    assert after.startswith("INT8: the median score is ")
    _, threshold, *_ = last.split()
    lines = said(EXAMPLE, small, *goods, *spots, "--threshold", threshold)
    decisions = [line.split("\t")[2] for line in lines]
    assert decisions[: len(goods)] == ["normal"] * len(goods)
    assert decisions.count("anomaly") > len(spots) / 2
    # The weights of products take a byte each, and those of the detector four.
    assert small.with_suffix(".bin").stat().st_size < file.stat().st_size


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.onnx", ["--platforms", "cpu"], "--platforms are those of a file for JAX"),
        ("no/model.onnx", [], "cannot be written"),
        ("model.onnx", ["--fpr", "2"], "--fpr is 2.0"),
    ],
)
def test_bad_options_end_in_one_sentence(
    finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    name: str, options: list[str], message: str,
) -> None:  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main(["export", str(finished.workdir), str(tmp_path / name), *options])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
