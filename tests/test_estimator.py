import copy
import pickle
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import column_or_1d

from ahl_jax import AHLDetector, BadImageError, UserError, load

pytestmark = pytest.mark.filterwarnings("ignore:.*held-out normals the lowest rate")

SIDE = 96

# The closed form, which takes next to no training and tells the defects of these images.
QUICK = {
    "image_size": 192,
    "views": 1,
    "settings": {
        "method": "fit", "pseudo_per_generator": 4, "steps": 1, "updates_per_epoch": 1, "batch": 3,
        "in_turn": False,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def paths(weave: Path) -> list[Path]:
    """20 normals, then 7 scratches and 7 spots."""
    folders = ("train/good", "test/scratch", "test/spot")
    return [path for name in folders for path in sorted((weave / name).iterdir())]


@pytest.fixture(scope="module")
def arrays(paths: list[Path]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in paths])


@pytest.fixture(scope="module")
def y() -> np.ndarray:
    return np.repeat([0, 1], [20, 14])


@pytest.fixture(scope="module")
def new(paths: list[Path], weave: Path) -> tuple[list[Path], np.ndarray]:
    """Normals that no fit has seen, and the spots."""
    normals = sorted((weave / "test/good").iterdir())
    return normals + paths[-7:], np.repeat([0, 1], [len(normals), 7])


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run of ``fitted`` was."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def fitted(paths: list[Path], y: np.ndarray, temporary: Path) -> AHLDetector:
    """Trained on scratches alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        return AHLDetector(**QUICK, fpr=0.1).fit(paths[:27], y[:27])


def test_it_finds_defects_that_it_was_not_shown(
    fitted: AHLDetector, new: tuple[list[Path], np.ndarray]
) -> None:
    images, labels = new
    assert roc_auc_score(labels, fitted.decision_function(images)) > 0.9
    assert fitted.score(images, labels) > 0.7


def test_all_labelled_anomalies_are_trained_on_and_some_normals_held_out(
    fitted: AHLDetector,
) -> None:
    assert fitted.predictor_.metadata["n_seen"] == 7
    assert fitted.predictor_.metadata["n_train_normal"] == 18
    assert len(fitted.predictor_.calibrated().scores) == 2


def test_what_it_says_of_an_image_agrees(
    fitted: AHLDetector, new: tuple[list[Path], np.ndarray]
) -> None:
    images, _ = new
    scores = fitted.predictor_.score(images)
    above = fitted.decision_function(images)
    np.testing.assert_array_equal(fitted.score_samples(images), -scores)
    np.testing.assert_allclose(above, scores - fitted.threshold_, rtol=1e-6)
    assert fitted.threshold_ == fitted.predictor_.calibrated().threshold(0.1)
    np.testing.assert_array_equal(fitted.predict(images), (above > 0).astype(int))
    np.testing.assert_array_equal(fitted.classes_, [0, 1])
    assert not hasattr(fitted, "predict_proba")
    assert not hasattr(AHLDetector(), "threshold_")
    # A copy, as others read the fitted one.
    named = copy.copy(fitted).set_params(fpr=None, threshold=float(scores.max()))
    assert not named.predict(images).any()
    named.set_params(fpr=0.5, threshold=None)
    assert named.threshold_ == fitted.predictor_.calibrated().threshold(0.5)


def test_its_heat_map_is_the_detectors(fitted: AHLDetector, paths: list[Path]) -> None:
    heat = fitted.heat_map(np.asarray(Image.open(paths[-1])))
    assert heat.shape == (SIDE, SIDE)
    np.testing.assert_array_equal(heat, fitted.predictor_.heat_map(paths[-1]))
    with pytest.raises(NotFittedError):
        AHLDetector().heat_map(paths[-1])


@pytest.mark.slow
def test_paths_arrays_and_rows_of_the_same_images_give_the_same_detector(
    fitted: AHLDetector, paths: list[Path], arrays: np.ndarray, y: np.ndarray
) -> None:
    some = [0, 1, -2, -1]
    expected = fitted.decision_function([paths[i] for i in some])
    rows = arrays.reshape(len(arrays), -1).astype(np.int64)
    of_rows = clone(fitted).set_params(image_shape=(SIDE, SIDE, 3)).fit(rows[:27], y[:27])
    np.testing.assert_allclose(of_rows.decision_function(rows[some]), expected, atol=1e-4)
    assert of_rows.n_features_in_ == SIDE * SIDE * 3
    assert not hasattr(fitted, "n_features_in_")
    names = np.array([str(path) for path in paths])
    np.testing.assert_allclose(fitted.decision_function(names[some]), expected, atol=1e-4)
    few = [paths[i] for i in some]
    pictures = [Image.open(path) for path in few]
    for form in (
        arrays[some], list(arrays[some]), jnp.asarray(arrays[some]), pictures, tuple(pictures),
        [arrays[0], *pictures[1:]], iter(few), map(Image.open, few), names[some][:, None],
        Column(few), Column(list(arrays[some])), Column(names[some].tolist()),
    ):  # fmt: skip
        np.testing.assert_allclose(fitted.decision_function(form), expected, atol=1e-4)


class Column:
    """What scikit-learn and NumPy see of a table's column."""

    ndim = 1

    def __init__(self, items: list) -> None:
        self.items = np.empty(len(items), object)
        self.items[:] = items

    def __len__(self) -> int:
        return len(self.items)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.items


class NAType:
    """As of pandas: whether it equals anything is not known."""

    def __eq__(self, other: object) -> "NAType":  # type: ignore[override]
        return self

    __ne__ = __eq__  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")


@pytest.mark.slow
def test_pictures_are_trained_on_as_arrays_are(
    fitted: AHLDetector, paths: list[Path], y: np.ndarray
) -> None:
    pictures = clone(fitted).fit([Image.open(path) for path in paths[:27]], y[:27])
    np.testing.assert_allclose(
        pictures.decision_function(paths[-3:]), fitted.decision_function(paths[-3:]), atol=1e-4
    )


@pytest.mark.parametrize("call", ["predict", "score_samples", "decision_function"])
def test_one_image_is_no_list_of_images(
    fitted: AHLDetector, arrays: np.ndarray, paths: list[Path], call: str
) -> None:
    for one in (arrays[0], arrays[0][..., :1], paths[0], str(paths[0]), Image.open(paths[0])):
        with pytest.raises(UserError, match="put one image in a list"):
            getattr(fitted, call)(one)


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "sign"), [(("good", "scratch"), 1), (("normal", "crack"), -1)])
def test_labels_may_be_words(
    fitted: AHLDetector,
    paths: list[Path],
    y: np.ndarray,
    new: tuple[list[Path], np.ndarray],
    labels: tuple[str, str],
    sign: int,
) -> None:
    images, truth = new[0][6:12], new[1][6:12]
    named = clone(fitted).fit(paths[:27], np.array(labels)[y[:27]])
    np.testing.assert_array_equal(named.classes_, sorted(labels))
    above = fitted.decision_function(images)
    np.testing.assert_allclose(named.decision_function(images), sign * above, atol=1e-4)
    np.testing.assert_array_equal(named.predict(images), np.array(labels)[fitted.predict(images)])
    assert roc_auc_score(np.array(labels)[truth], named.decision_function(images)) > 0.8


