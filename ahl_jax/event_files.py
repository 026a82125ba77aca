"""A run's history and metrics as event files, which TensorBoard shows."""

from pathlib import Path
from typing import Any

from ahl_jax.errors import UserError

_GROUPS = (
    ("support_", "support_loss"),
    ("query_", "query_loss"),
    ("r_", "r"),
    ("w_", "w"),
    ("psi_", "psi"),
)
"""A column's prefix, and the group that TensorBoard shows it in."""


def check_event_files() -> None:
    """Find out whether event files can be written.

    Raises:
        UserError: if the library for it is missing.
    """
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--tensorboard needs tensorboardX, which is not installed; "
            "run pip install tensorboardX, or leave the option out"
        ) from error


class EventFiles:
    """Writes the event files of one run.

    They follow from history.csv and metrics.json alone: whoever opens them writes all epochs anew,
    so that a run that was stopped has none twice.
    """

    def __init__(self, folder: Path):
        from tensorboardX import SummaryWriter

        for left in folder.glob("events.out.tfevents.*"):
            left.unlink()
        self._writer = SummaryWriter(str(folder))
        self._written = 0

    def epochs(self, rows: list[dict[str, Any]]) -> None:
        """Write those of a history's rows that are new."""
        for row in rows[self._written :]:
            epoch = int(row["epoch"])
            for name, value in row.items():
                if name != "epoch" and value != "":
                    self._writer.add_scalar(_tag(name), float(value), epoch)
        self._written = len(rows)
        self._writer.flush()

    def finish(self, metrics: dict[str, Any]) -> None:
        """Write the test metrics, at the last epoch."""
        values = {name: metrics[name] for name in ("auc_roc", "auc_pr")}
        values |= metrics.get("at_threshold", {})
        for name, value in values.items():
            self._writer.add_scalar(f"test/{name}", value, metrics["epochs"])
        for kind, areas in metrics["per_class"].items():
            for name in ("auc_roc", "auc_pr"):
                self._writer.add_scalar(f"test_{name}/{kind}", areas[name], metrics["epochs"])
        self._writer.close()


def _tag(column: str) -> str:
    for prefix, group in _GROUPS:
        if column.startswith(prefix):
            return f"{group}/{column.removeprefix(prefix)}"
    return column
