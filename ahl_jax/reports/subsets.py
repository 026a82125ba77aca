"""The heterogeneous subsets of a run, made again from its settings and features, with samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from ahl_jax.data.images import read_image
from ahl_jax.data.records import ImageSource
from ahl_jax.detectors import blocks_of
from ahl_jax.features import Store, extract
from ahl_jax.features.pooling import global_averages
from ahl_jax.features.pseudo import origins, pseudo_images
from ahl_jax.features.tiles import frame_of
from ahl_jax.learning.hadg import HOLISTIC, Roles, Subset
from ahl_jax.learning.problem import subsets_on
from ahl_jax.reports.pictures import SMALL, Sample, data_uri, file_name
from ahl_jax.reports.scored import Scored

PICTURED = 12
"""Of more subsets than that, the others have no pictures."""

_NORMALS, _ANOMALIES, _PSEUDO = 2, 1, 2


@dataclass(frozen=True)
class Side:
    """The support or the query set of a subset."""

    cluster: str
    generator: str
    counts: tuple[int, int, int]
    """Normals, labelled anomalies, pseudo-anomalies."""

    samples: list[Sample]


@dataclass(frozen=True)
class SubsetView:
    """One heterogeneous subset."""

    support: Side
    query: Side
    importance: float | None
    """w_i after the last epoch; None where there is no history."""


def subset_views(run: Scored, store: Store, *, progress: bool) -> list[SubsetView] | str:
    """The subsets of a run, in the order of w_1, w_2 and so on.

    Args:
        run: the run.
        store: where its features are.
        progress: whether to show progress on stderr.

    Returns:
        A sentence instead if they cannot be shown; nothing of a method without subsets.

    Raises:
        UserError: if an image cannot be read and the settings do not skip it.
    """
    if run.config.learning.method != "ahl":
        return []
    if run.config.features.tiles != (1, 1):
        return "The subsets are of tiles, which are not shown."
    if not run.same_images:
        return "The images have changed since the training, so its subsets cannot be made again."
    config, means = run.config, blocks_of(run.config).means

    def readable(paths: Sequence[ImageSource], label: str) -> tuple[list[ImageSource], np.ndarray]:
        maps, kept = extract(
            paths, run.predictor.trunk, config.features, store, label=label,
            skip_bad=config.data.skip_bad_images, progress=progress,
        )  # fmt: skip
        return [paths[i] for i in kept], global_averages(maps, means)

    normals, averages = readable(run.split.train_normals, "training normals")
    anomalies, _ = readable([sample.path for sample in run.split.seen], "labelled anomalies")
    generator, pairs = origins(config.pseudo, len(normals), config.seed)
    roles = Roles(len(normals), len(anomalies), generator, pairs[:, 0])
    classes = {sample.path: sample.anomaly_class for sample in run.split.seen}
    frame = frame_of(config.features)
    drawn: dict[int, Sample] = {}

    def pictures(positions: Int[np.ndarray, " n"], count: int) -> list[Sample]:
        """Some of a set's images, evenly spaced in it."""
        chosen = {len(positions) * i // count for i in range(count)} if len(positions) else set()
        return [picture(int(positions[i])) for i in sorted(chosen)]

    def picture(position: int) -> Sample:
        if position not in drawn:
            drawn[position] = draw(position)
        return drawn[position]

    def draw(position: int) -> Sample:
        pseudo = position - len(normals) - len(anomalies)
        if pseudo >= 0:
            (image,) = pseudo_images(normals, frame, config.pseudo, config.seed, [pseudo])
            name = config.pseudo.generators[roles.generator[pseudo]]
            return Sample(data_uri(image, SMALL), f"pseudo-anomaly by {name}")
        path = [*normals, *anomalies][position]
        kind = "normal" if position < len(normals) else f"labelled anomaly, {classes[path]}"
        return Sample(data_uri(read_image(path, frame), SMALL), f"{kind}, {file_name(run, path)}")

    def side(subset: Subset, k: int, *, pictured: bool) -> Side:
        sets = (subset.normals[k], subset.anomalies[k], subset.pseudo[k])
        cluster = subset.clusters[k]
        group = "cluster" if config.subsets.grouping == "kmeans" else "random group"
        wanted = zip(sets, (_NORMALS, _ANOMALIES, _PSEUDO), strict=True)
        return Side(
            cluster="half of all normals" if cluster == HOLISTIC else f"{group} {cluster + 1}",
            generator=config.pseudo.generators[subset.generators[k]],
            counts=(len(sets[0]), len(sets[1]), len(sets[2])),
            samples=[s for members, n in wanted for s in pictures(members, n)] if pictured else [],
        )

    last = run.history[-1] if run.history else {}
    return [
        SubsetView(
            side(subset, 0, pictured=number <= PICTURED),
            side(subset, 1, pictured=number <= PICTURED),
            float(last[f"w_{number}"]) if last.get(f"w_{number}") else None,
        )
        for number, subset in enumerate(subsets_on(config, roles, averages), 1)
    ]
