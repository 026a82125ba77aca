"""Train the cells of a table, and write its files after each."""

import dataclasses
import functools
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from ahl_jax import finetune, train_seeds
from ahl_jax.cli.shell import keep_compiled_programs
from ahl_jax.common.commit import commit
from ahl_jax.common.errors import UserError
from ahl_jax.common.files import csv_text, replace_file
from ahl_jax.common.text import mean_std
from ahl_jax.config.settings import Config, DataConfig
from ahl_jax.data.open import load_dataset
from ahl_jax.data.splits import make_split
from ahl_jax.features.split import split_digest
from ahl_jax.storage.workdir import Workdir
from ahl_jax.sweeps.figure import draw, png
from ahl_jax.sweeps.points import Point
from experiments.tables.cells import Cell, Options, Table, plan
from experiments.tables.methods import METHODS, in_words, varied
from experiments.tables.report import Row, markdown, merged, per_seed, read_rows, sections

PUBLISHED = "AHL(DRA)"
"""The row of ``METHODS`` that the paper varies."""

T = TypeVar("T", bound=Options)


def parse(kind: type[T], description: str | None, **defaults: Any) -> T:
    """The options of the command line; ``defaults`` differ from those of ``kind``."""
    default = dataclasses.replace(kind(), **defaults)
    marks = (tyro.conf.FlagCreatePairsOff,)
    return tyro.cli(kind, default=default, description=description, config=marks)


def run(
    table: Table,
    options: Options,
    cells: Sequence[Cell] | None = None,
    text_of: Callable[..., str] = markdown,
) -> tuple[Sequence[Cell], list[Row]]:
    """Train what is missing, and write ``NAME.csv`` and ``NAME.md`` after every cell.

    Rows that the files have already and this command does not make stay, so that a method can be
    added to a table. Each names the commit that it is from.

    Args:
        table: the table.
        options: its options.
        cells: what it holds; by default all that the options ask for.
        text_of: what makes the Markdown, see ``experiments.tables.report.markdown``.

    Returns:
        The cells, and the rows of the CSV: one per cell and seed.

    Raises:
        UserError: as ``experiments.tables.cells.plan`` and ``ahl_jax.train`` do.
    """
    keep_compiled_programs()
    if options.quick:
        title = f"{table.title} (debug preset: few images and epochs, to see that it runs)"
        table = dataclasses.replace(table, title=title)
    seeds = list(dict.fromkeys(options.seeds))
    command = shlex.join(["python", "-m", f"experiments.{table.name}", *sys.argv[1:]])
    cells = plan(table, options) if cells is None else cells
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out} cannot be made ({error}); name another") from error
    done: dict[Path, list[dict[str, Any]]] = {}
    path = output(options, table, "csv")
    rows = read_rows(path) if path.exists() else []
    for cell in cells:
        if cell.folder not in done:
            done[cell.folder] = _finished(cell, seeds) or _made(cell, seeds)
        rows = merged(rows, [_row(table, cell, metrics) for metrics in done[cell.folder]], table)
        replace_file(path, csv_text(rows))
        text = text_of(table, cells, rows, command)
        replace_file(output(options, table, "md"), text)
        scores = mean_std([metrics["auc_roc"] for metrics in done[cell.folder]], 3)
        print(f"{_name(cell)}: AUC-ROC {scores}", flush=True)
    print(text)
    print(f"written to {path} and {output(options, table, 'md').name}")
    return cells, rows


