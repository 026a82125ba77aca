"""The commands `ahl data ...`: which data sets there are, preparing one, and looking at one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ahl_jax.config.settings import DataConfig
from ahl_jax.data.builders import NAMES, builder_class
from ahl_jax.data.records import data_folder, is_prepared, prepared_folder


@dataclass(frozen=True)
class List:
    """Name the data sets that can be prepared, and say which are."""


@dataclass(frozen=True)
class Prepare:
    """Turn what was downloaded into a prepared data set that `ahl train NAME` reads.

    It is written to $AHL_DATA, else to ~/.cache/ahl_jax/data. What is prepared already stays.
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """The data set, as `ahl data list` names it."""

    manual_dir: Path | None = None
    """The folder with what was downloaded: unpacked, or as zip or tar archives."""

    category: str | None = None
    """Prepare this category only, instead of all that were downloaded."""


@dataclass(frozen=True)
class Show:
    """Count the images of a data set by split and class, and draw some of each."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A data set as `ahl train` takes it: a name, a folder or a CSV file."""

    category: str | None = None
    """The category, where there are several; by default all are counted."""

    out: Path | None = None
    """A PNG file for a sheet with up to six images of every class, of one category."""


def run_list(_: List) -> None:
    """Run ``ahl data list``."""
    from ahl_jax.data.prepared import prepared_categories

    print(f"Prepared data sets are in {data_folder()}.")
    for name in NAMES:
        builder = builder_class(name)
        known = [config.name for config in builder.BUILDER_CONFIGS]
        there = [each for each in prepared_categories(name) if each in known]
        if known:
            state = f"{len(there)} of {len(known)} categories prepared"
            state += f": {', '.join(there)}" if there else ""
        else:
            state = "prepared" if is_prepared(prepared_folder(name)) else "not prepared"
        if not builder.NEEDS_FOLDER and state == "not prepared":
            state = "read from its PyPI package"
        print(f"  {name:<14}{builder.TITLE:<14}{state}; {builder.PAGE}")


def run_prepare(command: Prepare) -> None:
    """Run ``ahl data prepare``.

    Raises:
        UserError: for a data set that is not there, or is not as it should be.
    """
    from ahl_jax.data.prepare import prepare
    from ahl_jax.data.prepared import read_manifest

    for folder in prepare(command.name, command.manual_dir, command.category):
        counts = {split: part["counts"] for split, part in read_manifest(folder).items()}
        test = ", ".join(f"{number} {name}" for name, number in counts["test"].items())
        print(f"{folder}: {counts['train']['good']} images to train on; to test on: {test}")


def run_show(command: Show) -> None:
    """Run ``ahl data show``.

    Raises:
        UserError: for a data set that is not there, or is not as it should be.
    """
    from ahl_jax.data.contact_sheet import draw, rows
    from ahl_jax.data.open import categories, load_dataset

    several = command.category is None and command.out is None
    for category in (categories(command.data) if several else ()) or (command.category,):
        dataset = load_dataset(DataConfig(command.data, category=category))
        print(dataset.name)
        for title, paths in rows(dataset).items():
            print(f"  {len(paths):>6}  {title}")
        if command.out is not None:
            draw(dataset, command.out)
            print(f"Some images of each are in {command.out}.")
