"""The command line: `ahl` and its commands."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import tyro

from ahl_jax.cli import data, doctor, predict, report, runs, serve, threshold, weights
from ahl_jax.cli.help import explained, overview
from ahl_jax.cli.options import (
    PATHS,
    Command,
    check_places,
    check_words,
    names_of,
    options_of,
)
from ahl_jax.cli.shell import keep_compiled_programs, run_command
from ahl_jax.common.errors import UserError
from ahl_jax.common.text import nearest
from ahl_jax.config.presets import PRESETS
from ahl_jax.inference.options import Export, Predict

TITLE = """Open-set anomaly detection from normal images and a handful of labelled defects: Anomaly
Heterogeneity Learning in JAX."""

COMMANDS: Mapping[str, Command] = {
    "train": Command(
        runs.Train,
        runs.run_train,
        ("data", "workdir", "preset", "category", "joint", "shots", "setting", "seen_class",
         "detector", "method", "epochs", "trunk", "views", "held_out", "in_turn", "seeds",
         "overwrite"),
    ),
    "ablate": Command(
        runs.Ablate,
        runs.run_ablate,
        ("data", "workdir", "over", "base", "preset", "category", "shots", "setting", "seen_class",
         "detector", "epochs", "seeds", "overwrite"),
    ),
    "finetune": Command(
        runs.Finetune,
        runs.run_finetune,
        ("run", "data", "workdir", "category", "shots", "normals_only", "setting", "seen_class",
         "epochs", "held_out", "overwrite"),
    ),
    "update": Command(
        runs.Update,
        runs.run_update,
        ("run", "defects", "good", "workdir", "data", "overwrite"),
    ),
    "evaluate": Command(runs.Evaluate, runs.run_evaluate),
    "threshold": Command(threshold.Threshold, threshold.run_threshold),
    "predict": Command(Predict, predict.run_predict),
    "report": Command(report.Report, report.run),
    "compare": Command(report.Compare, report.run),
    "export": Command(Export, predict.run_export),
    "serve": Command(serve.Serve, serve.run),
    "data list": Command(data.List, data.run_list),
    "data prepare": Command(data.Prepare, data.run_prepare),
    "data show": Command(data.Show, data.run_show),
    "data check": Command(data.Check, data.run_check),
    "weights list": Command(weights.List, weights.run_list),
    "weights download": Command(weights.Download, weights.run_download),
    "weights import": Command(weights.Import, weights.run_import),
    "doctor": Command(doctor.Doctor, doctor.run),
}  # fmt: skip

_HELP = ("-h", "--help", "--help-all")
_VERSION = "--version"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; see ``ahl_jax.cli.shell.run_command`` for the exit codes."""
    words = sys.argv[1:] if arguments is None else arguments
    run_command(lambda: _run(words), *_kinds())


def _kinds() -> list[type]:
    return [command.kind for command in COMMANDS.values()]


def _run(words: Sequence[str]) -> None:
    if list(words) == [_VERSION]:
        print(metadata.version("ahl_jax"))
        return
    name = next((name for name in COMMANDS if words[: name.count(" ") + 1] == name.split()), None)
    asked = [word for word in words if word in _HELP]
    if name is None:
        print(overview(TITLE, _group(words, asking=bool(asked))))
        return
    command, rest = COMMANDS[name], words[name.count(" ") + 1 :]
    values = _start(command.kind, words)
    if asked:
        whole = "--help-all" in asked
        print(explained(name, command, values, names_of(_kinds()), whole=whole))
        return
    check_words(name, rest, list(options_of(command.kind, values)), COMMANDS)
    with PATHS:
        chosen: Any = tyro.cli(
            command.kind,
            prog=f"ahl {name}",
            args=rest,
            default=values,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    check_places(options_of(command.kind, chosen))
    keep_compiled_programs(getattr(getattr(chosen, "how", chosen), "cache_dir", None))
    command.run(chosen)


def _group(words: Sequence[str], *, asking: bool) -> Mapping[str, Command]:
    """The commands that the words may be the start of.

    Args:
        words: what was typed; no command's name.
        asking: whether help is asked for, not a command.

    Raises:
        UserError: if there is none, or a command is needed.
    """
    typed = [word for word in words if not word.startswith("-")]
    if words and words[0].startswith("-") and words[0] not in _HELP:
        advice = nearest(words[0], [*_HELP, _VERSION]) or "`ahl --help` lists the commands"
        raise UserError(f"there is no option {words[0]}; {advice}")
    group = {n: each for n, each in COMMANDS.items() if n.split()[:1] == typed[:1] or not typed}
    if group and asking:
        return group
    if group and len(typed) < 2:
        raise UserError(f"a command is missing; choose from {', '.join(group)}")
    unknown = " ".join(typed[: 2 if group else 1])
    advice = nearest(unknown, COMMANDS) or "`ahl --help` lists them"
    raise UserError(f"there is no command {unknown}; {advice}")


def _start(kind: type, words: Sequence[str]) -> Any:
    """The defaults of a command; those of its fields, unless a preset has others."""
    if kind is runs.Train:
        return runs.Train(PRESETS[_preset(words)](tyro.MISSING), workdir=tyro.MISSING)
    if kind is runs.Ablate:
        config, typed = PRESETS[_preset(words)](tyro.MISSING), shlex.join(["ahl", *words])
        return runs.Ablate(config, workdir=tyro.MISSING, typed=typed)
    return tyro.MISSING_NONPROP


def _preset(words: Sequence[str]) -> str:
    """The value of --preset, read first because it sets the other options' defaults."""
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--preset":
            value = value if equals else (words[i + 1] if i + 1 < len(words) else "")
            return value if value in PRESETS else runs.Train.preset
    return runs.Train.preset


if __name__ == "__main__":
    main()
