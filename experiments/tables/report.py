"""The rows of a table as Markdown: means over the seeds, paired differences, published figures."""

import csv
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ahl_jax.common.errors import UserError
from ahl_jax.common.files import as_written
from ahl_jax.common.text import counted, markdown_table, mean_std
from ahl_jax.sweeps.cells import FIGURES, Row
from experiments.tables.cells import Cell, Table
from experiments.tables.methods import Method
from experiments.tables.pairs import Paired, paired
from experiments.tables.published import CATEGORIES, plain_name, published

_KEYS = ("setting", "shots", "dataset", "seen_class", "method", "seed")
"""The columns that tell the rows of a table apart."""

PerSeed = dict[int, float]


@dataclass(frozen=True)
class Section:
    """One part of a table: methods on a data set, or their mean over its categories."""

    title: str
    setting: str
    shots: int
    datasets: tuple[str, ...]
    classes: tuple[str | None, ...]
    """The seen classes of the hard setting; None alone in the general one."""

    known_as: str
    """The data set's name in the published tables; empty where they have no such cell."""

    @property
    def file_name(self) -> str:
        """The ending that tells the files of several parts apart."""
        dataset = self.datasets[0].replace("/", "-")
        if len(self.datasets) > 1:
            dataset = f"{self.datasets[0].split('/')[0]}-mean"
        return f"{dataset}_{self.shots}shot"


def read_rows(path: Path) -> list[Row]:
    """The rows of a table's CSV.

    Raises:
        UserError: if it is not one.
    """
    kinds: dict[str, Callable[[str], Any]] = dict.fromkeys(("shots", "seed"), int)
    kinds |= dict.fromkeys(("auc_roc", "auc_pr", "seconds"), float)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if missing := {*_KEYS, *kinds} - {*(reader.fieldnames or ())}:
                raise ValueError(f"it has no column '{min(missing)}'")
            return [
                {name: kinds.get(name, as_written)(value) for name, value in row.items()}
                | {"commit": row.get("commit", "unknown")}
                for row in reader
            ]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no table of earlier runs ({error}); move it away, or name another `out`"
        ) from error


def merged(rows: Sequence[Row], new: Sequence[Row], table: Table) -> list[Row]:
    """The rows with new ones in place of those of the same cell and seed.

    Where the figures are the same the old row stays, with its commit. Part by part, and in each
    method by method; those that the table does not have, as other values of a setting, come last.
    """
    found = {tuple(row[name] for name in _KEYS): row for row in rows}
    for row in new:
        key = tuple(row[name] for name in _KEYS)
        old = found.get(key)
        if old is None or any(old[name] != row[name] for name in FIGURES):
            found[key] = row
    parts = list(dict.fromkeys(_part_of(row) for row in found.values()))
    place = {name: i for i, name in enumerate(_methods(table, list(found.values())))}
    return sorted(
        found.values(), key=lambda row: (parts.index(_part_of(row)), place[row["method"]])
    )


def _methods(table: Table, rows: Sequence[Row]) -> list[str]:
    """The methods of the table, then those that only earlier runs have."""
    return list(dict.fromkeys([*table.methods, *(row["method"] for row in rows)]))


def _part_of(row: Row) -> tuple[Any, ...]:
    return row["setting"], row["shots"], row["dataset"], row["seen_class"]


def sections(cells: Sequence[Cell], rows: Sequence[Row]) -> list[Section]:
    """The parts of a table, those over all categories of a data set last.

    Args:
        cells: those that it will hold.
        rows: those that it holds already.
    """
    found = []
    parts = dict.fromkeys(_part_of(row) for row in rows)
    parts |= dict.fromkeys(cell.part for cell in cells)
    keys = dict.fromkeys(part[:3] for part in parts)
    for setting, shots, dataset in keys:
        classes = tuple(p[3] or None for p in parts if p[:3] == (setting, shots, dataset))
        name = dataset.split("/")[-1]
        title = _title(dataset, setting, shots)
        found.append(Section(title, setting, shots, (dataset,), classes, name))
    for setting, shots, data in dict.fromkeys((s, m, d.split("/")[0]) for s, m, d in keys):
        whole = tuple(
            d for s, m, d in keys if (s, m) == (setting, shots) and d.startswith(f"{data}/")
        )
        # In the hard setting the paper has every category by itself.
        if len(whole) > 1 and setting == "general":
            known_as = data if CATEGORIES.get(plain_name(data)) == len(whole) else ""
            title = _title(f"{data}, mean of {len(whole)} categories", setting, shots)
            found.append(Section(title, setting, shots, whole, (None,), known_as))
    return found


def markdown(table: Table, cells: Sequence[Cell], rows: Sequence[Row], command: str) -> str:
    """The whole file; cells that are not trained yet are left out.

    Args:
        table: the table.
        cells: those that the command adds to it.
        rows: those that there are.
        command: how to make it.
    """
    lines = heading(table, cells, rows, command)
    for section in sections(cells, rows):
        lines += _part(table, section, rows)
    return "\n".join([*lines, *_over_all(table, sections(cells, rows), rows)]) + "\n"