@pytest.mark.slow
def test_several_classes_of_anomalies_may_be_named(
    fitted: AHLDetector, paths: list[Path], arrays: np.ndarray
) -> None:
    names = np.repeat(["good", "scratch", "spot"], [20, 7, 7])
    named = clone(fitted).fit(arrays, names)
    assert not hasattr(named, "n_features_in_")
    assert named.classes_.tolist() == ["anomaly", "good"]
    assert named.predictor_.metadata["n_seen"] == 14
    assert (named.predict(paths[-7:]) == "anomaly").all()
    with pytest.raises(ValueError, match="normal_label"):
        clone(fitted).fit(paths, np.repeat(["fine", "scratch", "spot"], [20, 7, 7]))


@pytest.mark.slow
def test_a_label_for_normal_can_be_named(
    fitted: AHLDetector, paths: list[Path], y: np.ndarray
) -> None:
    numbers = np.array([7, 3])[y]
    with pytest.raises(ValueError, match="normal_label"):
        clone(fitted).fit(paths, numbers)
    named = clone(fitted).set_params(normal_label=7).fit(paths[:27], numbers[:27])
    np.testing.assert_array_equal(
        named.predict(paths[-4:]), np.array([7, 3])[fitted.predict(paths[-4:])]
    )


@pytest.mark.parametrize(
    ("labels", "normal", "known"),
    [
        ([1, -1, 1], 1, [-1, 1]),
        (np.array([1.0, -1.0]), 1.0, [-1.0, 1.0]),
        ([False, True, False], False, [False, True]),
        (Column([False, True]), False, [False, True]),
        (Column([1, -1]), 1, [-1, 1]),
        (Column(["ok", "scratch"]), "ok", ["ok", "scratch"]),
        (["good", "dent", "scratch"], "good", ["anomaly", "good"]),
    ],
)
def test_labels_of_any_kind_are_taken(labels: Any, normal: Any, known: list) -> None:
    detector = AHLDetector()
    classes, found = detector._classes(detector._two(column_or_1d(labels)))
    assert (classes.tolist(), found) == (known, normal)


