"""The command line: `ahl` and its commands."""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ahl_jax.cli import data as data_commands
from ahl_jax.cli import weights as weights_commands
from ahl_jax.cli.report import Compare, Report
from ahl_jax.cli.report import run as write_report
from ahl_jax.cli.sentences import metrics_in_words, training_in_words
from ahl_jax.cli.shell import keep_compiled_programs, run_command
from ahl_jax.common.errors import UserError
from ahl_jax.common.text import counted, mean_std
from ahl_jax.config.presets import PRESETS
from ahl_jax.config.settings import Config
from ahl_jax.distributed.processes import initialize, is_primary
from ahl_jax.inference import export
from ahl_jax.inference.folder import Predict
from ahl_jax.inference.folder import run as predict
from ahl_jax.inference.threshold import FPR
from ahl_jax.run.evaluate import evaluate
from ahl_jax.run.finetune import Finetune
from ahl_jax.run.finetune import run as finetune
from ahl_jax.run.train import train, train_seeds
from ahl_jax.storage.workdir import Workdir
from ahl_jax.sweeps.ablate import ablate


@dataclass(frozen=True)
class Train:
    """Train a detector from normal images and a few labelled anomalies, then test it.

    The same command on the same folder goes on with a run that was stopped, from its last epoch.
    """

    config: Config

    workdir: Path
    """The folder for the run: checkpoint/, history.csv, metrics.json, run.json."""

    preset: Literal["density", "paper", "debug"] = "density"
    """Where the other settings start from. density: what is most accurate; paper: the published
    method; debug: a slice of the data and a few epochs, to see in under a minute that everything
    works."""

    seeds: tuple[int, ...] = ()
    """Train these seeds in one program, each in WORKDIR/seed-N, instead of --seed alone."""

    checkpoint_every: int = 1
    """Epochs between two checkpoints; the compiled program runs that many in one call."""

    overwrite: bool = False
    """Replace a different run that the folder holds."""

    cache_dir: Path | None = None
    """The folder that keeps features for later runs; by default $AHL_CACHE, else
    ~/.cache/ahl_jax."""

    data_shards: int = 1
    """Parts that the images are divided into, each on devices of its own; they share the images of
    every batch. The seeds and subsets take the other devices."""

    feature_memory: float | None = None
    """GiB that the features of the training images may take in memory and on each device. What does
    not fit stays on disk and is streamed, which is slower and gives the same result. By default 40
    percent of the machine's memory, and 60 percent of an accelerator's."""

    tensorboard: bool = False
    """Write event files for TensorBoard to WORKDIR/tensorboard too."""

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
class Ablate(Train):
    """Vary settings one at a time; train, test, tabulate and draw every value.

    The same command on the same folder goes on with a sweep that was stopped.
    """

    workdir: Path
    """The folder for ablation.csv, .md, .png, and for the runs NAME-VALUE/seed-N."""

    seeds: tuple[int, ...] = ()
    """Train these seeds in one program for every value, instead of --seed alone."""

    over: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=V1,V2,...: a numeric setting or one with choices, by its option's name, and its values;
    T, C, K and M stand for subsets, clusters, history and shots. Given several times, each setting
    is varied alone, with the others as this command has them."""

    base: bool = False
    """Compare with the base detector alone."""


@dataclass(frozen=True)
class Evaluate:
    """Score the test images with a run's newest checkpoint and print the metrics."""

    workdir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WORKDIR")]
    """The folder that was given to the training."""

    data: str | None = None
    """Where the data is now, if it moved since the training."""

    fpr: float = FPR
    """The rate of false positives among normal images that the threshold is set for."""

    json: bool = False
    """Print the metrics as JSON and nothing else on stdout."""

    cache_dir: Path | None = None
    """The folder that keeps features; by default $AHL_CACHE, else ~/.cache/ahl_jax."""


_ELSEWHERE: dict[type, Callable[[Any], None]] = {
    data_commands.Data: data_commands.run,
    export.Export: export.run,
    Compare: write_report,
    Predict: predict,
    Report: write_report,
    weights_commands.Weights: weights_commands.run,
}
"""Commands that are carried out in modules of their own."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; see ``ahl_jax.cli.shell.run_command`` for the exit codes."""

    def command() -> None:
        words = sys.argv[1:] if arguments is None else arguments
        chosen = _parse(words)
        keep_compiled_programs(getattr(chosen, "cache_dir", None))
        if run := _ELSEWHERE.get(type(chosen)):
            run(chosen)
        elif isinstance(chosen, Ablate):
            _ablate(chosen, shlex.join(["ahl", *words]))
        elif isinstance(chosen, Train):
            _train(chosen)
        elif isinstance(chosen, Finetune):
            _finetune(chosen)
        else:
            _evaluate(chosen)

    run_command(command)


