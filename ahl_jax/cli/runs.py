"""The commands that make and test runs: `ahl train`, `ablate`, `finetune`, `update`, `evaluate`."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

import ahl_jax
from ahl_jax.common.errors import UserError
from ahl_jax.common.text import counted, mean_std
from ahl_jax.config.checks import ANYWHERE, AtLeast, Between
from ahl_jax.config.presets import FINETUNE_EPOCHS
from ahl_jax.config.settings import Config, DataConfig
from ahl_jax.run.options import RunOptions


@dataclass(frozen=True)
class _Training:
    config: Config

    workdir: Annotated[Path, ANYWHERE, tyro.conf.arg(metavar="RUN")]
    """The folder for the run: checkpoint/, history.csv, images.csv, metrics.json, run.json."""

    preset: Literal["density", "paper", "paper-appendix", "debug"] = "density"
    """The settings to start from. density: the default; paper: the published method;
    paper-appendix: its variant in the paper's appendix; debug: a slice of the data and a few
    epochs, to see that everything works."""

    seeds: tuple[int, ...] = ()
    """Train these seeds, in one program where the data choose the same for them, each in
    RUN/seed-N, instead of `seed` alone."""

    how: RunOptions = field(default_factory=RunOptions)


@dataclass(frozen=True)
class Train(_Training):
    """Train a detector from normal images and a few labelled anomalies, then test it.

    The same command on the same folder goes on with a run that was stopped, from its last epoch.
    """

    distributed: bool = False
    """One of several processes that train together, each given this same command; the folder for
    the run is process 0's. On TPU slices, Slurm and MPI clusters they find each other."""

    coordinator: str | None = None
    """HOST:PORT where process 0 listens, for processes that do not find each other."""

    process_id: int | None = None
    """This process's number, from 0; the only thing that differs from process to process."""

    processes: int | None = None
    """How many processes there are."""


@dataclass(frozen=True)
class Ablate(_Training):
    """Vary settings one at a time; train, test, tabulate and draw every value.

    The same command on the same folder goes on with a sweep that was stopped.
    """

    workdir: Annotated[Path, ANYWHERE]
    """The folder for ablation.csv, .md, .png, and for the runs NAME-VALUE/seed-N."""

    seeds: tuple[int, ...] = ()
    """Train these seeds for every value, in one program where the data choose the same for them,
    instead of `seed` alone."""

    over: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=V1,V2,...")
    ] = ()
    """A numeric setting or one with choices, by its option's name, and its values; T, C, K and M
    stand for subsets, clusters, history and shots. Given several times, each setting is varied
    alone, with the others as this command has them."""

    base: bool = False
    """Compare with the base detector alone."""

    typed: Annotated[str, tyro.conf.Suppress] = ""
    """The command as it was typed, for the table."""


@dataclass(frozen=True)
class Target(DataConfig):
    """Which images, and which of them are seen in training."""

    data: Annotated[str, tyro.conf.arg(metavar="DATA")]
    """The target: a data set of `ahl data list`, a folder, or a CSV file of images."""

    held_out: Annotated[float, Between(0, 0.5)] = 0.1
    """The share of the target's training normals that is kept out of training; a threshold on the
    score is set by them."""


@dataclass(frozen=True)
class Finetune:
    """Train a finished run's detector on other data, then test it there.

    The same command on the same folder goes on with a fine-tuning that was stopped.
    """

    run: Annotated[Path, ANYWHERE, tyro.conf.Positional, tyro.conf.arg(metavar="START")]
    """The folder of the finished run, which is needed until the fine-tuning is finished too."""

    target: Target

    workdir: Annotated[Path, ANYWHERE, tyro.conf.arg(metavar="RUN")]
    """The folder for the fine-tuned run."""

    normals_only: bool = False
    """Train on the target's normals alone: without labelled anomalies, so that the test has all of
    them, and without pseudo-anomalies."""

    epochs: Annotated[int, AtLeast(1)] = FINETUNE_EPOCHS
    """Epochs; the last one is what counts. Learning rates and batches are those of START."""

    seed: int | None = None
    """Seed of the labelled anomalies and the batches; by default that of START."""

    how: RunOptions = field(default_factory=RunOptions)


@dataclass(frozen=True)
class Update:
    """Train a run's detector anew with more labelled defects or normals, then test it.

    The images so far keep their parts: see images.csv in the run's folder. That run is not changed.
    """

    run: Annotated[Path, ANYWHERE, tyro.conf.Positional, tyro.conf.arg(metavar="OLD")]
    """The folder of the run with the images so far."""

    workdir: Annotated[Path | None, ANYWHERE, tyro.conf.arg(metavar="RUN")] = None
    """The folder for the new run; by default OLD-2, beside OLD."""

    defects: Annotated[Path | None, ANYWHERE] = None
    """A folder of new defects, all of which are trained on; the folders in it are their classes."""

    good: Annotated[Path | None, ANYWHERE] = None
    """A folder of new normals."""

    data: str | None = None
    """Where the data of OLD is now, if it moved since the training."""

    how: RunOptions = field(default_factory=RunOptions)


