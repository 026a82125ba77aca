"""A table with a row for every category or seen class, and a column for every method."""

from collections.abc import Iterator, Sequence

from ahl_jax.common.text import counted, markdown_table, mean_std
from ahl_jax.sweeps.cells import Row
from experiments.tables.cells import Cell, Table
from experiments.tables.methods import METHODS
from experiments.tables.published import published
from experiments.tables.report import (
    Section,
    heading,
    labelled_anomalies,
    per_seed,
    sections,
)

COLUMNS = {
    name: METHODS[name]
    for name in (
        *("SAOE", "MLEP", "FLOS", "DevNet", "AHL(DevNet)", "DRA", "AHL(DRA)"),
        *("Density", "AHL(Density)"),
    )
}
"""The methods that the paper compares part by part, and ours."""

MEANS = {"general": "1", "hard": "2"}
"""The paper's tables that have the means."""


def by_part(table: Table, cells: Sequence[Cell], rows: Sequence[Row], command: str) -> str:
    """The whole file, as ``experiments.tables.report.markdown``: AUC-ROC alone."""
    lines = heading(table, cells, rows, command)
    groups: dict[tuple[str, str, int], list[Section]] = {}
    for section in sections(cells, rows):
        # In the hard setting every category has classes of its own.
        hard = section.setting == "hard"
        data = section.datasets[0] if hard else section.datasets[0].split("/")[0]
        groups.setdefault((data, section.setting, section.shots), []).append(section)
    for (data, setting, shots), group in groups.items():
        methods = [
            name
            for name in dict.fromkeys([*table.methods, *(row["method"] for row in rows)])
            if any(per_seed(one, rows, name, "auc_roc", seen=seen) for one, _, seen in _rows(group))
        ]
        body = []
        for section, name, seen in _rows(group):
            figures = [per_seed(section, rows, one, "auc_roc", seen=seen) for one in methods]
            if any(figures):
                cells_of = (mean_std(list(f.values()), 3) if f else "" for f in figures)
                body.append([name, *cells_of])
        known_as = group[-1].known_as
        known = [published(MEANS[setting], setting, shots, known_as, name) for name in methods]
        if any(known):
            body.append(["mean, published", *(one or "" for one in known)])
        if body:
            first = "seen class" if setting == "hard" else "category"
            lines += ["", f"## {data}: {setting} setting, {labelled_anomalies(shots)}", ""]
            lines += markdown_table([first, *methods], body)
    return "\n".join(lines) + "\n"


def _rows(group: Sequence[Section]) -> Iterator[tuple[Section, str, str | None]]:
    """Each row's section, name and seen class; means last."""
    for section in group:
        classes = [name for name in section.classes if name is not None]
        for seen in classes:
            yield section, seen, seen
        if classes:
            yield section, f"mean of {counted(len(classes), 'class', more='es')}", None
        elif len(section.datasets) > 1:
            yield section, f"mean of {len(section.datasets)} categories", None
        else:
            yield section, section.datasets[0].split("/")[-1], None