def heading(table: Table, cells: Sequence[Cell], rows: Sequence[Row], command: str) -> list[str]:
    """The first lines of the file; arguments as for ``markdown``."""
    seeds = sorted({row["seed"] for row in rows})
    made = {(*cell.part, cell.method) for cell in cells}
    others = {row["method"] for row in rows if (*_part_of(row), row["method"]) not in made}
    kept = [name for name in _methods(table, rows) if name in others]
    commits = list(dict.fromkeys(row["commit"] for row in rows))
    over = "mean ± standard deviation over them" if len(seeds) > 1 else "one run each"
    counts = Counter((*_part_of(row), row["method"]) for row in rows)
    if len(set(counts.values())) > 1:
        over += ", or those of them that a row has in the CSV"
    return [
        f"# {table.title}",
        "",
        f"Seeds {', '.join(map(str, seeds))}; {over}; the last epoch counts. Seconds are those of "
        "training one seed, without compilation and stage one.",
        "",
        f"Command: `{command}`" + (f". Rows of earlier runs: {'; '.join(kept)}" if kept else ""),
        "",
        f"Commit{'s, row by row in the CSV' if len(commits) > 1 else ''}: {', '.join(commits)}",
    ]


def labelled_anomalies(shots: int) -> str:
    """M in words."""
    return counted(shots, "labelled anomal", "y", "ies")


def per_seed(
    section: Section, rows: Sequence[Row], method: str, column: str, *, seen: str | None = None
) -> PerSeed:
    """A column's mean over the section's data sets and classes, for every seed that has all.

    Args:
        section: the part of the table.
        rows: all rows.
        method: the method.
        column: auc_roc, auc_pr or seconds.
        seen: take the runs alone that saw this class.
    """
    parts = len(section.datasets) * (1 if seen is not None else len(section.classes))
    values: dict[int, list[float]] = {}
    for row in rows:
        same = (row["setting"], row["shots"]) == (section.setting, section.shots)
        there = row["dataset"] in section.datasets and (seen is None or row["seen_class"] == seen)
        if same and there and row["method"] == method:
            values.setdefault(row["seed"], []).append(row[column])
    return {seed: statistics.mean(v) for seed, v in values.items() if len(v) == parts}


def _title(data: str, setting: str, shots: int) -> str:
    return f"{data}: {setting} setting, {labelled_anomalies(shots)}"


def _part(table: Table, section: Section, rows: Sequence[Row]) -> list[str]:
    every = _methods(table, rows)
    methods = [name for name in every if per_seed(section, rows, name, "auc_roc")]
    if not methods:
        return []
    known = {
        name: published(table.label, section.setting, section.shots, section.known_as, name)
        for name in methods
    }
    classes = [name for name in section.classes if name is not None]
    head = ["method", *(f"seen {name}" for name in classes)]
    head += ["mean AUC-ROC" if classes else "AUC-ROC", "AUC-PR", "seconds"]
    head += ["published AUC-ROC"] if any(known.values()) else []
    lines = ["", f"## {section.title}", ""]
    if classes:
        lines += ["AUC-ROC with each class as the seen one, then the mean over the classes.", ""]
    body = []
    for name in methods:
        values = [per_seed(section, rows, name, "auc_roc", seen=seen) for seen in classes]
        values += [per_seed(section, rows, name, column) for column in ("auc_roc", "auc_pr")]
        cells = [name, *(mean_std(list(v.values()), 3) for v in values)]
        cells.append(mean_std(list(per_seed(section, rows, name, "seconds").values()), 1))
        cells += [known[name] or ""] if any(known.values()) else []
        body.append(cells)
    return lines + markdown_table(head, body) + _pairs(section, table.methods, methods, rows)


def _pairs(
    section: Section, registry: Mapping[str, Method], methods: Sequence[str], rows: Sequence[Row]
) -> list[str]:
    found = {}
    for name in methods:
        for other in registry[name].against if name in registry else ():
            ours, theirs = (per_seed(section, rows, one, "auc_roc") for one in (name, other))
            if ours.keys() & theirs.keys():
                found[name, other] = paired(ours, theirs)
    return _pair_table(found, "same split and seed", "seeds ahead")


def _over_all(table: Table, parts: Sequence[Section], rows: Sequence[Row]) -> list[str]:
    """The differences as means over data sets, each of which counts once, whatever its seeds."""
    lines = []
    for setting, shots in dict.fromkeys((part.setting, part.shots) for part in parts):
        found = {}
        for name, method in table.methods.items():
            for other in method.against:
                means: PerSeed = {}
                for i, part in enumerate(parts):
                    if (part.setting, part.shots, len(part.datasets)) != (setting, shots, 1):
                        continue
                    ours, theirs = (per_seed(part, rows, one, "auc_roc") for one in (name, other))
                    if ours.keys() & theirs.keys():
                        means[i] = paired(ours, theirs).mean
                if len(means) > 1:
                    found[name, other] = paired(means, dict.fromkeys(means, 0.0))
        if found:
            lines += ["", f"## {_title('Over all data sets', setting, shots)}"]
            lines += _pair_table(found, "mean over data sets", "data sets ahead")
    return lines


def _pair_table(found: Mapping[tuple[str, str], Paired], of: str, ahead: str) -> list[str]:
    body = []
    for (name, other), result in found.items():
        interval = f"{result.low:+.4f} to {result.high:+.4f}"
        cells = [f"{name} minus {other}", f"{result.mean:+.4f}"]
        cells.append("" if math.isnan(result.low) else interval)
        body.append([*cells, f"{result.ahead} of {result.seeds}"])
    if not body:
        return []
    head = [of, "mean difference of AUC-ROC", "95 % interval (t)", ahead]
    return ["", *markdown_table(head, body)]
