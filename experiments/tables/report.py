"""The rows of a table as Markdown: means over the seeds, paired differences, published figures."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ahl_jax.metrics import mean_std
from ahl_jax.runtime import commit
from experiments.tables.cells import Cell, Table
from experiments.tables.methods import Method
from experiments.tables.pairs import paired
from experiments.tables.published import CATEGORIES, plain_name, published

Row = dict[str, Any]
"""table, setting, shots, dataset, seen_class, method, seed, auc_roc, auc_pr, seconds."""

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
        """What tells the files of several parts apart."""
        dataset = self.datasets[0].replace("/", "-")
        if len(self.datasets) > 1:
            dataset = f"{self.datasets[0].split('/')[0]}-mean"
        return f"{dataset}_{self.shots}shot"


def sections(cells: Sequence[Cell]) -> list[Section]:
    """The parts of a table, those over all categories of a data set last."""
    found = []
    keys = dict.fromkeys((c.setting, c.shots, c.dataset) for c in cells)
    for setting, shots, dataset in keys:
        mine = [c for c in cells if (c.setting, c.shots, c.dataset) == (setting, shots, dataset)]
        classes = tuple(dict.fromkeys(c.seen_class for c in mine))
        name = dataset.split("/")[-1]
        title = _title(dataset, setting, shots)
        found.append(Section(title, setting, shots, (dataset,), classes, name))
    for setting, shots, data in dict.fromkeys((s, m, d.split("/")[0]) for s, m, d in keys):
        parts = tuple(
            d for s, m, d in keys if (s, m) == (setting, shots) and d.startswith(f"{data}/")
        )
        # In the hard setting the paper has every category by itself.
        if len(parts) > 1 and setting == "general":
            known_as = data if CATEGORIES.get(plain_name(data)) == len(parts) else ""
            title = _title(f"{data}, mean of {len(parts)} categories", setting, shots)
            found.append(Section(title, setting, shots, parts, (None,), known_as))
    return found


def markdown(
    table: Table, cells: Sequence[Cell], rows: Sequence[Row], seeds: Sequence[int], command: str
) -> str:
    """The whole file; cells that are not trained yet are left out.

    Args:
        table: the table.
        cells: all that it will hold.
        rows: what there is of it.
        seeds: the seeds.
        command: how to make it.
    """
    lines = heading(table, seeds, command)
    for section in sections(cells):
        lines += _part(table, section, rows)
    return "\n".join(lines) + "\n"


def heading(table: Table, seeds: Sequence[int], command: str) -> list[str]:
    """What the file begins with."""
    over = "mean ± standard deviation over them" if len(seeds) > 1 else "one run each"
    return [
        f"# {table.title}",
        "",
        f"Seeds {', '.join(map(str, seeds))}; {over}; the last epoch counts. Seconds are those of "
        "training one seed, without compilation and stage one.",
        "",
        f"Command: `{command}`",
        "",
        f"Commit: {commit() or 'unknown'}",
    ]


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


def _title(what: str, setting: str, shots: int) -> str:
    anomalies = "1 labelled anomaly" if shots == 1 else f"{shots} labelled anomalies"
    return f"{what}: {setting} setting, {anomalies}"


def _part(table: Table, section: Section, rows: Sequence[Row]) -> list[str]:
    methods = [name for name in table.methods if per_seed(section, rows, name, "auc_roc")]
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
    lines += head_lines(head)
    for name in methods:
        values = [per_seed(section, rows, name, "auc_roc", seen=seen) for seen in classes]
        values += [per_seed(section, rows, name, column) for column in ("auc_roc", "auc_pr")]
        cells = [name, *(mean_std(list(v.values()), 3) for v in values)]
        cells.append(mean_std(list(per_seed(section, rows, name, "seconds").values()), 1))
        cells += [known[name] or ""] if any(known.values()) else []
        lines.append(line(cells))
    return lines + _pairs(section, table.methods, methods, rows)


def _pairs(
    section: Section, registry: Mapping[str, Method], methods: Sequence[str], rows: Sequence[Row]
) -> list[str]:
    lines = []
    for name in methods:
        other = registry[name].against
        if other is None or other not in methods:
            continue
        ours, theirs = (per_seed(section, rows, one, "auc_roc") for one in (name, other))
        result = paired(ours, theirs)
        interval = f"{result.low:+.4f} to {result.high:+.4f}"
        cells = [f"{name} minus {other}", f"{result.mean:+.4f}"]
        cells.append("" if math.isnan(result.low) else interval)
        lines.append(line([*cells, f"{result.ahead} of {result.seeds}"]))
    if not lines:
        return []
    head = ["same split and seed", "mean difference of AUC-ROC", "95 % interval (t)", "seeds ahead"]
    return ["", *head_lines(head), *lines]


def head_lines(head: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [line(head), "|---" * len(head) + "|"]


def line(cells: Sequence[str]) -> str:
    """A line of a table."""
    # A bar in a class's name would end its cell.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
