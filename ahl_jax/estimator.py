"""The detector by scikit-learn's conventions: ``AHLDetector``."""

import contextlib
import dataclasses
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float, Shaped
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import (
    check_is_fitted,
    check_non_negative,
    column_or_1d,
    validate_data,
)

from ahl_jax.common.errors import BadImageError, InputError, UserError
from ahl_jax.common.remote import any_path
from ahl_jax.config.presets import preset
from ahl_jax.config.settings import Config, DataConfig
from ahl_jax.data.images import Picture, image_list, path_or_array, without_skipping
from ahl_jax.data.records import ImageSource, InMemory
from ahl_jax.data.splits import training_split
from ahl_jax.data.types import ANOMALY, NORMAL_WORDS
from ahl_jax.inference.predictor import load
from ahl_jax.inference.threshold import FPR, check_cut, cut_of
from ahl_jax.run.train import train

NORMAL_LABELS = (0, *NORMAL_WORDS)
"""The labels that stand for normal unless ``normal_label`` names another; False counts as 0."""

_BY_FIT = {field.name for field in dataclasses.fields(DataConfig)} - {"skip_bad_images", "in_turn"}
_BY_FIT |= {"seed", "start"}

_SKIPPING = ", or leave such files out with `settings={'skip_bad_images': True}`"


