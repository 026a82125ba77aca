import dataclasses
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ahl_jax import BadImageError, InputError, Predictor, UserError, load
from ahl_jax.config.presets import with_settings
from ahl_jax.features import Store
from ahl_jax.features import split as gather
from ahl_jax.inference.predictor import _outcome_of
from ahl_jax.inference.threshold import read_calibration
from tests.runs import FinishedRun

# Scores of the tiny run go from about -10 to 10.
SAME = 1e-4


@pytest.fixture(scope="module")
def predictor(finished: FinishedRun) -> Predictor:
    return load(finished.workdir)


@pytest.fixture(scope="module")
def images(finished: FinishedRun) -> list[Path]:
    """A third of the test's, of every kind."""
    samples = gather.load_split(finished.config).test[::3]
    return [sample.path for sample in samples if isinstance(sample.path, Path)]


@pytest.fixture(scope="module")
def scores(predictor: Predictor, images: list[Path]) -> np.ndarray:
    return predictor.score(images)


def array_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_images_score_as_their_stored_features_do(
    predictor: Predictor, finished: FinishedRun, scores: np.ndarray
) -> None:
    split = gather.load_split(finished.config)
    test = gather.test_features(finished.config, split, predictor.trunk, Store(), progress=False)
    maps = [scale[::3] for scale in test.maps]
    expected = predictor.scorer.outcome(maps)
    np.testing.assert_allclose(scores, predictor.scorer.score(maps), atol=SAME)
    found = predictor.outcome([sample.path for sample in test.samples[::3]])
    np.testing.assert_allclose(found.heat, expected.heat, atol=1e-3)
    np.testing.assert_allclose(found.heads, expected.heads, atol=SAME)
    assert found.heads.shape == (len(scores), len(predictor.heads))
    assert scores.dtype == np.float32
    assert np.ptp(scores) > 100 * SAME


def test_an_image_scores_the_same_in_whatever_form_it_comes(
    predictor: Predictor, images: list[Path], scores: np.ndarray
) -> None:
    some, expected = images[:3], scores[:3]
    arrays = np.stack([array_of(path) for path in some])
    forms = [
        [str(path) for path in some],
        [Image.open(path) for path in some],
        list(arrays),
        arrays,
        [Image.fromarray(a).convert("RGBA") for a in arrays],
        (Image.open(path) for path in some),
        np.array([str(path) for path in some])[:, None],
        jnp.asarray(arrays),
        arrays / 255,
        arrays.astype(np.float32),
    ]
    for form in forms:
        np.testing.assert_array_equal(predictor.score(form), expected)


def test_grey_images_score_as_three_equal_channels(
    predictor: Predictor, images: list[Path], tmp_path: Path
) -> None:
    grey = array_of(images[0])[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    forms = [tmp_path / "grey.png", grey, grey[..., None], np.stack([grey] * 3, axis=-1)]
    assert len(np.unique(predictor.score(forms))) == 1
    np.testing.assert_array_equal(
        predictor.score(np.stack([grey, grey.T])), predictor.score([grey, grey.T])
    )


def test_no_images_have_no_scores(predictor: Predictor) -> None:
    assert predictor.score([]).shape == (0,)
    assert predictor.score([]).dtype == np.float32
    assert predictor.predict([]).shape == predictor.probability([]).shape == (0,)
    assert predictor.outcome([]).heat.shape[0] == 0


@settings(max_examples=5)
@given(st.lists(st.integers(1, 6), max_size=3))
def test_the_scores_do_not_depend_on_what_is_scored_together(
    predictor: Predictor, images: list[Path], scores: np.ndarray, cuts: list[int]
) -> None:
    parts = np.split(np.arange(len(images)), sorted(cuts))
    found = [predictor.score([images[i] for i in part]) for part in parts]
    np.testing.assert_allclose(np.concatenate(found), scores, atol=SAME)


def test_there_is_one_program_for_each_power_of_two(
    predictor: Predictor, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ahl_jax.distributed.cores.cores", lambda: 1)
    _outcome_of.clear_cache()
    for count in (3, 4, 2, 1, 4, 3):
        dataclasses.replace(predictor).score(images[:count])
    assert _outcome_of._cache_size() == 3


def test_several_threads_get_the_scores_of_one(
    predictor: Predictor, images: list[Path], scores: np.ndarray
) -> None:
    fresh = dataclasses.replace(predictor)
    _outcome_of.clear_cache()
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda path: fresh.score([path]), images))
    np.testing.assert_allclose(np.concatenate(found), scores, atol=SAME)
    assert _outcome_of._cache_size() == 1


