"""The methods that ``peers`` compares: our detectors and those of anomalib and PyOD.

The other packages are imported where they are used, so that each process has only its own.
"""

import dataclasses
import functools
import importlib
import inspect
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Float, UInt8
from sklearn.preprocessing import StandardScaler

from ahl_jax import Config, load, preset, train
from ahl_jax.backbones import Trunk, load_trunk
from ahl_jax.config.presets import with_settings
from ahl_jax.config.settings import SCALES, FeatureConfig, Views
from ahl_jax.data.records import ImageSource
from ahl_jax.detectors import make_inputs
from ahl_jax.detectors.whitening import fit_whitening
from ahl_jax.features import FeatureMaps, Store, extract
from ahl_jax.features.maps import trunk_dtype, trunk_maps
from ahl_jax.features.pooling import global_averages
from ahl_jax.features.split import load_split
from ahl_jax.inference.predictor import Predictor
from experiments.tables.methods import METHODS as ROWS

Images = UInt8[np.ndarray, "n size size 3"]
Scores = Float[np.ndarray, " n"]
Score = Callable[[FeatureMaps], Scores]


@dataclass(frozen=True)
class Case:
    """The base of all methods."""

    data: str = "elpv"
    category: str | None = None
    seed: int = 0
    shots: int = 10
    limit: int | None = None
    batch: int = 16
    coreset: float = 0.1
    coreset_normals: int | None = None
    threads: int = 1
    quick: bool = False

    def config(self, row: str, views: Views = 8) -> Config:
        """The settings of a row of the tables, with these views and no normals held out."""
        kind = "debug" if self.quick else "paper"
        start = preset(kind, self.data, category=self.category)
        data = dataclasses.replace(start.data, held_out=0.0)
        if not self.quick:
            data = dataclasses.replace(data, shots=self.shots)
        if self.limit is not None:
            data = dataclasses.replace(data, limit=self.limit)
        start = dataclasses.replace(start, data=data, seed=self.seed)
        settings = {**ROWS[row].settings, "image_batch": self.batch, "views": views}
        # Heat maps are compared here, which no table has.
        settings["fine_heat"] = ROWS[row].detector == "density"
        if self.quick and "updates_per_epoch" in settings:
            # The debug preset has fewer steps than the row has updates.
            settings["updates_per_epoch"] = start.learning.steps
        return with_settings(start, settings)


class Detector(Protocol):
    """A fitted detector; it has been fitted from features in ``fit_seconds``."""

    fit_seconds: float

    def features(self, images: Images) -> Any:
        """The trunk's maps of up to ``Case.batch`` images."""
        ...

    def score(self, features: Any) -> Scores:
        """The scores of what ``features`` gave, higher for more anomalous."""
        ...

    def score_images(self, images: Images) -> Scores:
        """The scores of up to ``Case.batch`` images, trunk included."""
        ...

    def score_paths(self, paths: Sequence[ImageSource]) -> Scores:
        """The scores of image files."""
        ...

    def heat_images(self, images: Images) -> Float[np.ndarray, "n h w"] | None:
        """The heat maps of up to ``Case.batch`` images; None if it makes none."""
        ...


class Method(NamedTuple):
    """A row of the comparison."""

    package: str
    """Where the detector is from."""

    fit: Callable[[Case], Detector]
    labels: bool = False
    """Whether it sees the labelled anomalies. One that does not is fitted once for all seeds."""

    needs: tuple[str, ...] = ()
    """Packages beyond this project's requirements."""

    module: str = "ahl_jax"
    """The package of the detector; imported before memory and time are counted."""


def _trunk(options: FeatureConfig) -> Trunk:
    return _loaded(options.trunk, options.levels)


@functools.cache
def _loaded(name: str, levels: int) -> Trunk:
    return load_trunk(name, levels=levels)


class OnOurFeatures:
    """A detector of the maps that our trunk gives."""

    def __init__(self, config: Config, score: Score, fit_seconds: float) -> None:
        self.options = config.features
        self.trunk = _trunk(self.options)
        self.fit_seconds = fit_seconds
        self.score = score

    def features(self, images: Images) -> FeatureMaps:
        """The maps of both scales."""
        dtype = trunk_dtype(self.options.precision, jax.default_backend())
        maps = trunk_maps(self.trunk, images, self.options, dtype)
        return tuple(np.asarray(scale)[: len(images)] for scale in maps)

    def score_images(self, images: Images) -> Scores:
        """The trunk, then the detector."""
        return self.score(self.features(images))

    def score_paths(self, paths: Sequence[ImageSource]) -> Scores:
        """By the maps in the store, where it has them."""
        return self.score(_stored(paths, self.trunk, self.options))

    def heat_images(self, images: Images) -> Float[np.ndarray, "n h w"] | None:
        """A score of the whole image has no map."""
        return None


