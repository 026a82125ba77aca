"""How far a method is ahead of the published figures, data set by data set, as a picture.

    python -m experiments.summary [--method "AHL(Density)"]

Reads table1_general.csv and table2_hard.csv, where they are, prints a table and draws
experiments/results/summary.png (summary_METHOD.png for another method).
"""

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tyro

from ahl_jax.cli.shell import run_command
from ahl_jax.common.errors import UserError
from ahl_jax.common.files import replace_file
from ahl_jax.common.text import markdown_table, mean_std
from ahl_jax.sweeps.figure import png
from experiments import table1_general, table2_hard
from experiments.tables.published import published_means
from experiments.tables.report import per_seed, read_rows, sections

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AHEAD, BEHIND = "#1f4e8c", "#f5b267"
"""Dark and light, so that they differ in grey too."""

BEST = "the paper's best"
AGAINST = ("AHL(DRA)", "AHL(DevNet)", BEST)


@dataclass(frozen=True)
class Summary:
    """Draw a method's AUC-ROC minus the published one."""

    method: str = "Density"
    """The row of the tables."""

    results: Path = Path("experiments/results")
    """The folder of the tables, and of the picture."""


class Gap(NamedTuple):
    """A data set in one setting with one M."""

    dataset: str
    setting: str
    shots: int
    ours: list[float]
    """AUC-ROC of every seed."""

    theirs: dict[str, tuple[str, float]]
    """For each of ``AGAINST``, the published method and its mean."""

    def difference(self, name: str) -> float:
        """Ours minus theirs."""
        return statistics.mean(self.ours) - self.theirs[name][1]


def main() -> None:
    """Print the table and draw the picture."""
    options = tyro.cli(Summary, description=__doc__)
    found = gaps(options)
    print("\n".join(markdown(found, options.method)))
    letters = "-".join(re.findall(r"[a-z0-9]+", options.method.lower()))
    name = "summary.png" if options.method == Summary.method else f"summary_{letters}.png"
    replace_file(options.results / name, png(draw(found, options.method)))
    print(f"\nwritten to {options.results / name}")


def gaps(options: Summary) -> list[Gap]:
    """Every cell of tables 1 and 2 that the paper has too.

    Raises:
        UserError: if there is none, or a file is no table.
    """
    found = []
    for table in (table1_general.TABLE, table2_hard.TABLE):
        path = options.results / f"{table.name}.csv"
        rows = read_rows(path) if path.exists() else []
        for part in sections([], rows):
            ours = list(per_seed(part, rows, options.method, "auc_roc").values())
            theirs = published_means(table.label, part.setting, part.shots, part.known_as)
            if ours and theirs:
                # It sees no anomaly, so its figures of table 4 hold for any M.
                alone = published_means("4", part.setting, 10, part.known_as)
                theirs |= {name: alone[name] for name in alone.keys() & {"PatchCore"}}
                best = max(theirs, key=lambda name: theirs[name])
                pairs = {name: (name, theirs[name]) for name in AGAINST[:-1] if name in theirs}
                pairs[BEST] = (best, theirs[best])
                name = part.title.partition(":")[0]
                found.append(Gap(name, part.setting, part.shots, ours, pairs))
    if not found:
        raise UserError(
            f"{options.results} has no table with '{options.method}' on a data set of the paper; "
            "run experiments.table1_general first, or name another `method`"
        )
    places = list(dict.fromkeys(gap.dataset for gap in found))
    return sorted(found, key=lambda gap: (gap.setting, places.index(gap.dataset), -gap.shots))


def markdown(found: Sequence[Gap], method: str) -> list[str]:
    """The figures of the picture."""
    head = ["data set", "setting", "M", method, *(f"minus {name}" for name in AGAINST)]
    body = []
    for gap in found:
        cells = [gap.dataset, gap.setting, str(gap.shots), mean_std(gap.ours, 3)]
        for name in AGAINST:
            other, mean = gap.theirs.get(name, ("", 0.0))
            of = f"{mean:.3f}, {other}" if name == BEST else f"{mean:.3f}"
            cells.append(f"{gap.difference(name):+.3f} ({of})" if other else "")
        body.append(cells)
    return markdown_table(head, body)


def draw(found: Sequence[Gap], method: str) -> "Figure":
    """A row of panels per setting, a panel per published method, a bar per data set and M."""
    # Imported here, as for the figures of sweeps.
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    parts = {setting: [g for g in found if g.setting == setting] for setting in ("general", "hard")}
    parts = {setting: part for setting, part in parts.items() if part}
    heights = [len(part) for part in parts.values()]
    size = (11, 0.3 * sum(heights) + 0.5 * len(parts) + 1.3)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(
        len(parts), len(AGAINST), sharex=True, sharey="row", squeeze=False, height_ratios=heights
    )
    for row, (setting, part) in zip(grid, parts.items(), strict=True):
        for panel, name in zip(row, AGAINST, strict=True):
            _panel(panel, part, name)
            panel.set_title(f"{setting} setting, minus {name}", fontsize=10)
        row[0].set_yticks(range(len(part)), [f"{g.dataset}, M = {g.shots}" for g in part])
        row[0].set_ylim(len(part) - 0.4, -0.6)
    ends = [0.0, *(gap.difference(name) for gap in found for name in gap.theirs)]
    # Room for the figures beside the bars.
    room = 0.3 * (max(ends) - min(ends))
    grid[0, 0].set_xlim(min(ends) - room, max(ends) + room)
    figure.suptitle(f"AUC-ROC of {method} minus the published one")
    legend = [Patch(color=AHEAD, label="ahead"), Patch(color=BEHIND, label="behind")]
    figure.legend(handles=legend, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _panel(panel: "Axes", part: Sequence[Gap], name: str) -> None:
    for place, gap in enumerate(part):
        if name not in gap.theirs:
            continue
        value = gap.difference(name)
        ahead = value >= 0
        panel.barh(place, value, color=AHEAD if ahead else BEHIND, height=0.7)
        panel.annotate(
            f"{value:+.3f}".replace("-", "\N{MINUS SIGN}"),
            (value, place),
            (4 if ahead else -4, 0),
            textcoords="offset points",
            ha="left" if ahead else "right",
            va="center",
            fontsize=8,
        )
        if name == BEST:
            best, beside = gap.theirs[name][0], panel.get_yaxis_transform()
            panel.text(1.02, place, best, transform=beside, va="center", fontsize=8)
    panel.axvline(0, color="black", linewidth=1.6)
    panel.grid(axis="x", color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)


if __name__ == "__main__":
    run_command(main, Summary)
