"""Train the cells of a table, and write its files after each."""

import dataclasses
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from ahl_jax import preset
from ahl_jax.cli.shell import keep_compiled_programs
from ahl_jax.common.commit import commit
from ahl_jax.common.errors import UserError
from ahl_jax.common.files import csv_text, replace_file
from ahl_jax.common.text import mean_std
from ahl_jax.config.checks import settings_of
from ahl_jax.sweeps.cells import Row, results
from ahl_jax.sweeps.figure import Mark, draw, png
from experiments.tables.cells import Cell, Options, Table, plan
from experiments.tables.methods import METHODS, Method, in_words, varied
from experiments.tables.report import Section, markdown, merged, per_seed, read_rows, sections

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
    """Train the missing runs, and write ``NAME.csv`` and ``NAME.md`` after every cell.

    Rows that the files have already and this command does not make stay, so that a method can be
    added to a table. Each names the commit that it is from.

    Args:
        table: the table.
        options: its options.
        cells: its cells; by default all that the options ask for.
        text_of: the function that makes the Markdown, as ``experiments.tables.report.markdown``.

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
        raise UserError(f"`out` {options.out} cannot be made ({error}); name another") from error
    path = output(options, table, "csv")
    rows = read_rows(path) if path.exists() else []
    version = commit() or "unknown"
    for cell, found in results(cells, seeds):
        rows = merged(rows, [_row(table, cell, one) | {"commit": version} for one in found], table)
        replace_file(path, csv_text(rows))
        text = text_of(table, cells, rows, command)
        replace_file(output(options, table, "md"), text)
        scores = mean_std([one["auc_roc"] for one in found], 3)
        print(f"{cell.name}: AUC-ROC {scores}", flush=True)
    print(text)
    print(f"written to {path} and {output(options, table, 'md').name}")
    return cells, rows


def output(options: Options, table: Table, suffix: str, part: str = "") -> Path:
    """The path of one of a table's files."""
    quick = "_quick" if options.quick else ""
    return options.out / f"{table.name}{table.variant}{options.variant}{quick}{part}.{suffix}"


def sweep(
    table: Table,
    options: Options,
    of: str,
    values: Mapping[str, Sequence[Any]],
    *,
    default: str = PUBLISHED,
) -> None:
    """A table of settings varied one at a time, and a picture of it per data set.

    Args:
        table: the table; its rows are made here, the base detector alone first.
        options: its options.
        of: the row of ``METHODS`` whose settings are varied.
        values: the values of each setting.
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
        raise UserError(f"`of` has no '{of}'; choose from {known}")
    start, base = METHODS[of], METHODS[of].against[0]
    swept = {name: varied(start, name, chosen) for name, chosen in values.items()}
    rows = {base: METHODS[base]}
    for methods in swept.values():
        rows |= methods
    letters = "-".join(re.findall(r"[a-z0-9]+", of.lower()))
    variant = table.variant + ("" if of == default else f"_{letters}")
    title = f"{table.title}, {of}"
    table = dataclasses.replace(table, title=title, methods=rows, variant=variant)
    cells, made = run(table, options)
    plain = preset("debug" if options.quick else "paper", "")
    given = {setting.name: setting.value for setting in settings_of(plain)} | {**start.settings}
    for section in sections(cells, made):
        if panels := _panels(section, made, swept, given):
            alone = list(per_seed(section, made, base, "auc_roc").values())
            figure = draw(panels, alone, title=f"{of} on {section.title}")
            path = output(options, table, "png", f"_{section.file_name}")
            replace_file(path, png(figure))


def _panels(
    section: Section,
    rows: Sequence[Row],
    swept: Mapping[str, Mapping[str, Method]],
    given: Mapping[str, Any],
) -> dict[str, list[Mark]]:
    """The picture of a part of the table.

    Args:
        section: the part.
        rows: all rows.
        swept: of each setting, its rows.
        given: every setting as it is in the row that is varied.
    """
    panels: dict[str, list[Mark]] = {}
    for name, methods in swept.items():
        for row, method in methods.items():
            if scores := list(per_seed(section, rows, row, "auc_roc").values()):
                value = method.settings[name]
                number = None if isinstance(value, bool | str | tuple) else float(value)
                label = in_words(value).replace(", ", "\n")
                mark = Mark(label, number, scores, value == given[name])
                panels.setdefault(name.replace("_", "-"), []).append(mark)
    return panels


def _row(table: Table, cell: Cell, figures: Row) -> Row:
    return {
        "table": table.label,
        "setting": cell.setting,
        "shots": cell.shots,
        "dataset": cell.dataset,
        "seen_class": cell.seen_class or "",
        "method": cell.method,
        **figures,
    }
