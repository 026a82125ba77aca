"""The density detector's trunk, head factors and groups, compared on training data alone.

    python -m experiments.cross_validate --data elpv [--trunk efficientnet_lite2]

For every seed, the training normals and the labelled anomalies are divided into folds. A detector
is prepared on all folds but one, and scores that one; its AUC-ROC says how well it tells labelled
anomalies that it has not seen from normals that it has not seen. No test image is read. Writes
experiments/results/cross_validate_DATA.md (_TRUNK too where it is named): the mean over seeds and
folds.
"""

import dataclasses
import itertools
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from ahl_jax import preset
from ahl_jax.backbones import Trunk, load_trunk
from ahl_jax.cli.shell import run_command
from ahl_jax.common.commit import commit
from ahl_jax.common.files import replace_file
from ahl_jax.common.text import markdown_table
from ahl_jax.config.presets import with_settings
from ahl_jax.config.settings import SCALES, Config
from ahl_jax.detectors import make_detector, make_inputs
from ahl_jax.detectors.density import Density
from ahl_jax.detectors.whitening import fit_whitening
from ahl_jax.features import FeatureMaps, Store, extract
from ahl_jax.features.images import global_averages
from ahl_jax.features.split import load_split
from ahl_jax.learning.hadg import similar_normals

Factors = tuple[float, float]


@dataclass(frozen=True)
class Options:
    """Compare factors of the local and the seen head; that of the density head is 1."""

    data: str = "elpv"
    """Data set or folder in MVTec layout."""

    shots: int = 10
    """M, the number of labelled anomalies."""

    seeds: tuple[int, ...] = tuple(range(10))
    """Seeds."""

    trunk: str | None = None
    """Another trunk than the preset's."""

    folds: int = 5
    """Folds, at most M."""

    groups: tuple[int, ...] = (1, 3, 5)
    """Numbers of groups of similar normals."""

    factors: tuple[float, ...] = (0.0, 0.1, 0.2, 0.5)
    """Values for either factor."""

    out: Path = Path("experiments/results")
    """The folder for the table."""


def main() -> None:
    """Score every fold, then write the table."""
    options = tyro.cli(Options, description=__doc__)
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {} if options.trunk is None else {"trunk": options.trunk}
    start = preset("density", options.data, shots=options.shots, held_out=0.0, **settings)
    trunk, store = load_trunk(start.features.trunk), Store()
    pairs = list(itertools.product(options.factors, options.factors))
    aucs: dict[int, list[list[float]]] = {groups: [] for groups in options.groups}
    for groups, seed in tqdm(list(itertools.product(options.groups, options.seeds)), unit="seed"):
        config = with_settings(dataclasses.replace(start, seed=seed), {"groups": groups})
        for heads, labels in _folds(config, trunk, store, options.folds):
            aucs[groups].append([roc_auc_score(labels, heads @ [1.0, *pair]) for pair in pairs])
    found = {
        groups: dict(zip(pairs, np.mean(each, axis=0), strict=True))
        for groups, each in aucs.items()
    }
    text = _table(options, found)
    names = ["cross_validate", Path(options.data).name, *filter(None, [options.trunk])]
    path = options.out / f"{'_'.join(names)}.md"
    replace_file(path, text)
    print(text)


def _folds(
    config: Config, trunk: Trunk, store: Store, folds: int
) -> Iterator[tuple[Float[np.ndarray, "b heads"], Float[np.ndarray, " b"]]]:
    """Of each fold, the head scores of its images and their labels."""
    split = load_split(config)
    lists = [split.train_normals, tuple(sample.path for sample in split.seen)]
    maps = [extract(paths, trunk, config.features, store, progress=False)[0] for paths in lists]
    random = np.random.default_rng([config.seed, 3])
    parts = [random.permutation(len(m[0])) % folds for m in maps]
    for fold in range(folds):
        kept = [_rows(m, part != fold) for m, part in zip(maps, parts, strict=True)]
        held = [_rows(m, part == fold) for m, part in zip(maps, parts, strict=True)]
        heads = [_scores(config, kept, images) for images in held]
        yield np.concatenate(heads), np.repeat([0.0, 1.0], [len(h) for h in heads])


def _scores(
    config: Config, training: Sequence[FeatureMaps], images: FeatureMaps
) -> Float[np.ndarray, "b heads"]:
    """Head scores of images by a detector that is prepared on normals and anomalies."""
    averages = global_averages(training[0])
    whitening = fit_whitening(averages, SCALES)
    normals, anomalies, test = (
        make_inputs(maps, whitening=whitening) for maps in (*training, images)
    )
    functional, model = make_detector(config.detector, normals.channels, jax.random.key(0))
    measured = [functional.measured(model, inputs) for inputs in (normals, anomalies)]
    groups = similar_normals(averages, config.detector.groups, config.seed)
    model = functional.prepared(model, *measured, jnp.asarray(groups))
    return np.asarray(functional.head_scores(model, test, normals.take(np.array(0))))


def _rows(maps: FeatureMaps, chosen: np.ndarray) -> FeatureMaps:
    return tuple(m[chosen] for m in maps)


def _table(options: Options, found: dict[int, dict[Factors, float]]) -> str:
    used = tuple(head.factor for head in Density.table[1:])
    lines = [
        f"# {options.data}: the density detector on training data alone",
        "",
        f"AUC-ROC of held-out labelled anomalies against held-out training normals, mean over "
        f"{len(options.seeds)} seeds and {options.folds} folds, {options.shots} labelled "
        f"anomalies, features of {options.trunk or 'the default trunk'}; no training beyond the "
        "closed form. The detector has the factors "
        f"{used[0]} and {used[1]}.",
        "",
        f"Command: `{shlex.join(['python', '-m', 'experiments.cross_validate', *sys.argv[1:]])}`",
        "",
        f"Commit: {commit() or 'unknown'}",
        "",
    ]
    head = ["factor of local", "factor of seen"]
    head += [f"{groups} groups" if groups > 1 else "1 group" for groups in found]
    body = [
        [str(local), str(seen), *(f"{of[local, seen]:.4f}" for of in found.values())]
        for local, seen in next(iter(found.values()))
    ]
    lines += markdown_table(head, body)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_command(main, Options)
