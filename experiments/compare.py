"""AHL against its base detectors on the same features, splits and seeds.

All seeds of a method train in one program.

    python -m experiments.compare --data elpv

writes experiments/results/compare_elpv.csv (a row per run) and .md (mean and standard deviation per
method). A sweep that was stopped goes on where it was; finished runs are not run again.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from ahl_jax import preset, train_seeds
from ahl_jax.config import Config
from ahl_jax.metrics import mean_std
from ahl_jax.runtime import commit, keep_compiled_programs, run_command
from ahl_jax.workdir import csv_text

METHODS: dict[str, dict[str, Any]] = {
    "DevNet": {"detector": "devnet", "method": "base"},
    "AHL(DevNet)": {"detector": "devnet", "method": "ahl"},
    "AHL(DevNet), 20 updates per epoch": {
        "detector": "devnet",
        "method": "ahl",
        "updates_per_epoch": 20,
    },
    "DRA": {"detector": "dra", "method": "base"},
    "AHL(DRA)": {"detector": "dra", "method": "ahl"},
    "AHL(DRA), 20 updates per epoch": {
        "detector": "dra",
        "method": "ahl",
        "updates_per_epoch": 20,
    },
}
"""Row of the table -> the settings that differ from the preset."""


@dataclass(frozen=True)
class Compare:
    """Compare AHL with its base detectors, several seeds each."""

    data: str = "elpv"
    """The data set or folder."""

    category: str | None = None
    """The category, where the folder holds several."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; every method gets the same ones."""

    shots: int = 10
    """M, the number of labelled anomalies."""

    methods: tuple[str, ...] = field(default_factory=lambda: tuple(METHODS))
    """Rows of the table."""

    quick: bool = False
    """Use the debug preset, to see in minutes that everything runs."""

    workdir: Path = Path("runs/compare")
    """The folder for the runs."""

    out: Path = Path("experiments/results")
    """The folder for the tables."""


def main() -> None:
    """Run what is missing, then write both tables."""
    keep_compiled_programs()
    args = tyro.cli(Compare, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    name = "_".join(filter(None, ["compare", Path(args.data).name, args.category]))
    name += f"_{args.shots}shot" if args.shots != 10 else ""
    name += "_quick" if args.quick else ""
    rows = []
    for method in args.methods:
        folder = args.workdir / name / _slug(method)
        for metrics in train_seeds(_config(args, method), folder, args.seeds):
            seed = metrics["seed"]
            rows.append({"method": method, "seed": seed} | _long(metrics))
            print(f"{method}, seed {seed}: AUC-ROC {metrics['auc_roc']:.4f}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{name}.csv").write_text(csv_text(rows), encoding="utf-8", newline="")
    text = _table(rows, args)
    (args.out / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def _config(args: Compare, method: str) -> Config:
    base = preset(
        "debug" if args.quick else "paper", args.data, category=args.category, shots=args.shots
    )
    settings = dict(METHODS[method])
    detector = dataclasses.replace(base.detector, detector=settings.pop("detector"))
    if args.quick and "updates_per_epoch" in settings:
        settings["updates_per_epoch"] = base.learning.steps
    learning = dataclasses.replace(base.learning, **settings)
    return dataclasses.replace(base, detector=detector, learning=learning)


def _long(metrics: dict[str, Any]) -> dict[str, Any]:
    per_class = {f"auc_roc_{k}": v["auc_roc"] for k, v in metrics["per_class"].items()}
    return (
        {k: metrics[k] for k in ("auc_roc", "auc_pr")} | per_class | {"seconds": metrics["seconds"]}
    )


def _table(rows: list[dict[str, Any]], args: Compare) -> str:
    columns = [k for k in rows[0] if k not in ("method", "seed")]
    lines = [
        f"# {args.data}: AHL and its base detectors, {args.shots} labelled anomalies",
        "",
        f"Seeds {', '.join(map(str, args.seeds))}; mean ± standard deviation over them; the last "
        "epoch counts.",
        f"Command: `{_command(args)}` at commit {commit() or 'unknown'}.",
        "",
        "| method | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for method in args.methods:
        values = [[float(r[c]) for r in rows if r["method"] == method] for c in columns]
        cells = [
            mean_std(v, 1 if c == "seconds" else 3) for c, v in zip(columns, values, strict=True)
        ]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _command(args: Compare) -> str:
    words = ["python -m experiments.compare", f"--data {args.data}"]
    words += [f"--category {args.category}"] if args.category else []
    words += [f"--seeds {' '.join(map(str, args.seeds))}", f"--shots {args.shots}"]
    return " ".join(words + (["--quick"] if args.quick else []))


def _slug(method: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in method.lower()).strip("-").replace("--", "-")


if __name__ == "__main__":
    run_command(main)