class AHLDetector(ClassifierMixin, BaseEstimator):
    """Anomaly detection from normal images and a few labelled anomalies, as a classifier of two.

    All anomalies that ``fit`` is given are trained on; there may be none with the method ``fit``,
    which trains nothing and is the default preset's. A share ``held_out`` of the normals is not:
    their scores set the threshold, so that about ``fpr`` of normal images are called anomalies.
    Where nothing is trained, the share is held out in turn until every normal was, and all of them
    are fitted to.
    There is no ``predict_proba``, as a detector of anomalies of any kind has no probability that
    an image is one; ``predictor_.probability`` has the share of normal images that score lower.

    ``X`` is one of

    - paths of image files, as a list, an iterator, a 1-D array or a column of a table,
    - images as an array [n, h, w, 3] or [n, h, w], or a list of arrays or PIL images of any sizes,
      with values as ``ahl_jax.data.images.read_image`` states,
    - images flattened to the rows of an array [n, d], with ``image_shape``.

    ``y`` has two labels, as a list, an array or a column of a table: 0, False, "good", "ok" or
    "normal" for normal (or ``normal_label``), and any other for anomalies. Of -1 and 1, 1 is
    normal, as for scikit-learn's own detectors of outliers. ``y`` may also name several classes of
    anomalies by strings, such as "good", "scratch" and "dent"; what is predicted then is "good" or
    "anomaly".

    The sign of ``decision_function`` follows scikit-learn's rule for classifiers: labels are
    sorted, and it is above 0 for the second one. That is the anomaly of 0 and 1, of False and True,
    of "good" and "scratch"; but the normal of -1 and 1, of "anomaly" and "good", of "bad" and "ok".
    ``score_samples`` is lower for more anomalous whatever the labels are.

    Args:
        preset: where the settings start from: density, paper, paper-appendix or debug (see
            ``ahl_jax.preset``).
        detector: the base detector; None, here and below, for the preset's.
        epochs: epochs of training.
        image_size: side in pixels that images are brought to, a multiple of 64 from 192 on.
        views: 1, 2, 4 or 8 turned and mirrored copies of an image, or 2+8.
        held_out: the share of the normals that sets the threshold, in turn all of them unless
            ``settings={"in_turn": False}``.
        fpr: the rate of false positives among normal images that the threshold is set for, by
            default 0.01. It and ``threshold`` can be changed after ``fit``, by ``set_params``.
        threshold: the score above which an image is an anomaly, in the place of ``fpr``.
        normal_label: the label of normal images, if it is another one.
        image_shape: (h, w) or (h, w, 3) of the images in the rows of a 2-D ``X``.
        settings: any other field of ``ahl_jax.Config`` and its parts by name.
        workdir: the run's folder, as ``ahl_jax.train`` takes it. It holds one run: fitting again
            with the same images goes on where it stopped, with other images it is refused. By
            default a temporary one.
        overwrite: whether to replace a different run that ``workdir`` holds.
        cache_dir: the folder that keeps features; see ``ahl_jax.features.default_folder``.
        random_state: the seed, or what scikit-learn takes as one.
        verbose: whether to show progress on stderr.

    Attributes:
        classes_: the two labels of ``y``, sorted.
        predictor_: the trained detector, an ``ahl_jax.Predictor``.
        n_features_in_: d, where ``X`` was [n, d].
    """

    def __init__(
        self,
        preset: str = "density",
        *,
        detector: str | None = None,
        epochs: int | None = None,
        image_size: int | None = None,
        views: int | str | None = None,
        held_out: float = 0.1,
        fpr: float | None = None,
        threshold: float | None = None,
        normal_label: Any = None,
        image_shape: tuple[int, ...] | None = None,
        settings: Mapping[str, Any] | None = None,
        workdir: Path | str | None = None,
        overwrite: bool = False,
        cache_dir: Path | str | None = None,
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.preset = preset
        self.detector = detector
        self.epochs = epochs
        self.image_size = image_size
        self.views = views
        self.held_out = held_out
        self.fpr = fpr
        self.threshold = threshold
        self.normal_label = normal_label
        self.image_shape = image_shape
        self.settings = settings
        self.workdir = workdir
        self.overwrite = overwrite
        self.cache_dir = cache_dir
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on images and their labels, which are always needed.

        Raises:
            ValueError: if ``X`` or ``y`` is not as above.
            UserError: if the settings do not fit, or an image is bad.
        """
        if y is None:
            raise InputError(
                "fit requires y to be passed, but the target y is None; for normal images alone, "
                "give zeros"
            )
        labels = self._two(column_or_1d(y, warn=True))
        classes, normal = self._classes(labels)
        images = self._images(X, reset=True)
        check_consistent_length(images, labels)
        sources: list[ImageSource] = [
            InMemory(f"image {i} of X", image) if isinstance(image, np.ndarray) else image
            for i, image in enumerate(images)
        ]
        anomalous: Bool[np.ndarray, " n"] = labels != normal
        config = self._config(int(anomalous.sum()))
        split = training_split(sources, anomalous, config.held_out_once)
        with contextlib.ExitStack() as stack:
            folder = self.workdir or stack.enter_context(tempfile.TemporaryDirectory())
            cache = None if self.cache_dir is None else any_path(self.cache_dir)
            try:
                train(
                    config,
                    folder,
                    split,
                    overwrite=self.overwrite,
                    cache_dir=cache,
                    progress=self.verbose,
                )
            except BadImageError as error:
                raise BadImageError(f"{without_skipping(str(error))}{_SKIPPING}") from error
            predictor = load(folder)
        self.classes_, self._normal = classes, normal
        self.predictor_ = predictor
        shortfall = predictor.calibrated().shortfall(self.fpr or FPR)
        if self.threshold is None and shortfall:
            warnings.warn(shortfall, stacklevel=2)
        return self

    @property
    def threshold_(self) -> float:
        """The score above which an image is an anomaly, by ``fpr`` or ``threshold`` as they are.

        Raises:
            NotFittedError: before ``fit``.
            UserError: if they are no rate or score, or both are given.
        """
        check_is_fitted(self, "predictor_")
        cut = cut_of(self.predictor_.calibrated(), self.fpr, self.threshold)
        assert cut is not None
        return cut.threshold

    def score_samples(self, X: Any) -> Float[np.ndarray, " n"]:
        """Minus the anomaly scores: lower for more anomalous, as in scikit-learn's detectors.

        Raises:
            ValueError: if ``X`` is not as above.
            UserError: if an image is bad.
        """
        check_is_fitted(self, "predictor_")
        return -self.predictor_.score(self._images(X, reset=False))

    def decision_function(self, X: Any) -> Float[np.ndarray, " n"]:
        """How far the anomaly score is on the side of ``classes_[1]`` of the threshold.

        With labels 0 and 1, higher for more anomalous. As with every classifier of two it speaks
        for ``classes_[1]``, so with labels like "crack" and "good" it is higher for more normal.

        Raises:
            ValueError: if ``X`` is not as above.
            UserError: if an image is bad.
        """
        above = -self.score_samples(X) - self.threshold_
        return above if self.classes_[0] == self._normal else -above

    def predict(self, X: Any) -> Shaped[np.ndarray, " n"]:
        """The label of each image, by whether its score is above ``threshold_``.

        Raises:
            ValueError: if ``X`` is not as above.
            UserError: if an image is bad.
        """
        second = (self.decision_function(X) > 0).astype(int)
        return self.classes_[second]

    def heat_map(self, image: Picture) -> Float[np.ndarray, "h w"]:
        """How anomalous each pixel of one image is, as ``Predictor.heat_map`` has it.

        Args:
            image: a path, an array [h, w, 3] or [h, w], or a PIL image.

        Raises:
            NotFittedError: before ``fit``.
            BadImageError: if it cannot be read.
        """
        check_is_fitted(self, "predictor_")
        return self.predictor_.heat_map(image)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.three_d_array = tags.input_tags.string = True
        tags.input_tags.positive_only = True
        return tags

    def _images(self, X: Any, *, reset: bool) -> Sequence[Path | np.ndarray]:
        """The images of ``X``, in a form that ``Predictor.score`` takes too."""
        if not _is_rows(X):
            X = image_list(X)
            named = [isinstance(item, str | Path) for item in X]
            shown = [getattr(item, "ndim", 0) > 1 or isinstance(item, Image.Image) for item in X]
            gone = (type(item).__name__ in ("NoneType", "NAType") for item in X)
            if any(named) or any(shown) or any(gone):
                kind, fits = ("paths", named) if any(named) else ("images", shown)
                if not all(fits):
                    other = type(X[fits.index(False)]).__name__
                    raise InputError(
                        f"X has {other} values among {kind}; give paths alone, or images alone"
                    )
                return [path_or_array(item, f"image {i} of X") for i, item in enumerate(X)]
        rows = validate_data(self, X, reset=reset)
        check_non_negative(rows, type(self).__name__)
        whole = rows.dtype.kind in "iu" and rows.dtype not in (np.uint8, np.uint16)
        if whole and rows.max() <= 255:
            rows = rows.astype(np.uint8)
        return list(rows.reshape(-1, *self._row_shape(rows.shape[1])))

    def _row_shape(self, features: int) -> Sequence[int]:
        """The shape of an image in a row of so many values."""
        if self.image_shape is None:
            raise InputError(
                f"X has rows of {features} values; give `image_shape`, (h, w) or (h, w, 3), or "
                "images as [n, h, w, 3], or paths"
            )
        if int(np.prod(self.image_shape)) != features:
            raise InputError(
                f"`image_shape` is {tuple(self.image_shape)}, which does not make rows of "
                f"{features} values"
            )
        return self.image_shape

    def _two(self, labels: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
        """The labels, where they name several classes of anomalies with one for all of those."""
        missing = [label for label in labels.tolist() if _is_missing(label)]
        if missing:
            raise InputError(f"y has {missing[0]} among its labels; give every image one")
        if labels.dtype.kind == "O" and not any(isinstance(x, str) for x in labels.tolist()):
            # Columns of tables that may lack values have numbers as objects.
            labels = np.array(labels.tolist())
        kinds = np.unique(labels) if labels.dtype.kind in "OU" else labels[:0]
        if len(kinds) <= 2 or not all(isinstance(kind, str) for kind in kinds.tolist()):
            return labels
        normal = self._normal_label(kinds)
        return np.where(labels == normal, normal, ANOMALY)

    def _classes(self, labels: Shaped[np.ndarray, " n"]) -> tuple[np.ndarray, Any]:
        """The labels that there are, and the one that stands for normal."""
        check_classification_targets(labels)
        kind = type_of_target(labels)
        if kind != "binary":
            raise InputError(
                "Only binary classification is supported. The type of the target is "
                f"{kind}; give normal images one label and anomalies another."
            )
        classes = np.unique(labels)
        if len(classes) == 2:
            return classes, self._normal_label(classes)
        if not len(classes):
            raise InputError("y is empty; give normal images and at least one anomaly")
        (only,) = classes.tolist()
        if only not in self._normal_labels() or not self._takes_normals_alone():
            raise InputError(
                f"y has one class, {only!r}; give normal images and at least one anomaly, or "
                "normal images alone with `settings={'method': 'fit'}`"
            )
        if isinstance(only, str):
            return np.unique([only, ANOMALY]), only
        other = type(only)(not only)
        return np.unique([only, other]), only

    def _takes_normals_alone(self) -> bool:
        return self._config(shots=1).learning.method == "fit"

    def _normal_labels(self) -> tuple[Any, ...]:
        return NORMAL_LABELS if self.normal_label is None else (self.normal_label,)

    def _normal_label(self, classes: Shaped[np.ndarray, "2"]) -> Any:
        if self.normal_label is None and classes.tolist() == [-1, 1]:
            return classes.tolist()[1]
        found = [label for label in classes.tolist() if label in self._normal_labels()]
        if len(found) != 1:
            raise InputError(
                f"y has the labels {classes.tolist()}, and which of them is normal is not clear; "
                "name it by `normal_label`"
            )
        return found[0]

    def _config(self, shots: int) -> Config:
        check_cut(self.fpr, self.threshold)
        if not self.held_out > 0:
            raise UserError(
                f"`held_out` is {self.held_out}; it must be above 0, as these normals set the "
                "threshold"
            )
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31 - 1)
        named = {
            "detector": self.detector,
            "epochs": self.epochs,
            "image_size": self.image_size,
            "views": self.views,
        }
        settings = {name: value for name, value in named.items() if value is not None}
        others = dict(self.settings or {})
        if twice := others.keys() & (settings.keys() | _BY_FIT):
            raise UserError(
                f"`settings` has {min(twice)!r}, which an argument of its own or fit decides; "
                "leave it out"
            )
        given = {"shots": shots, "held_out": self.held_out, "limit": None, "seed": int(seed)}
        return preset(self.preset, "the images given to fit", **given, **settings, **others)


def _is_rows(X: Any) -> bool:
    """Whether ``X`` has an image in each row, and not a path."""
    values = np.asarray(X) if hasattr(X, "__array__") else X
    if getattr(values, "ndim", None) != 2:
        return False
    of_objects = isinstance(values, np.ndarray) and values.dtype.kind in "OUT"
    return not (of_objects and any(isinstance(value, str | Path) for value in values.ravel()))


def _is_missing(label: Any) -> bool:
    # pandas.NA is neither equal to itself nor not.
    return label is None or type(label).__name__ == "NAType" or label != label
