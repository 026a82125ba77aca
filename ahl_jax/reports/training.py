"""Charts of history.csv: importance scores, estimated errors and losses by epoch."""

import numpy as np
from jaxtyping import Float

from ahl_jax.reports import charts
from ahl_jax.reports.charts import Chart

# Title, prefix of the columns, axis, and what the chart shows.
_KINDS = (
    ("Importance scores", "w_", "w_i", "How much each subset's base model counts."),
    ("Estimated errors", "r_", "r_i", "The generalisation error that psi expects of each."),
    ("Losses on the support sets", "support_", "loss", "Loss of each head in the inner steps."),
    ("Losses on the query sets", "query_", "loss", "Loss of each head in the unified updates."),
    ("Loss of the sequence model", "psi_", "loss", "How well psi predicts the scores to come."),
)


def history_charts(history: list[dict[str, str]]) -> list[Chart] | str:
    """A chart for each kind of column that has values; a sentence where there is no history."""
    if not history:
        return "history.csv is gone or damaged, so there are no losses to show."
    epochs = np.array([float(row["epoch"]) for row in history])
    found = []
    for title, prefix, axis, remark in _KINDS:
        names = [name for name in history[0] if name.startswith(prefix)]
        columns = {_label(name, prefix): _values(history, name) for name in names}
        series = {label: (epochs, y) for label, y in columns.items() if np.isfinite(y).any()}
        if series:
            found.append(charts.lines(title, remark, series, "epoch", axis))
    return found


def _label(name: str, prefix: str) -> str:
    return name if prefix in ("w_", "r_") else name.removeprefix(prefix).replace("_", " ")


def _values(history: list[dict[str, str]], name: str) -> Float[np.ndarray, " e"]:
    return np.array([float(row.get(name) or "nan") for row in history])