def _parse(arguments: list[str]) -> Any:
    """The command that is asked for, with its options."""
    config = PRESETS[_named_preset(arguments)](tyro.MISSING)
    start = Train(config, workdir=tyro.MISSING)
    vary = Ablate(config, workdir=tyro.MISSING)
    commands = (
        Annotated[Train, tyro.conf.subcommand("train", default=start)]
        | Annotated[Ablate, tyro.conf.subcommand("ablate", default=vary)]
        | Annotated[Finetune, tyro.conf.subcommand("finetune")]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Predict, tyro.conf.subcommand("predict")]
        | Annotated[Report, tyro.conf.subcommand("report")]
        | Annotated[Compare, tyro.conf.subcommand("compare")]
        | Annotated[export.Export, tyro.conf.subcommand("export")]
        | Annotated[data_commands.Data, tyro.conf.subcommand("data")]
        | Annotated[weights_commands.Weights, tyro.conf.subcommand("weights")]
    )
    mark = tyro.conf
    marks = (mark.OmitArgPrefixes, mark.OmitSubcommandPrefixes, mark.FlagCreatePairsOff)
    return tyro.cli(
        commands,
        prog="ahl",
        args=arguments,
        config=marks,
        description="Open-set anomaly detection from normal images and a handful of labelled "
        "defects: Anomaly Heterogeneity Learning in JAX.",
    )


def _named_preset(arguments: list[str]) -> str:
    """The value of --preset, read first because it sets the other options' defaults."""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--preset":
            value = value if equals else (arguments[i + 1] if i + 1 < len(arguments) else "")
            return value if value in PRESETS else Train.preset
    return Train.preset


def _options(command: Train) -> dict[str, Any]:
    if command.checkpoint_every < 1:
        raise UserError(f"--checkpoint-every is {command.checkpoint_every}; it must be 1 or more")
    if command.feature_memory is not None and not command.feature_memory > 0:
        raise UserError(f"--feature-memory is {command.feature_memory}; it must be above 0")
    where = (command.coordinator, command.process_id, command.processes)
    if command.distributed:
        initialize(*where)
    elif where != (None, None, None):
        raise UserError("--coordinator, --process-id and --processes need --distributed; add it")
    return {
        "overwrite": command.overwrite,
        "cache_dir": command.cache_dir,
        "checkpoint_every": command.checkpoint_every,
        "data_shards": command.data_shards,
        "feature_memory": command.feature_memory,
        "tensorboard": command.tensorboard,
    }


def _ablate(command: Ablate, words: str) -> None:
    if command.distributed:
        raise UserError("a sweep runs in one process; leave out --distributed, or use ahl train")
    rows = ablate(
        command.config,
        command.workdir,
        command.over,
        command.seeds,
        base=command.base,
        command=words,
        **_options(command),
    )
    for name, value in dict.fromkeys((row["over"], row["value"]) for row in rows):
        scores = [row["auc_roc"] for row in rows if (row["over"], row["value"]) == (name, value)]
        print(f"{name} {value}: AUC-ROC {mean_std(scores, 4)}")
    print(f"The tables and the figure are {command.workdir}/ablation.csv, .md and .png.")


def _train(command: Train) -> None:
    options = _options(command)
    if not command.seeds:
        metrics = train(command.config, command.workdir, **options)
        if is_primary():
            print(training_in_words(command.config, metrics, command.workdir))
        return
    results = train_seeds(command.config, command.workdir, command.seeds, **options)
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


def _finetune(command: Finetune) -> None:
    metrics = finetune(command)
    print(training_in_words(Workdir(command.workdir).config(), metrics, command.workdir))


def _evaluate(command: Evaluate) -> None:
    metrics = evaluate(
        command.workdir, data=command.data, fpr=command.fpr, cache_dir=command.cache_dir
    )
    if command.json:
        print(json.dumps(metrics, ensure_ascii=False))
        return
    for line in metrics_in_words(metrics, command.fpr):
        print(line)


if __name__ == "__main__":
    main()