def _made(cell: Cell, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The metrics of all seeds, which are trained."""
    if cell.start is None:
        return train_seeds(cell.config, cell.folder, seeds)
    if not _finished(cell.start, seeds):
        train_seeds(cell.start.config, cell.start.folder, seeds)
    names = [f"seed-{seed}" for seed in seeds]
    epochs = cell.config.learning.epochs
    return [
        finetune(cell.start.folder / name, cell.data, cell.folder / name, epochs=epochs)
        for name in names
    ]


def output(options: Options, table: Table, suffix: str, part: str = "") -> Path:
    """The path of one of a table's files."""
    quick = "_quick" if options.quick else ""
    return options.out / f"{table.name}{table.variant}{options.variant}{quick}{part}.{suffix}"


def sweep(
    table: Table,
    options: Options,
    of: str,
    values: Mapping[str, tuple[str, Sequence[Any]]],
    *,
    default: str = PUBLISHED,
) -> None:
    """A table of settings varied one at a time, and a picture of it per data set.

    Args:
        table: the table; its rows are made here, the base detector alone first.
        options: its options.
        of: the row of ``METHODS`` whose settings are varied.
        values: setting -> its symbol and values.
        default: the row whose files have the table's name alone.

    Raises:
        UserError: as ``run`` does, or if AHL does not train the row.
    """
    able = [
        name
        for name, method in METHODS.items()
        if method.against and method.settings.get("method", "ahl") == "ahl"
    ]
    if of not in able:
        known = ", ".join(f"'{name}'" for name in able)
        raise UserError(f"--of has no '{of}'; choose from {known}")
    start, base = METHODS[of], METHODS[of].against[0]
    values = {name: (symbol, tuple(dict.fromkeys(v))) for name, (symbol, v) in values.items()}
    swept = {name: varied(start, symbol, name, v) for name, (symbol, v) in values.items()}
    rows = {base: METHODS[base]}
    for methods in swept.values():
        rows |= methods
    letters = "-".join(re.findall(r"[a-z0-9]+", of.lower()))
    variant = table.variant + ("" if of == default else f"_{letters}")
    title = f"{table.title}, {of}"
    table = dataclasses.replace(table, title=title, methods=rows, variant=variant)
    cells, results = run(table, options)
    chosen = {cell.method: cell.config for cell in cells}
    for section in sections(cells, results):
        points = [
            (
                _point(name, value, chosen[method]),
                list(per_seed(section, results, method, "auc_roc").values()),
            )
            for name, methods in swept.items()
            for method, value in zip(methods, values[name][1], strict=True)
            if method in chosen
        ]
        if points:
            alone = list(per_seed(section, results, base, "auc_roc").values())
            figure = draw(points, alone or None, title=section.title)
            path = output(options, table, "png", f"_{section.file_name}")
            replace_file(path, png(figure))


def _point(setting: str, value: Any, config: Config) -> Point:
    number = None if isinstance(value, bool | str | tuple) else float(value)
    shown = in_words(value).replace(", ", "\n")
    return Point(setting.replace("_", "-"), shown, number, config, folder="")


def _finished(cell: Cell, seeds: Sequence[int]) -> list[dict[str, Any]] | None:
    """The metrics of all seeds, if they are there and of the same images."""
    found = []
    for seed in seeds:
        workdir = Workdir(cell.folder / f"seed-{seed}")
        metrics = workdir.metrics()
        if not metrics or workdir.data_digest() != _digest(cell.data, seed):
            return None
        found.append(metrics)
    return found


@functools.cache
def _digest(data: DataConfig, seed: int) -> str:
    """That of a split's images, which all methods have in common."""
    return split_digest(make_split(load_dataset(data), data, seed))


def _row(table: Table, cell: Cell, metrics: dict[str, Any]) -> Row:
    return {
        "table": table.label,
        "setting": cell.setting,
        "shots": cell.shots,
        "dataset": cell.dataset,
        "seen_class": cell.seen_class or "",
        "method": cell.method,
        **{name: metrics[name] for name in ("seed", "auc_roc", "auc_pr", "seconds")},
        "commit": commit() or "unknown",
    }


def _name(cell: Cell) -> str:
    seen = f", seen class {cell.seen_class}" if cell.seen_class else ""
    return f"{cell.dataset}, {cell.setting}, M = {cell.shots}{seen}, {cell.method}"
