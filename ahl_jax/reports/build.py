"""Reports as files: from runs, over the templates, to one HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ahl_jax.common.errors import UserError
from ahl_jax.common.files import make_folder, replace_file, writing
from ahl_jax.common.remote import any_path, resolved
from ahl_jax.config.settings import data_name
from ahl_jax.data.images import image_digest
from ahl_jax.data.types import NO_METRICS
from ahl_jax.detectors.names import method_name
from ahl_jax.features import Store
from ahl_jax.reports import results
from ahl_jax.reports.pictures import key, labelled, sheet
from ahl_jax.reports.scored import Scored, score
from ahl_jax.reports.subsets import PICTURED, subset_views
from ahl_jax.reports.training import history_charts

if TYPE_CHECKING:
    import jinja2

_COMPARED = 4
"""Images of each kind and run in a comparison."""


def report(
    workdir: Path | str,
    out: Path | str | None = None,
    *,
    fpr: float | None = None,
    threshold: float | None = None,
    data: str | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> Path:
    """Write a run's results as one HTML file that opens without a network.

    A section that the run's method has nothing for is left out. A sentence stands in the place of
    all else that is missing, such as a threshold.

    Args:
        workdir: the folder that ``train`` was given.
        out: the file; by default ``report.html`` in that folder.
        fpr: the rate of false positives that the threshold is set for, by default 0.01.
        threshold: the score above which an image is an anomaly, in the place of ``fpr``.
        data: where the data is now, if not where it was in training.
        cache_dir: the feature store's folder; see ``ahl_jax.features.default_folder``.
        progress: whether to show progress on stderr.

    Returns:
        The file.

    Raises:
        UserError: if the folder holds no checkpoint, the data cannot be read, or the file cannot
            be written.
    """
    run = score(
        workdir, data=data, fpr=fpr, threshold=threshold, cache_dir=cache_dir, progress=progress
    )
    preset, differing = run.preset()
    planned = run.config.learning.planned_epochs
    return _write(
        any_path(workdir) / "report.html" if out is None else any_path(out),
        "report.html.j2",
        run=run,
        title=f"{method_name(run.config)} on {data_name(run.config)}",
        unfinished=planned if run.metrics["epochs"] < planned else None,
        metrics=results.metrics_by_class(run),
        of_categories=results.metrics_by_category(run),
        curves=results.curves({"this run": run}) if run.resampled else [],
        no_metrics=NO_METRICS,
        labelled=labelled(run),
        histogram=results.histogram(run, "Scores by class", classes=True),
        confusion=results.confusion(run),
        at=run.metrics.get("at_threshold"),
        choices=run.choices(),
        strips=sheet(run),
        key=key(run),
        training=history_charts(run.history),
        subsets=subset_views(run, Store(cache_dir), progress=progress),
        pictured=PICTURED,
        preset=preset,
        differing=differing,
        parts=_parts(run),
    )


def compare(
    runs: Sequence[Path | str],
    out: Path | str = "compare.html",
    *,
    fpr: float | None = None,
    data: str | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> Path:
    """Write several runs side by side as one HTML file that opens without a network.

    Args:
        runs: their folders; differences are to the first one.
        out: the file.
        fpr: the rate of false positives that the thresholds are set for, by default 0.01.
        data: where the data of all runs is now, if not where it was in training.
        cache_dir: the feature store's folder; see ``ahl_jax.features.default_folder``.
        progress: whether to show progress on stderr.

    Returns:
        The file.

    Raises:
        UserError: as ``report`` does; or if there are fewer than two different runs.
    """
    folders = [any_path(run) for run in runs]
    if len({resolved(folder) for folder in folders}) < max(len(folders), 2):
        raise UserError("a comparison needs two or more different runs; name their folders")
    scored = {
        str(folder): score(
            folder, data=data, fpr=fpr, threshold=None, cache_dir=cache_dir, progress=progress
        )
        for folder in folders
    }
    for label, run in scored.items():
        if run.resampled is None:
            raise UserError(f"{label} has no metrics to compare, as {NO_METRICS}; leave it out")
    first, *others = scored.values()
    images = _test_images(first)
    same = {
        label: run is not first and _test_images(run) == images for label, run in scored.items()
    }
    settings = {
        label: run.settings()
        | {
            "training normals": run.metrics["n_train_normal"],
            "labelled anomalies": run.metrics["n_seen"],
        }
        for label, run in scored.items()
    }
    names = dict.fromkeys(name for each in settings.values() for name in each)
    by_class = {label: results.metrics_by_class(run) for label, run in scored.items()}
    confusions = {label: rows for label, run in scored.items() if (rows := results.confusion(run))}
    sheets = {label: sheet(run, _COMPARED) for label, run in scored.items()}
    store = Store(cache_dir)
    training = {label: history_charts(run.history) for label, run in scored.items()}
    subsets = {label: subset_views(run, store, progress=progress) for label, run in scored.items()}
    return _write(
        any_path(out),
        "compare.html.j2",
        runs=scored,
        methods={label: method_name(run.config) for label, run in scored.items()},
        title=f"{len(scored)} runs side by side",
        by_class=by_class,
        kinds=_labels(by_class),
        pixels={
            label: run.metrics["pixel"] for label, run in scored.items() if "pixel" in run.metrics
        },
        differences={
            label: run.resampled.minus(first.resampled).intervals()
            for label, run in scored.items()
            if same[label] and run.resampled and first.resampled
        },
        other_images=[label for label, run in scored.items() if run in others and not same[label]],
        curves=results.curves(scored),
        histograms=[results.histogram(run, label, classes=False) for label, run in scored.items()],
        settings=settings,
        differing=[n for n in names if len({str(s.get(n)) for s in settings.values()}) > 1],
        confusions=confusions,
        called=_labels(confusions),
        sheets=sheets,
        strips=list(dict.fromkeys(strip.title for each in sheets.values() for strip in each)),
        keys=dict.fromkeys(key(run) for run in scored.values()),
        training={label: found for label, found in training.items() if found},
        subsets={label: found for label, found in subsets.items() if found},
        pictured=PICTURED,
    )


def _labels(rows: Mapping[str, Sequence[results.Metrics | results.Confusion]]) -> list[str]:
    """The labels of the rows of all runs, each once."""
    return list(dict.fromkeys(row.label for each in rows.values() for row in each))


def _test_images(run: Scored) -> list[tuple[str, str | None]]:
    """Images and classes, by which the tests of two runs are compared; file names do not count."""
    return [(image_digest(sample.path), sample.anomaly_class) for sample in run.samples]


def _parts(run: Scored) -> dict[str, dict[str, Any]]:
    """All settings, by the part that they are in."""
    parts: dict[str, dict[str, Any]] = {"run": {}}
    for name, value in run.config.to_dict().items():
        part, values = (name, value) if isinstance(value, dict) else ("run", {name: value})
        parts.setdefault(part.replace("_", " "), {}).update(
            {key.replace("_", "-"): each for key, each in values.items()}
        )
    return parts


def environment(room: str = "ahl_jax.reports") -> "jinja2.Environment":
    """The templates of a room, and what they may extend.

    Args:
        room: the package whose ``templates`` come before those of the reports.
    """
    # Imported late: nothing but pages needs it.
    import jinja2

    loaders = [jinja2.PackageLoader(each) for each in dict.fromkeys((room, "ahl_jax.reports"))]
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _write(out: Path, template: str, **values: Any) -> Path:
    templates = environment()
    templates.filters |= {"setting": _setting}
    text = templates.get_template(template).render(**values)
    with writing(out, "name another file with `out`"):
        make_folder(out.parent)
        replace_file(out, text)
    return out


def _setting(value: Any) -> str:
    """A setting as its option takes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value == "auto":
        return "auto: chosen from the data"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