@dataclass(frozen=True)
class Evaluate:
    """Score the test images with a run's newest checkpoint and print the metrics."""

    workdir: Annotated[Path, ANYWHERE, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder that was given to the training."""

    data: str | None = None
    """Where the data is now, if it moved since the training."""

    fpr: float | None = None
    """The rate of false positives among normal images that the threshold is set for; 0.01 by
    default."""

    threshold: float | None = None
    """The score above which an image is an anomaly, in the place of `fpr`."""

    json: bool = False
    """Print the metrics as JSON and nothing else on stdout."""

    cache_dir: Annotated[Path | None, ANYWHERE] = None
    """The folder that keeps features; by default $AHL_CACHE, else ~/.cache/ahl_jax."""


def run_train(command: Train) -> None:
    """Run ``ahl train``.

    Raises:
        UserError: as ``ahl_jax.train`` does, for processes that cannot meet, or at the end if
            categories failed.
    """
    from ahl_jax.cli.sentences import training_in_words
    from ahl_jax.data.open import names_all
    from ahl_jax.distributed.processes import initialize, is_primary

    where = (command.coordinator, command.process_id, command.processes)
    if names_all(command.config.data):
        if command.distributed:
            raise UserError('`category="all"` trains in one process; leave out `distributed`')
        _train_categories(command)
        return
    if command.distributed:
        initialize(*where)
    elif where != (None, None, None):
        raise UserError(
            "`coordinator`, `process_id` and `processes` need `distributed=True`; add it"
        )
    if not command.seeds:
        metrics = ahl_jax.train(command.config, command.workdir, **vars(command.how))
        if is_primary():
            print(training_in_words(command.config, metrics, command.workdir))
        return
    options = vars(command.how)
    results = ahl_jax.train_seeds(command.config, command.workdir, command.seeds, **options)
    if not is_primary():
        return
    if not results:
        print(training_in_words(command.config, {}, command.workdir))
        return
    for metrics in results:
        folder = command.workdir / f"seed-{metrics['seed']}"
        print(f"Seed {metrics['seed']}:", training_in_words(command.config, metrics, folder))
    values = [metrics["auc_roc"] for metrics in results]
    print(f"AUC-ROC over {counted(len(values), 'seed')}: {mean_std(values, 4)}.")


def _train_categories(command: Train) -> None:
    options = vars(command.how)
    found = ahl_jax.train_categories(command.config, command.workdir, command.seeds, **options)
    if found.rows:
        print("\n".join(found.table()))
        print(f"The tables are {command.workdir}/categories.csv and .md.")
    if found.failed:
        reasons = "; ".join(f"{name}: {error}" for name, error in found.failed.items())
        raise UserError(f"{counted(len(found.failed), 'training')} failed. {reasons}")


def run_ablate(command: Ablate) -> None:
    """Run ``ahl ablate``.

    Raises:
        UserError: as ``ahl_jax.sweeps.ablate.ablate`` does.
    """
    rows = ahl_jax.ablate(
        command.config,
        command.workdir,
        command.over,
        command.seeds,
        base=command.base,
        command=command.typed,
        **vars(command.how),
    )
    for name, value in dict.fromkeys((row["over"], row["value"]) for row in rows):
        scores = [row["auc_roc"] for row in rows if (row["over"], row["value"]) == (name, value)]
        print(f"{name} {value}: AUC-ROC {mean_std(scores, 4)}")
    print(f"The tables and the figure are {command.workdir}/ablation.csv, .md and .png.")


def run_finetune(command: Finetune) -> None:
    """Run ``ahl finetune``.

    Raises:
        UserError: as ``ahl_jax.finetune`` does.
    """
    from ahl_jax.cli.sentences import training_in_words
    from ahl_jax.storage.workdir import Workdir

    target = DataConfig(**vars(command.target))
    if command.normals_only:
        target = dataclasses.replace(target, shots=0)
    metrics = ahl_jax.finetune(
        command.run,
        target,
        command.workdir,
        epochs=command.epochs,
        seed=command.seed,
        **vars(command.how),
    )
    print(training_in_words(Workdir(command.workdir).config(), metrics, command.workdir))


def run_update(command: Update) -> None:
    """Run ``ahl update``.

    Raises:
        UserError: as ``ahl_jax.update`` does.
    """
    from ahl_jax.cli.sentences import training_in_words
    from ahl_jax.run.update import updated_name
    from ahl_jax.storage.workdir import Workdir

    workdir = command.workdir or updated_name(command.run)
    metrics = ahl_jax.update(
        command.run,
        workdir,
        defects=command.defects,
        good=command.good,
        data=command.data,
        **vars(command.how),
    )
    print(training_in_words(Workdir(workdir).config(), metrics, workdir))


def run_evaluate(command: Evaluate) -> None:
    """Run ``ahl evaluate``.

    Raises:
        UserError: as ``ahl_jax.evaluate`` does.
    """
    from ahl_jax.cli.sentences import metrics_in_words
    from ahl_jax.storage.workdir import Workdir

    metrics = ahl_jax.evaluate(
        command.workdir,
        data=command.data,
        fpr=command.fpr,
        threshold=command.threshold,
        cache_dir=command.cache_dir,
    )
    if command.json:
        print(json.dumps(metrics, ensure_ascii=False))
        return
    for line in metrics_in_words(metrics, command.fpr, Workdir(command.workdir).config()):
        print(line)
