import dataclasses
import json
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from packaging.requirements import Requirement
from PIL import Image

from ahl_jax import Predictor, UserError, export_model, export_onnx, load
from ahl_jax.cli.main import main
from ahl_jax.config.presets import with_settings
from ahl_jax.data.frame import Frame
from ahl_jax.data.images import read_image
from tests.runs import FinishedRun

SAME = 1e-4

CONSUMER = """
import importlib.util, sys
assert not any(map(importlib.util.find_spec, ("ahl_jax", "flax", "orbax", "PIL")))
import jax, numpy as np
file, images, out = sys.argv[1:]
model = jax.export.deserialize(bytearray(open(file, "rb").read()))
images = np.load(images)
stored = np.float32("nan")
found = [model.call(images[:1], stored), model.call(images[:3], stored)]
keys = [f"{name}{len(one['score'])}" for one in found for name in one]
np.savez(out, *[], **dict(zip(keys, [x for one in found for x in one.values()])))
"""


@pytest.fixture(scope="module")
def predictor(finished: FinishedRun) -> Predictor:
    return load(finished.workdir)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    rng = np.random.default_rng(3)
    smooth = rng.integers(0, 256, (3, 12, 12, 3)).astype(np.uint8)
    return smooth.repeat(16, 1).repeat(16, 2)