@pytest.mark.slow
def test_cross_validation_and_search_in_a_pipeline(arrays: np.ndarray, y: np.ndarray) -> None:
    pipeline = make_pipeline(FunctionTransformer(), AHLDetector(**QUICK))
    one_fold = list(StratifiedKFold(3, shuffle=True, random_state=0).split(arrays, y))[:1]
    scores = cross_val_score(pipeline, arrays, y, cv=one_fold, scoring="roc_auc")
    assert scores.mean() > 0.8
    search = GridSearchCV(
        pipeline, {"ahldetector__fpr": [0.01, 0.6]}, cv=one_fold, scoring="recall", refit=False
    ).fit(arrays, y)
    few, many = search.cv_results_["mean_test_score"]
    assert few <= many


def test_its_parameters_are_those_of_the_constructor() -> None:
    detector = AHLDetector("paper", epochs=3, settings={"subsets": 4}, random_state=7)
    other = clone(detector)
    assert other.get_params() == detector.get_params()
    config = other._config(5)
    assert config.learning.epochs == 3
    assert config.subsets.subsets == 4
    assert config.seed == 7
    assert config.data.shots == 5
    assert config.data.limit is None
    seeds = [AHLDetector(random_state=np.random.RandomState(3))._config(1).seed for _ in range(2)]
    assert seeds[0] == seeds[1]


@pytest.mark.parametrize(
    ("normal", "anomaly"), [pytest.param(0, 1, marks=pytest.mark.slow), ("good", "anomaly")]
)
def test_what_trains_nothing_takes_normals_alone(
    paths: list[Path], new: tuple[list[Path], np.ndarray], normal: Any, anomaly: Any
) -> None:
    images, truth = new
    settings = {"method": "fit", "coreset": 200}
    detector = AHLDetector("debug", detector="patchcore", settings=settings, held_out=0.2, fpr=0.2)
    detector.fit(paths[:20], [normal] * 20)
    assert len(detector.predictor_.calibrated().scores) == 20
    assert detector.classes_.tolist() == sorted([normal, anomaly])
    found = detector.predict(images)
    assert set(found) <= {normal, anomaly}
    assert (found[truth == 1] == anomaly).mean() > 0.8
    with pytest.raises(ValueError, match="one class"):
        AHLDetector("paper").fit(paths[:20], [normal] * 20)


@pytest.mark.slow
def test_it_warns_where_too_few_are_held_out(
    fitted: AHLDetector, paths: list[Path], y: np.ndarray
) -> None:
    message = r"2 held-out normals the lowest rate .* is 33 %; 5 % takes 19 of them"
    with pytest.warns(UserWarning, match=message):
        clone(fitted).set_params(fpr=0.05).fit(paths[:27], y[:27])


def test_no_run_is_kept_where_no_folder_is_named(fitted: AHLDetector, temporary: Path) -> None:
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_the_run_is_kept_where_a_folder_is_named(
    fitted: AHLDetector, paths: list[Path], y: np.ndarray, tmp_path: Path
) -> None:
    kept = clone(fitted).set_params(workdir=tmp_path / "run").fit(paths[:27], y[:27])
    expected = fitted.predictor_.score(paths[:2])
    np.testing.assert_allclose(load(tmp_path / "run").score(paths[:2]), expected, atol=1e-4)
    with pytest.raises(UserError, match="start over with `overwrite=True`"):
        clone(kept).fit(paths[:26] + paths[-1:], y[:27])
    replaced = clone(kept).set_params(overwrite=True).fit(paths[:26] + paths[-1:], y[:27])
    assert not np.allclose(replaced.predictor_.score(paths[:2]), expected, rtol=0, atol=1e-4)


