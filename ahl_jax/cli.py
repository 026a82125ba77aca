"""The command line: `ahl train` and `ahl evaluate`."""

import contextlib
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ahl_jax.config import Config
from ahl_jax.errors import UserError
from ahl_jax.presets import PRESETS

log = logging.getLogger("ahl_jax")


@dataclass(frozen=True)
class Train:
    """Train a detector from normal images and a few labelled anomalies, then test it.

    The same command on the same folder goes on with a run that was stopped, from its last epoch.
    """

    config: Config

    workdir: Path
    """The folder for the run: checkpoint/, history.csv, metrics.json, run.json."""

    preset: Literal["paper", "debug"] = "paper"
    """Where the other settings start from. paper: the published hyper-parameters; debug: a slice of
    the data and a few epochs, to see in under a minute that everything works."""

    overwrite: bool = False
    """Replace a different run that the folder holds."""

    cache_dir: Path | None = None
    """The folder that keeps features for later runs; by default $AHL_CACHE, else
    ~/.cache/ahl_jax."""


@dataclass(frozen=True)
class Evaluate:
    """Score the test images with a run's newest checkpoint and print the metrics."""

    workdir: Annotated[Path, tyro.conf.Positional]
    """The folder that was given to the training."""

    data: str | None = None
    """Where the data is now, if it moved since the training."""

    json: bool = False
    """Print the metrics as JSON and nothing else on stdout."""

    cache_dir: Path | None = None
    """The folder that keeps features; by default $AHL_CACHE, else ~/.cache/ahl_jax."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the exit code is 2 for bad input, 130 or 143 for a stop."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _set_up_logging()
    try:
        with _sigterm_raises():
            command = _parse(arguments)
            if isinstance(command, Train):
                _train(command)
            else:
                _evaluate(command)
    except UserError as error:
        print(f"ahl: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        code = stop.args[0] if stop.args else signal.SIGINT
        print("\nahl: stopped; the same command goes on from where it was", file=sys.stderr)
        sys.exit(128 + code)


def _parse(arguments: list[str]) -> Train | Evaluate:
    start = Train(PRESETS[_named_preset(arguments)](tyro.MISSING), workdir=tyro.MISSING)
    commands = (
        Annotated[Train, tyro.conf.subcommand("train", default=start)]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    )
    marks = (
        tyro.conf.OmitArgPrefixes,
        tyro.conf.OmitSubcommandPrefixes,
        tyro.conf.FlagCreatePairsOff,
    )
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
            return value if value in PRESETS else "paper"
    return "paper"


def _train(command: Train) -> None:
    from ahl_jax.train import train

    _keep_compiled_programs(command.cache_dir)
    metrics = train(
        command.config,
        command.workdir,
        overwrite=command.overwrite,
        cache_dir=command.cache_dir,
    )
    print(_in_words(command.config, metrics, command.workdir))


def _evaluate(command: Evaluate) -> None:
    from ahl_jax.evaluate import evaluate

    _keep_compiled_programs(command.cache_dir)
    metrics = evaluate(command.workdir, data=command.data, cache_dir=command.cache_dir)
    if command.json:
        print(json.dumps(metrics, ensure_ascii=False))
        return
    print(f"AUC-ROC {metrics['auc_roc']:.4f}  AUC-PR {metrics['auc_pr']:.4f}")
    print(f"{metrics['n_test']} test images, {metrics['setting']} setting")
    for name, values in metrics["per_class"].items():
        print(
            f"  {name}: AUC-ROC {values['auc_roc']:.4f}  AUC-PR {values['auc_pr']:.4f}  "
            f"({values['n']} images)"
        )


def _in_words(config: Config, metrics: dict[str, Any], workdir: Path) -> str:
    kind = config.detector.detector.upper() if config.detector.detector == "dra" else "DevNet"
    name = f"AHL({kind})" if config.learning.method == "ahl" else kind
    return (
        f"{name}, trained on {metrics['n_train_normal']} normals and {metrics['n_seen']} labelled "
        f"anomalies for {metrics['epochs']} epochs, reaches an AUC-ROC of "
        f"{metrics['auc_roc']:.4f} and an AUC-PR of {metrics['auc_pr']:.4f} on "
        f"{metrics['n_test']} test images; everything is in {workdir}."
    )


def _keep_compiled_programs(cache_dir: Path | None) -> None:
    """Let later processes skip compilation, unless the user has set JAX's own cache."""
    import jax

    from ahl_jax.features import default_folder

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = (cache_dir or default_folder()) / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _set_up_logging() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    warnings.showwarning = lambda message, *_, **__: log.warning("warning: %s", message)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C: what is being written is finished, then the process ends."""

    def stop(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