@pytest.fixture(scope="module")
def file(finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.bin"
    main(["export", str(finished.workdir), str(path), "--fpr", "0.2"])
    return path


@pytest.fixture(scope="module")
def exported(file: Path) -> jax_export.Exported:
    return jax_export.deserialize(bytearray(file.read_bytes()))


@pytest.fixture(scope="module")
def jax_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with jax and flatbuffers, what these need, and nothing else."""
    folder = tmp_path_factory.mktemp("jax_alone")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    wanted, linked = ["jax", "flatbuffers"], set[str]()
    while wanted:
        name = wanted.pop()
        if name in linked:
            continue
        linked.add(name)
        found = metadata.distribution(name)
        for part in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            (packages / part).symlink_to(Path(str(found.locate_file(part))))
        needs = map(Requirement, found.requires or ())
        wanted += [r.name for r in needs if not r.marker or r.marker.evaluate({"extra": ""})]
    return folder / "bin/python"


@pytest.fixture(scope="module")
def elsewhere(file: Path, images: np.ndarray, jax_alone: Path) -> dict[str, np.ndarray]:
    """What JAX alone makes of the file, for 1 and 3 images, each name with the number after it."""
    given, out = file.with_name("images.npy"), file.with_name("out.npz")
    np.save(given, images)
    command = [str(jax_alone), "-I", "-c", CONSUMER, str(file), str(given), str(out)]
    subprocess.run(command, check=True, timeout=200)
    with np.load(out) as found:
        return dict(found)


@pytest.mark.parametrize("count", [1, 3])
def test_jax_alone_computes_what_the_detector_does(
    predictor: Predictor, images: np.ndarray, elsewhere: dict[str, np.ndarray], count: int
) -> None:
    expected = predictor.outcome(images[:count])
    found = {name[:-1]: x for name, x in elsewhere.items() if name.endswith(str(count))}
    np.testing.assert_allclose(found["score"], expected.scores, atol=SAME)
    np.testing.assert_allclose(found["heads"], expected.heads, atol=SAME)
    np.testing.assert_allclose(found["heat"], expected.heat, atol=1e-3)
    chances = predictor.calibrated().probability(expected.scores)
    np.testing.assert_allclose(found["probability"], chances, atol=SAME)
    assert found["threshold"] == pytest.approx(predictor.calibrated().threshold(0.2))
    np.testing.assert_array_equal(found["decision"], found["score"] > found["threshold"])


def _kinds(folder: Path) -> list[Path]:
    """A picture in the forms that a careless reading gets wrong."""
    rows, columns = np.mgrid[:150, :210]
    colour = np.stack([rows, columns, (rows + columns) // 2], -1).astype(np.uint8)
    grey = colour[..., 1]
    turned = Image.Exif()
    turned[0x0112] = 6
    forms = {
        "8.png": colour, "alpha.png": np.dstack([colour, grey]),
        "16.png": grey.astype(np.uint16) * 250, "dark.png": grey.astype(np.uint16),
        "16.tif": grey.astype(np.uint16) * 257,
        "32.tif": grey.astype(np.int32), "32of16.tif": grey.astype(np.int32) * 250,
        "unit.tif": grey.astype(np.float32) / 255, "float.tif": grey.astype(np.float32) * 0.7,
        "1.png": grey > 100, "large.jpg": colour.repeat(8, 0).repeat(8, 1),
    }  # fmt: skip
    for name, array in forms.items():
        for prefix, exif in (("", None), ("turned-", turned)):
            picture = Image.fromarray(array)
            picture.save(folder / f"{prefix}{name}", **({} if exif is None else {"exif": exif}))
    Image.fromarray(colour).quantize(30).save(folder / "palette.png")
    Image.fromarray(colour).convert("CMYK").save(folder / "cmyk.jpg")
    return sorted(folder.iterdir())


def test_the_example_in_the_documentation_reads_images_as_files_are_read(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = Path(__file__).parents[2] / "docs"
    monkeypatch.syspath_prepend(docs / "examples/onnx")
    page = (docs / "serving.md").read_text(encoding="utf-8")
    (tmp_path / "images").mkdir()
    paths = _kinds(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.bin").symlink_to(file)
    (tmp_path / "part.png").symlink_to(paths[0])
    names: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], names)
    assert "True" in (said := capsys.readouterr().out) or "False" in said
    assert names["framing"](120, 90, "model") == {"width": 90, "height": 120}
    crop = (20, 10, 120, 130)
    for frame in (
        Frame(64, 64), Frame(192, 192), Frame(90, 120, crop), Frame(90, 120, keep_aspect=True),
        Frame(200, 90, crop, keep_aspect=True),
    ):  # fmt: skip
        for path in paths:
            found = names["read"](path, **dataclasses.asdict(frame))
            np.testing.assert_array_equal(found, read_image(path, frame), f"{path.name}, {frame}")


def test_the_file_says_what_it_takes_and_where_it_runs(
    exported: jax_export.Exported, predictor: Predictor
) -> None:
    images, threshold = exported.in_avals
    assert (threshold.shape, threshold.dtype) == ((), np.float32)
    size = predictor.config.features.image_size
    assert images.shape[1:] == (size, size, 3)
    assert images.dtype == np.uint8
    assert jax_export.is_symbolic_dim(images.shape[0])
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert json.loads(exported.fun_name) == dataclasses.asdict(predictor.frame)


def test_a_threshold_that_is_given_stands_in_the_place_of_the_stored_one(
    exported: jax_export.Exported, images: np.ndarray
) -> None:
    program = jax.jit(exported.call)
    scores = np.asarray(program(images, np.float32("nan"))["score"])
    found = program(images, np.float32(scores[1]))
    assert found["threshold"] == scores[1]
    np.testing.assert_array_equal(found["decision"], scores > scores[1])


def test_the_weights_are_in_the_file_once(file: Path, predictor: Predictor) -> None:
    weights = sum(x.nbytes for x in jax.tree.leaves(predictor.arrays))
    assert file.stat().st_size < 1.2 * weights + 2**20


@pytest.mark.slow
def test_a_run_without_a_threshold_calls_nothing_normal_until_it_is_given_one(
    predictor: Predictor, images: np.ndarray, tmp_path: Path
) -> None:
    without = dataclasses.replace(predictor, calibration=None)
    exported = export_model(without, tmp_path / "model.bin", platforms=["cpu"])
    found = exported.call(images, np.float32("nan"))
    assert found.keys() == {"score", "heads", "heat", "threshold", "decision"}
    np.testing.assert_allclose(found["score"], predictor.score(images), atol=SAME)
    assert np.isnan(found["threshold"])
    assert found["decision"].all()
    assert not exported.call(images, found["score"].max())["decision"].any()


@pytest.mark.slow
def test_products_are_of_float32_on_a_cpu_and_of_the_precision_elsewhere(
    predictor: Predictor, tmp_path: Path
) -> None:
    config = with_settings(predictor.config, {"precision": "bfloat16"})
    half = dataclasses.replace(predictor, config=config)
    for platform, expected in {"cpu": False, "cuda": True}.items():
        exported = export_model(half, tmp_path / platform, platforms=[platform])
        assert ("bf16" in exported.mlir_module()) is expected, platform


@pytest.mark.slow
def test_a_reference_of_equal_values_is_exported_in_bfloat16_too(
    predictor: Predictor, images: np.ndarray, tmp_path: Path
) -> None:
    blank = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.bfloat16), predictor.scorer.reference)
    scorer = dataclasses.replace(predictor.scorer, reference=blank)
    half = dataclasses.replace(predictor, scorer=scorer)
    exported = export_model(half, tmp_path / "model.bin", platforms=["cpu"])
    found = exported.call(images, np.float32("nan"))
    np.testing.assert_allclose(found["score"], half.score(images), atol=0.02)


def test_the_file_is_replaced_in_one_step(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        export_model(predictor, file, platforms=["cpu"])
    assert file.read_bytes() == b"before"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.bin", "--fpr", "2"], "--fpr is 2.0; it must be between 0 and 1"),
        (["no/such/model.bin"], "cannot be written"),
        (["."], "is a folder"),
        (["model.pt"], "would be no .pt file; a name in .onnx gives ONNX, and any other, such"),
        (["model.TXT"], "would be no .TXT file"),
        (["model.ONNX", "--platforms", "cpu"], "leave them out for ONNX"),
    ],
)
def test_bad_options_end_in_one_sentence(
    finished: FinishedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["export", str(finished.workdir), *options])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_run_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        export_model(tmp_path, tmp_path / "model.bin")
    with pytest.raises(UserError, match="choose from cpu"):
        export_model(tmp_path, tmp_path / "model.bin", platforms=["gpu"])


def test_the_name_tells_the_format(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="write that with `export_onnx`"):
        export_model(predictor, tmp_path / "model.onnx", platforms=["cpu"])
    with pytest.raises(UserError, match="is no name for ONNX"):
        export_onnx(predictor, tmp_path / "model.bin")


def test_without_onnx_a_sentence_says_how_to_get_it(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="run `pip install onnx`"):
        export_onnx(predictor, tmp_path / "model.onnx")


def test_a_stored_threshold_that_is_not_as_asked_for_is_said(
    predictor: Predictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export_model(predictor, tmp_path / "model.bin", fpr=0.01)
    assert predictor.calibrated().shortfall(0.01) in [record.message for record in caplog.records]
