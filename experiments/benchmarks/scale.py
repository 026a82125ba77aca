"""Seconds and peak memory of each command as the number of images grows.

    python -m experiments.benchmarks.scale [--images 10000 30000 100000] [--classes 500] [--quick]

Half of the images are training normals, a quarter test normals, and a quarter anomalies of the
classes. They are small PNG files of noise in a temporary folder, which has the features too: of
192 pixels 58 KB for each image that differs. With ``distinct`` the others are copies, so the trunk
sees fewer images and everything else as many. Each command is a process of its own. Beside its peak
memory stands the peak without pages of files, such as streamed features: the system takes those
back where it needs the room.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image

from ahl_jax.cli.shell import run_command
from ahl_jax.common.errors import UserError
from ahl_jax.config.checks import AtLeast, check_values
from experiments.benchmarks import common

_SIDE = 16

_ANONYMOUS = re.compile(r"RssAnon:\s+(\d+) kB")

_PAUSE = 0.05
"""Seconds between two looks at a process's memory."""


@dataclass(frozen=True)
class Scale:
    """Seconds and memory by the number of images."""

    images: Annotated[tuple[int, ...], AtLeast(100)] = (10_000, 30_000, 100_000)
    """How many there are, in turn."""

    classes: Annotated[int, AtLeast(1)] = 500
    """Classes of anomalies, at most one for each 8 images."""

    distinct: Annotated[int | None, AtLeast(100)] = None
    """At most so many of them differ; by default all do."""

    predicted: Annotated[int, AtLeast(1)] = 1_000_000
    """Predict at most so many of the test normals."""

    image_size: Annotated[int, AtLeast(64)] = 192
    """Side in pixels of the larger scale."""

    feature_memory: Annotated[float, AtLeast(0)] = 1.0
    """GiB of features that a training may hold."""

    quick: bool = False
    """400 images of 50 classes."""

    json: Path | None = None
    """Write the rows here as JSON too."""

    def __post_init__(self) -> None:
        check_values(self)


def measured(args: Scale) -> Iterator[dict[str, Any]]:
    """A row for each number of images and command.

    Raises:
        UserError: if a command fails.
    """
    for images in (400,) if args.quick else args.images:
        classes = min(50 if args.quick else args.classes, images // 8)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            data, run, report = folder / "data", folder / "run", folder / "report.html"
            began = time.perf_counter()
            make(data, images, classes, args.distinct or images)
            shared = {"device": common.device_name(), "images": images, "classes": classes}
            shared["distinct"] = min(args.distinct or images, images)
            seconds = time.perf_counter() - began
            row = {**shared, "command": "make", "seconds": seconds}
            yield {**row, "peak_mib": None, "without_files_mib": None, "mib": None}
            few = sorted((data / "test/good").iterdir())[: args.predicted]
            some = folder / "some"
            some.mkdir()
            for path in few:
                os.link(path, some / path.name)
            train = (
                f"train {data} --workdir {run} --image-size {args.image_size} --levels 1 --views 1 "
                f"--no-fine-heat --keep-copies --feature-memory {args.feature_memory}"
            )
            commands = {
                "data show": f"data show {data}",
                "train": train,
                "evaluate": f"evaluate {run}",
                "report": f"report {run} --out {report}",
                f"predict {len(few)}": f"predict {run} {some} --out {folder / 'out'} "
                "--no-heat-maps",
            }
            for command, line in commands.items():
                seconds, peak, own = ran(line.split(), folder / "cache")
                size = report.stat().st_size / 2**20 if command == "report" else None
                yield {
                    **shared,
                    "command": command,
                    "seconds": seconds,
                    "peak_mib": peak,
                    "without_files_mib": own,
                    "mib": size,
                }


def make(folder: Path, images: int, classes: int, distinct: int) -> None:
    """Write a data set in MVTec layout.

    Args:
        folder: for the data set.
        images: how many there are.
        classes: of anomalies.
        distinct: how many of them differ, and are links to each other's content.
    """
    rng = np.random.default_rng(0)
    parts = {"train/good": images // 2, "test/good": images // 4}
    anomalies = images - sum(parts.values())
    parts |= {
        f"test/class-{i:03}": (i + 1) * anomalies // classes - i * anomalies // classes
        for i in range(classes)
    }
    for part, count in parts.items():
        (folder / part).mkdir(parents=True)
        differ = max(1, round(count * min(1, distinct / images)))
        for i in range(count):
            path = folder / part / f"{i:06}.png"
            if i < differ:
                pixels = rng.integers(96, 160, (_SIDE, _SIDE, 3), np.uint8)
                if "class" in part:
                    pixels[4:8, 4:8] = 255
                Image.fromarray(pixels).save(path)
            else:
                os.link(path.with_name(f"{i % differ:06}.png"), path)


def ran(words: list[str], cache: Path) -> tuple[float, float, float | None]:
    """Seconds of an ``ahl`` command, and the MiB that its process took at most.

    Returns:
        The seconds, the MiB, and those without pages of files, which only Linux tells.

    Raises:
        UserError: if it fails.
    """
    began = time.perf_counter()
    environment = {**os.environ, "AHL_CACHE": str(cache)}
    own: float | None = None
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "ahl_jax", *words],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            if found := _ANONYMOUS.search(_status_of(process.pid)):
                own = max(own or 0, int(found[1]) / 2**10)
            time.sleep(_PAUSE)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        if process.returncode:
            said.seek(0)
            raise UserError(f"ahl {' '.join(words)} failed: {said.read()[-500:]}")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return seconds, usage.ru_maxrss / unit, own


def _status_of(process: int) -> str:
    """The kernel's report on a process; empty where it gives none."""
    try:
        return Path(f"/proc/{process}/status").read_text()
    except OSError:
        return ""


def main() -> None:
    """Measure and print."""
    args = common.parse(Scale, __doc__)
    rows = []
    for row in measured(args):
        rows.append(row)
        print(row, file=sys.stderr)
        common.write_json(rows, args.json)
    common.report(rows, args.json)


if __name__ == "__main__":
    run_command(main)
