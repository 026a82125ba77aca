"""References that train nothing: they compare an image with the normals, and see no anomaly."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from ahl_jax import Config
from ahl_jax.backbones import load_trunk
from ahl_jax.bank import global_averages
from ahl_jax.data.records import ImageSource
from ahl_jax.features import FeatureMaps, Store, extract
from ahl_jax.gather import load_split, split_digest, test_features
from ahl_jax.metrics import image_metrics
from ahl_jax.workdir import Workdir

Score = Callable[[FeatureMaps], Float[np.ndarray, " n"]]
"""The maps of n images to their scores."""


def gaussian(normals: FeatureMaps) -> Score:
    """Mahalanobis distance of the global averages, by Ledoit and Wolf's shrunk covariance."""
    fitted = LedoitWolf().fit(global_averages(normals).astype(np.float64))
    return lambda images: np.sqrt(fitted.mahalanobis(global_averages(images)))


def patchcore(normals: FeatureMaps) -> Score:
    """PatchCore (Roth et al. 2022) with every location of every normal in its memory.

    A location is the mean of its 3 x 3 neighbourhood, the scales one beside the other on the finest
    grid; an image's score is the largest distance of one of its locations to the nearest one in
    memory. There is no coreset and no re-weighting by that one's neighbours.
    """
    memory = _locations(normals)
    index = NearestNeighbors(n_neighbors=1, algorithm="brute")
    index.fit(memory.reshape(-1, memory.shape[-1]))

    def score(images: FeatureMaps) -> Float[np.ndarray, " n"]:
        wanted = _locations(images)
        nearest, _ = index.kneighbors(wanted.reshape(-1, wanted.shape[-1]))
        return nearest.reshape(len(wanted), -1).max(1)

    return score


REFERENCES: Mapping[str, Callable[[FeatureMaps], Score]] = {
    "gaussian": gaussian,
    "patchcore": patchcore,
}


_scores: dict[Any, dict[ImageSource, float]] = {}
"""Reference, features and training normals -> the score of each image that was asked for."""


def reference_metrics(
    name: str, config: Config, folder: Path, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """The metrics of each seed's test images, as ``ahl_jax.train_seeds`` has them.

    Args:
        name: a key of ``REFERENCES``.
        config: the settings; those of the features and of the split count.
        folder: where ``seed-N/metrics.json`` goes.
        seeds: the seeds, which differ in their test images alone.

    Raises:
        UserError: if the data cannot be read, or the folder holds another run.
    """
    runs = [(dataclasses.replace(config, seed=s), Workdir(folder / f"seed-{s}")) for s in seeds]
    options, store = config.features, Store()
    trunk = load_trunk(options.trunk, options.trunk_weights)
    tests = []
    for own, workdir in runs:
        split = load_split(own)
        workdir.claim(own, overwrite=False)
        workdir.bind_data(split_digest(split))
        workdir.bind_trunk(trunk.digest)
        tests.append(test_features(own, split, trunk, store, progress=True))
    paths = load_split(runs[0][0]).train_normals
    normals, kept = extract(
        paths, trunk, options, store,
        skip_bad=config.data.skip_bad_images, label="training normals",
    )  # fmt: skip
    # Seeds and cells have most of their test images in common.
    score = _scores.setdefault((name, options, paths), {})
    image = {
        sample.path: (test, i)
        for test in tests
        for i, sample in enumerate(test.samples)
        if sample.path not in score
    }
    if image:
        scales = range(len(normals))
        maps = tuple(np.stack([test.maps[k][i] for test, i in image.values()]) for k in scales)
        score |= zip(image, REFERENCES[name](normals)(maps), strict=True)
    found = []
    for (own, workdir), test in zip(runs, tests, strict=True):
        scores = np.array([score[sample.path] for sample in test.samples])
        classes = [sample.anomaly_class for sample in test.samples]
        metrics = image_metrics(scores, classes) | {
            "n_train_normal": len(kept),
            "n_seen": 0,
            "n_test": len(classes),
            "setting": config.data.setting,
            "seed": own.seed,
            "epochs": 0,
            "seconds": 0.0,
        }
        workdir.write_metrics(metrics)
        found.append(metrics)
    return found


def _locations(maps: FeatureMaps) -> Float[np.ndarray, "n h w d"]:
    """Neighbourhood means of all scales on the grid of the finest, one beside the other."""
    count, *grid, _ = maps[0].shape
    scales = []
    for scale in maps:
        padded = np.pad(scale, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
        h, w = scale.shape[1:3]
        around = sum(padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9
        scales.append(jax.image.resize(around, (count, *grid, scale.shape[-1]), "bilinear"))
    return np.concatenate([np.asarray(scale) for scale in scales], axis=-1)