class Ours(OnOurFeatures):
    """A run of ``ahl train``; images are scored by the program that ``ahl predict`` runs."""

    def __init__(self, config: Config, predictor: Predictor, fit_seconds: float) -> None:
        super().__init__(config, self._score, fit_seconds)
        self.predictor = predictor
        self._program = jax.jit(predictor.scorer.functional.score)

    def _score(self, maps: FeatureMaps) -> Scores:
        """By a program for so many images; the scorer's own is for batches of 64."""
        scorer = self.predictor.scorer
        inputs = make_inputs(maps, scorer.reference.patches.dtype, scorer.whitening)
        return np.asarray(self._program(scorer.model, inputs, scorer.reference))

    def score_paths(self, paths: Sequence[ImageSource]) -> Scores:
        """By the maps in the store, in batches."""
        return self.predictor.scorer.score(_stored(paths, self.trunk, self.options))

    def score_images(self, images: Images) -> Scores:
        """Trunk, detector and heat map in one program."""
        return self.predictor.of_arrays(images).scores

    def heat_images(self, images: Images) -> Float[np.ndarray, "n h w"] | None:
        """As ``ahl predict`` draws them."""
        return self.predictor.of_arrays(images).heat


def _stored(paths: Sequence[ImageSource], trunk: Trunk, options: FeatureConfig) -> FeatureMaps:
    return extract(paths, trunk, options, Store(), progress=False)[0]


def _ours(row: str, views: Views, case: Case) -> Detector:
    config = case.config(row, views)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        train(config, folder, progress=False)
        seconds = time.perf_counter() - start
        return Ours(config, load(folder), seconds)


def _pyod(name: str, whitened: bool, labels: bool, case: Case) -> Detector:
    """PyOD's ``models.MODULE.CLASS`` on the features that Density reads, pooled."""
    module, kind = name.split(".")
    detector_class = getattr(importlib.import_module(f"pyod.models.{module}"), kind)
    config = case.config("Density")
    trunk, split = _trunk(config.features), load_split(config)
    x = global_averages(_stored(split.train_normals, trunk, config.features))
    seen = [sample.path for sample in split.seen] if labels else []
    start = time.perf_counter()
    if whitened:
        prepared = fit_whitening(x, SCALES, trunk.parts).whitened
    else:
        prepared = StandardScaler().fit(x).transform
    known = inspect.signature(detector_class).parameters
    asked = {"n_jobs": case.threads, "random_state": case.seed}
    detector = detector_class(**{k: v for k, v in asked.items() if k in known})
    if labels:
        anomalies = global_averages(_stored(seen, trunk, config.features))
        y = np.repeat([0, 1], [len(x), len(anomalies)])
        detector.fit(prepared(np.concatenate([x, anomalies])), y)
    else:
        detector.fit(prepared(x))
    seconds = time.perf_counter() - start
    return OnOurFeatures(
        config, lambda maps: detector.decision_function(prepared(global_averages(maps))), seconds
    )


def _anomalib(model: str, coreset: str, case: Case) -> Detector:
    peers = importlib.import_module(_ANOMALIB)
    config = case.config("Density")
    if model == "padim":
        return peers.padim(config)
    normals = case.coreset_normals if coreset == "greedy" else None
    return peers.patchcore(config, case.coreset, coreset, normals)


_OURS: Mapping[str, tuple[Views, ...]] = {
    "Density": ("2+8", 8, 2, 1),
    "AHL(Density)": (1,),
    "Gaussian": (8, 1),
    "PatchCore": (8, 1),
}
"""Rows of the tables, and with how many views each is compared."""

_VIEWS: Mapping[Views, str] = {
    1: "one view",
    2: "two views",
    8: "eight views",
    "2+8": "two and eight views",
}

_ANOMALIB = "experiments.benchmarks.peer_anomalib"

_PYOD = {
    "ECOD": "ecod.ECOD",
    "KNN": "knn.KNN",
    "LOF": "lof.LOF",
    "IForest": "iforest.IForest",
    "OCSVM": "ocsvm.OCSVM",
    "MCD": "mcd.MCD",
    "XGBOD": "xgbod.XGBOD",
}
_LABELLED = {"XGBOD": ("xgboost",)}
"""PyOD's detectors that take labels, and what each needs beside PyOD. Its DevNet is left out: in
version 3.6.7 it passes the arguments of its loss in the wrong order, and learns the opposite."""


def _methods() -> dict[str, Method]:
    found = {}
    for row, numbers in _OURS.items():
        for views in numbers:
            name = f"{row}, {_VIEWS[views]}"
            fit = functools.partial(_ours, row, views)
            found[name] = Method("ahl_jax", fit, labels=ROWS[row].trained)
    for model, coreset in (("patchcore", "greedy"), ("patchcore", "random"), ("padim", "")):
        name = {"greedy": "PatchCore", "random": "PatchCore, random subset", "": "PaDiM"}[coreset]
        fit = functools.partial(_anomalib, model, coreset)
        found[name] = Method("anomalib", fit, needs=("anomalib",), module=_ANOMALIB)
    for name, path in _PYOD.items():
        needs = ("pyod", *_LABELLED.get(name, ()))
        for whitened in (False, True):
            labels = name in _LABELLED
            fit = functools.partial(_pyod, path, whitened, labels)
            module = f"pyod.models.{path.split('.')[0]}"
            row = f"{name}, whitened" if whitened else name
            found[row] = Method("PyOD", fit, labels, needs, module)
    return found


METHODS: Mapping[str, Method] = _methods()