def test_a_copy_by_pickle_scores_the_same(
    predictor: Predictor, images: list[Path], scores: np.ndarray
) -> None:
    copy = pickle.loads(pickle.dumps(predictor))
    np.testing.assert_allclose(copy.score(images[:2]), scores[:2], atol=SAME)


def test_predictions_are_by_the_calibration_of_the_run(
    predictor: Predictor, finished: FinishedRun, images: list[Path], scores: np.ndarray
) -> None:
    calibration = read_calibration(finished.workdir / "checkpoint")
    assert calibration is not None
    with pytest.warns(UserWarning, match="with 2 held-out normals the lowest rate"):
        found = predictor.predict(images)
    np.testing.assert_array_equal(found, scores > calibration.threshold())
    loose = predictor.predict(images, fpr=0.5)
    np.testing.assert_array_equal(loose, scores > calibration.threshold(0.5))
    np.testing.assert_allclose(
        predictor.probability(images), calibration.probability(scores), atol=SAME
    )
    strict = predictor.predict(images, threshold=float(scores[0]))
    np.testing.assert_array_equal(strict, scores > scores[0])
    with pytest.raises(UserError, match=r"^`fpr` is 1; it must be between 0 and 1"):
        predictor.predict(images, fpr=1)


@pytest.mark.parametrize(
    "bad",
    [
        "no-such.png",
        np.zeros((4, 4, 2), np.uint8),
        np.full((8, 8), np.nan),
        np.full((8, 8), -1.0),
        np.zeros((8, 8), np.int64),
        None,
    ],
    ids=["missing", "two channels", "nan", "negative", "int64", "nothing"],
)
def test_what_is_no_image_is_refused(predictor: Predictor, images: list[Path], bad: object) -> None:
    with pytest.raises(BadImageError):
        predictor.score([images[0], bad])  # type: ignore[list-item]


def test_a_damaged_file_is_refused_by_name(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(BadImageError, match=r"damaged\.png"):
        predictor.score([tmp_path / "damaged.png"])


@pytest.mark.parametrize(
    "form", ["text", "path", "picture", "grey", "colour", "on the device", "set", "two columns"]
)
def test_one_image_is_no_list_of_images(
    predictor: Predictor, images: list[Path], form: str
) -> None:
    array = array_of(images[0])
    one = {
        "text": str(images[0]),
        "path": images[0],
        "picture": Image.open(images[0]),
        "grey": array[..., 0],
        "colour": array,
        "on the device": jnp.asarray(array),
        "set": {images[0]},
        "two columns": np.array([[str(path), "0"] for path in images]),
    }[form]
    with pytest.raises(UserError, match="list of images"):
        predictor.score(one)  # type: ignore[arg-type]


def test_a_heat_map_is_of_one_image(predictor: Predictor, images: list[Path]) -> None:
    with pytest.raises(InputError, match="one image at a time; give it without the list"):
        predictor.heat_map(images[:1])


def test_a_threshold_that_is_not_as_asked_for_is_said_of_its_detector(
    predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    predictor.cut(name="left")
    predictor.cut(0.5, name="left")
    predictor.cut()
    dataclasses.replace(predictor, calibration=None).cut(name="right")
    told = [record.message for record in caplog.records]
    few = predictor.calibrated().shortfall()
    assert told[:2] == [f"left: {few}", few]
    assert told[2].startswith("right: scores alone, no decisions: ")


def test_a_run_without_held_out_normals_has_no_threshold(
    predictor: Predictor, images: list[Path]
) -> None:
    config = with_settings(predictor.config, {"held_out": 0.0})
    without = dataclasses.replace(predictor, calibration=None, config=config)
    assert without.score(images[:1]).shape == (1,)
    for method in (without.predict, without.probability):
        with pytest.raises(UserError, match=r"train with `held_out=0\.1`"):
            method(images[:1])


def test_an_unfinished_run_has_no_threshold_yet(
    finished: FinishedRun, images: list[Path], tmp_path: Path
) -> None:
    workdir = shutil.copytree(finished.workdir, tmp_path / "unfinished")
    (workdir / "checkpoint/calibration.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        load(workdir).predict(images[:1])


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        load(tmp_path)
