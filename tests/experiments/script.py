"""Runs the scripts of the tables in the folders of a test, and reads their files."""

import csv
import importlib
import statistics
from pathlib import Path

import pytest

from ahl_jax.common.files import as_written

COLUMNS = [
    "table", "setting", "shots", "dataset", "seen_class", "method", "seed", "auc_roc", "auc_pr",
    "seconds", "commit",
]  # fmt: skip


class Script:
    """A script with the folders of a test."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path):
        self.tmp_path, self.monkeypatch, self.data = tmp_path, monkeypatch, data

    def __call__(
        self, name: str, *arguments: str, variant: str = ""
    ) -> tuple[list[dict[str, str]], str]:
        """The rows of the CSV and the text of the Markdown file."""
        out = self.tmp_path / "results"
        words = [name, "--data", str(self.data), "--quick", "--seeds", "0", "1", "--shots", "4"]
        words += ["--workdir", str(self.tmp_path / "runs"), "--out", str(out), *arguments]
        self.monkeypatch.setattr("sys.argv", words)
        importlib.import_module(f"experiments.{name}").main()
        with (out / f"{name}{variant}_quick.csv").open(newline="") as file:
            rows = [{k: as_written(v) for k, v in row.items()} for row in csv.DictReader(file)]
            return rows, (out / f"{name}{variant}_quick.md").read_text()


def scores(rows: list[dict[str, str]], method: str, seen: str = "") -> dict[int, float]:
    mine = [r for r in rows if (r["method"], r["seen_class"]) == (method, seen)]
    return {int(row["seed"]): float(row["auc_roc"]) for row in mine}


def in_words(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
