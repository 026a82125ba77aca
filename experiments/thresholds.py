"""False alarms of the default at its threshold, with normals held out once and in turn.

    python -m experiments.thresholds --data brainmri headct

Every figure is the mean over the seeds. Writes experiments/results/thresholds.md.
"""

import shlex
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ahl_jax import preset, train
from ahl_jax.cli.shell import keep_compiled_programs, run_command
from ahl_jax.common.commit import commit
from ahl_jax.common.files import replace_file
from ahl_jax.common.text import markdown_table
from ahl_jax.data.open import categories
from ahl_jax.run.evaluate import load_test
from experiments.tables.cells import dataset_name

WAYS = {"once": False, "in turn": True}
"""How normals are held out, and the setting ``in_turn``."""


@dataclass(frozen=True)
class Options:
    """Compare the rates that are promised with those of the test normals."""

    data: tuple[str, ...] = ("elpv",)
    """Data sets or folders in MVTec layout; one with categories has rows for each."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; every figure is the mean over them."""

    fpr: tuple[float, ...] = (0.01, 0.05, 0.1)
    """Rates of false positives that are asked for."""

    quick: bool = False
    """At most 24 images of a kind, 192 pixels wide, to see in minutes that everything runs."""

    workdir: Path = Path("runs/thresholds")
    """The folder for the runs."""

    out: Path = Path("experiments/results")
    """The folder for the table."""


def main() -> None:
    """Train what is missing, measure every rate, then write the table."""
    options = tyro.cli(Options, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    keep_compiled_programs()
    options.out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(_markdown(options))
    replace_file(options.out / f"thresholds{'_quick' * options.quick}.md", text)
    print(text)


def measured(options: Options, name: str, part: str | None, way: str) -> list[dict[str, float]]:
    """Of each rate that is asked for, what ``Cut.rates`` gives, and the test normals.

    All are means over the seeds.
    """
    # Heat maps say nothing of the threshold.
    own: dict[str, Any] = {"in_turn": WAYS[way], "fine_heat": False}
    if options.quick:
        own |= {"limit": 24, "image_size": 192}
    found: list[list[dict[str, float]]] = []
    for seed in options.seeds:
        run = options.workdir / dataset_name(name, part) / way.replace(" ", "_") / f"seed-{seed}"
        config = preset("density", name, category=part, seed=seed, **own)
        train(config, run, progress=False)
        test = load_test(run, progress=False)
        scores = test.predictor.scorer.score(test.test.maps)
        normal = [kind is None for kind in test.classes]
        cuts = [test.predictor.calibrated().cut(fpr) for fpr in options.fpr]
        found.append([cut.rates(scores, normal) | {"test": sum(normal)} for cut in cuts])
    return [
        {kind: statistics.mean(rates[kind] for rates in each) for kind in each[0]}
        for each in zip(*found, strict=True)
    ]


def _markdown(options: Options) -> Iterator[str]:
    yield "# False alarms at the threshold"
    yield ""
    yield (
        "Rates in percent, means over the seeds: promised, of the test normals, and anomalies "
        "found. Once: a tenth of the normals is held out. In turn: each normal is scored by a "
        "detector that is fitted without its tenth."
    )
    yield ""
    yield f"Command: `{shlex.join(['python', '-m', 'experiments.thresholds', *sys.argv[1:]])}`"
    yield ""
    yield f"Commit: {commit() or 'unknown'}"
    yield ""
    rows = []
    for name in options.data:
        for part in categories(name) or (None,):
            for way in WAYS:
                cells = [dataset_name(name, part), way]
                measures = measured(options, name, part, way)
                cells += [f"{measures[0][kind]:.0f}" for kind in ("held_out", "test")]
                for each in measures:
                    rates = (each["promised_fpr"], each["fpr"], each["tpr"])
                    cells.append(" / ".join(f"{100 * rate:.1f}" for rate in rates))
                rows.append(cells)
                print(*cells, sep="  ", file=sys.stderr)
    asked = [f"asked for {100 * fpr:g} %" for fpr in options.fpr]
    yield from markdown_table(
        ["data set", "held out", "normals that set it", "test normals", *asked], rows
    )
    yield ""


if __name__ == "__main__":
    run_command(main, Options)