def test_a_pickled_copy_says_the_same(fitted: AHLDetector, paths: list[Path]) -> None:
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_allclose(
        again.decision_function(paths[:3]), fitted.decision_function(paths[:3]), atol=1e-4
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "best"}, "no preset 'best'; choose from density"),
        ({"settings": {"seed": 3}}, "'seed'"),
        ({"settings": {"shots": 3}}, "'shots'"),
        ({"settings": {"views": 3}, "views": 1}, "'views'"),
        ({"views": 3}, r"^`views` is 3; choose from 1, 2, 4, 8, 2\+8"),
        ({"epochs": 2.5}, r"^`epochs` is 2.5; it must be an int"),
        ({"settings": {"depth": 3}}, "no such settings: depth"),
        ({"held_out": 0}, "above 0"),
        ({"held_out": 0.9}, "0 to 0.5"),
        ({"fpr": 0}, "between 0 and 1"),
        ({"image_size": 100}, r"^`image_size` is 100; it must be 192 or more"),
        ({"settings": {"clusters": 1}}, r"^`clusters` is 1; it must be 2 or more"),
        (
            {"settings": {"updates_per_epoch": 3}},
            r"^`updates_per_epoch` is 3; .* divide `steps` \(20",
        ),
        ({"settings": {"whiten": False}}, "density needs `whiten=True`;"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    options: dict, message: str, paths: list[Path], y: np.ndarray
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        AHLDetector(**options).fit(paths, y)
    assert "--" not in str(refused.value)  # No option of the command line.


def test_a_file_that_cannot_be_read_keeps_its_name_in_the_message(
    fitted: AHLDetector, paths: list[Path], y: np.ndarray, tmp_path: Path
) -> None:
    bad = tmp_path / "a--skip-bad-images" / "--out.png"
    bad.parent.mkdir()
    bad.write_bytes(b"no image")
    for call, advice in (
        (lambda: clone(fitted).fit([bad, *paths[1:27]], y[:27]), "{'skip_bad_images': True}`"),
        (lambda: fitted.score_samples([bad]), "replace the file"),
        (lambda: fitted.predict([bad]), "replace the file"),
    ):
        with pytest.raises(BadImageError) as refused:
            call()
        assert str(refused.value).startswith(f"{bad} cannot be read as an image")
        assert str(refused.value).endswith(advice)


def test_data_that_does_not_fit_is_refused(paths: list[Path], arrays: np.ndarray) -> None:
    detector = AHLDetector(**QUICK)
    rows = arrays.reshape(len(arrays), -1)
    two = [0, 1] * 17
    bad = [
        (rows, two, "give `image_shape`"),
        (-1.0 * rows, two, "Negative values"),
        (paths, two[:-1], "inconsistent numbers"),
        (paths, None, "requires y"),
        ([], [], "empty"),
        (paths, [None] * 34, "None among its labels"),
        ([*paths[:-1], None], two, "NoneType values among paths"),
        (paths[0], [0], "put one image in a list"),
        (paths, [1] * 34, "one class, 1;"),
        (paths, [0, 1, 2] * 11 + [0], "binary"),
        (paths[:2], [0, 1], "one sample that is normal"),
        ([*paths[:-1], 3], two, "int values among paths"),
        ([*paths[:-1], NAType()], two, "NAType values among paths"),
        (Column([*arrays[:-1], NAType()]), two, "NAType values among images"),
        ([*arrays[:-1], None], two, "NoneType values among images"),
        ([NAType()] * 34, two, "NAType values among images"),
        (np.array([paths, paths]).T, two, "give one column"),
        (arrays[0], two, "put one image in a list"),
        (dict.fromkeys(paths), two, "of type dict is no list of images"),
        (set(paths), two, "of type set is no list of images"),
        (paths, Column([*two[:-1], NAType()]), "NAType .* among its labels"),
        (paths, [*two[:-1], np.nan], "nan among its labels"),
    ]
    for X, labels, message in bad:
        with pytest.raises(ValueError, match=message):
            detector.fit(X, labels)
    with pytest.raises(ValueError, match="does not make rows"):
        clone(detector).set_params(image_shape=(8, 8)).fit(rows, two)
    with pytest.raises(BadImageError, match="image 1 of X"):
        detector.fit(np.stack([arrays[0] / 255, -(arrays[1] / 255), arrays[2] / 255]), [0, 0, 1])


class OfRows(AHLDetector):
    """Takes rows of any length as images of one row, and any two labels, as the checks give."""

    def _row_shape(self, features: int) -> tuple[int, ...]:
        return (1, features)

    def _normal_label(self, classes: np.ndarray) -> object:
        return classes.tolist()[0]


ROUNDING = "asks for more digits than float32 has: by its place in a batch, the score of an image "
CANNOT = {
    "check_methods_subset_invariance": f"{ROUNDING} that set the threshold differed by 2e-7",
    "check_methods_sample_order_invariance": f"{ROUNDING} differed by 2e-7",
}


@pytest.mark.slow
@parametrize_with_checks([OfRows(**QUICK)], expected_failed_checks=lambda _: CANNOT)
def test_scikit_learns_own_checks(estimator: AHLDetector, check: object) -> None:
    assert callable(check)
    check(estimator)
