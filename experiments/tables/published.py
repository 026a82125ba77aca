"""The published figures, to print beside ours.

``published.csv`` has the AUC-ROC of tables 1 to 5 of AHL (CVPR 2024, arXiv 2310.12790): mean and
standard deviation, where given, over three runs. Names are spelt as in the paper; ``(mean)`` after
a data set stands for the mean over its classes (hard setting) or categories.
"""

import csv
from functools import cache
from pathlib import Path

FILE = Path(__file__).parents[1] / "published.csv"

CATEGORIES = {"mvtecad": 15}
"""Data sets of which the paper gives the mean over this many categories."""

_ALIASES = {
    "mvtec": "mvtecad",
    "mvtecanomalydetection": "mvtecad",
    "kolektorsdd": "sdd",
    "dagm": "optical",
    "dagm2007": "optical",
}


def plain_name(dataset: str) -> str:
    """A data set's name without case, punctuation and ``(mean)``, as the paper calls it."""
    letters = "".join(c for c in dataset.lower().removesuffix("(mean)") if c.isalnum())
    return _ALIASES.get(letters, letters)


def published(table: str, setting: str, shots: int, dataset: str, method: str) -> str | None:
    """Mean and standard deviation, if given, in words; or None where the paper has no such cell.

    Args:
        table: the table's number.
        setting: ``general`` or ``hard``.
        shots: M.
        dataset: the data set or category, spelt in any way.
        method: the row, as the paper spells it.
    """
    return _figures().get((table, setting, shots, plain_name(dataset), method))


def published_means(table: str, setting: str, shots: int, dataset: str) -> dict[str, float]:
    """The means of all the paper's methods in a cell; arguments as for ``published``."""
    cell = (table, setting, shots, plain_name(dataset))
    return {
        method: float(figure.split(" ")[0])
        for (*where, method), figure in _figures().items()
        if tuple(where) == cell
    }


@cache
def _figures() -> dict[tuple[str, str, int, str, str], str]:
    with FILE.open(newline="", encoding="utf-8") as file:
        return {
            _key(row): " ± ".join(
                f"{float(row[column]):.3f}" for column in ("auc_mean", "auc_std") if row[column]
            )
            for row in csv.DictReader(file)
        }


def _key(row: dict[str, str]) -> tuple[str, str, int, str, str]:
    dataset = plain_name(row["dataset"])
    return row["table"], row["setting"], int(row["M"]), dataset, row["method"]
