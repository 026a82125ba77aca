"""The commands `ahl data ...`: which data sets there are, preparing, showing and checking one."""

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro

from ahl_jax.common.text import counted, printable
from ahl_jax.config.checks import ANYWHERE
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.builders import NAMES, builder_class
from ahl_jax.data.records import data_folder, is_prepared, prepared_folder

if TYPE_CHECKING:
    from ahl_jax.data.check import Check as Found
    from ahl_jax.data.check import Group

T = TypeVar("T")

_SHOWN = 20
_SIZES = 5
_KINDS = {
    "file": "the same file",
    "pixels": "equal pixels",
    "near": "alike, as a copy scaled or compressed is",
}


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

    out: Annotated[Path | None, ANYWHERE] = None
    """A PNG file for a sheet with up to six images of every class, of one category."""


@dataclass(frozen=True)
class Check:
    """Find images that cannot be read, or are in a data set twice, such as in training and test.

    Copies are found by their bytes, by their pixels, and, where they were scaled or compressed, by
    their looks. The exit code is 0 for clean data and 1 where something was found.
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A data set as `ahl train` takes it: a name, a folder or a CSV file."""

    category: str | None = None
    """The category, where there are several; by default each is checked by itself."""

    all: bool = False
    """List all that was found, instead of the first 20 of each kind."""


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
        print(
            f"{folder}: {counts['train']['good']} images to train on; to test on: {printable(test)}"
        )


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
        if dataset.note:
            print(printable(dataset.note), file=sys.stderr)
        print(printable(dataset.name))
        for title, paths in rows(dataset).items():
            print(f"  {len(paths):>6}  {printable(title)}")
        if command.out is not None:
            draw(dataset, command.out)
            print(f"Some images of each are in {command.out}.")


def run_check(command: Check) -> None:
    """Run ``ahl data check``.

    Raises:
        UserError: for a data set that is not there, or is not as it should be.
    """
    from ahl_jax.data.check import check
    from ahl_jax.data.copies import copy_of
    from ahl_jax.data.open import categories, load_dataset

    clean = True
    several = categories(command.data) if command.category is None else ()
    for category in several or (command.category,):
        dataset = load_dataset(DataConfig(command.data, category=category))
        found = check(dataset, copy_of(command.data))
        for line in _check_in_words(found, None if command.all else _SHOWN):
            print(printable(line))
        clean = clean and found.clean
    if not clean:
        sys.exit(1)


def _check_in_words(found: "Found", limit: int | None) -> Iterator[str]:
    """What was found, line by line; at most ``limit`` images or groups of each kind."""
    from ahl_jax.data.check import SHOTS

    yield found.name
    for title, number in found.counts.items():
        yield f"  {number:>6}  {title}"
    yield f"Sizes: {_tally({f'{w} x {h}': n for (w, h), n in found.sizes.items()}, _SIZES)}"
    yield f"Modes: {_tally(found.modes)}"
    if 0 < found.drawn < SHOTS:
        yield f"All anomalies are fewer than --shots {SHOTS} takes: {found.drawn}"
    elif found.few:
        few = _tally(found.few)
        yield f"Too few for --setting full or hard with --shots {SHOTS} of a class: {few}"
    for bad, what in ((found.unreadable, "image"), (found.masks, "mask")):
        if bad:
            yield f"Cannot be read: {counted(len(bad), what)}"
            yield from (f"  {reason}" for _, reason in bad[:limit])
            yield from _rest(bad, limit)
    contradicting = [group for group in found.groups if group.contradicts]
    leaks = [group for group in found.groups if group.leaks and not group.contradicts]
    others = [group for group in found.groups if not group.leaks and not group.contradicts]
    yield from _groups("Both normal and anomaly", contradicting, limit)
    yield from _groups("In training and in the test", leaks, limit)
    yield from _groups("More than once", others, limit)
    if found.clean:
        yield "Clean: all images can be read, and none is there twice."
    elif any(group.leaks for group in found.groups):
        yield (
            "Training leaves a test image out by itself where it has the same file, but not where "
            "pixels are equal or alike; delete what is wrong."
        )


def _groups(title: str, groups: Sequence["Group"], limit: int | None) -> Iterator[str]:
    if not groups:
        return
    yield f"{title}: {counted(len(groups), 'picture')}"
    for group in groups[:limit]:
        both = " in training and in the test" if group.contradicts and group.leaks else ""
        yield f"  {_KINDS[group.kind]}{both}:"
        for image in group.images[:limit]:
            part = "train" if image.train else "test"
            yield f"    {part}: {image.anomaly_class or 'good'}  {image.path}"
        yield from (f"  {line}" for line in _rest(group.images, limit))
    yield from _rest(groups, limit)


def _rest(items: Sequence[T], limit: int | None) -> Iterator[str]:
    if limit is not None and len(items) > limit:
        yield f"  and {len(items) - limit} more, which --all lists"


def _tally(counts: Mapping[str, int], limit: int | None = None) -> str:
    said = [f"{name} ({n})" for name, n in itertools.islice(counts.items(), limit)]
    more = len(counts) - len(said)
    return ", ".join([*said, counted(more, "other")] if more else said) or "none"
