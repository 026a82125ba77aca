"""A run's history and metrics as event files, which TensorBoard shows."""

import time
from pathlib import Path
from typing import Any

from ahl_jax.common.libraries import library

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
    library("tensorboardX", "`tensorboard`", "tensorboardX", ", or leave it out")


class EventFiles:
    """Writes the event files of one run.

    They follow from history.csv and metrics.json alone: whoever opens them writes all epochs anew,
    so that a run that was stopped has none twice.
    """

    def __init__(self, folder: Path):
        # Not SummaryWriter: its thread may still hold events after a flush.
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(exist_ok=True)
        for left in folder.glob("events.out.tfevents.*"):
            left.unlink()
        self._writer = EventsWriter(str(folder / "events"))
        self._written = 0

    def epochs(self, rows: list[dict[str, Any]]) -> None:
        """Write those of a history's rows that are new."""
        for row in rows[self._written :]:
            values = {k: float(v) for k, v in row.items() if k != "epoch" and v != ""}
            self._write(int(row["epoch"]), {_tag(k): v for k, v in values.items()})
        self._written = len(rows)

    def finish(self, metrics: dict[str, Any]) -> None:
        """Write the test metrics, at the last epoch; nothing can be written after them."""
        areas = ("auc_roc", "auc_pr")
        values = {name: metrics[name] for name in areas} | metrics.get("at_threshold", {})
        values |= {f"pixel_{name}": value for name, value in metrics.get("pixel", {}).items()}
        values = {f"test/{name}": value for name, value in values.items()}
        for kind, found in metrics["per_class"].items():
            values |= {f"test_{name}/{kind}": found[name] for name in areas}
        self._write(metrics["epochs"], values)
        self._writer.close()

    def _write(self, epoch: int, values: dict[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in values.items():
            event = Event(wall_time=time.time(), step=epoch, summary=scalar(name, value))
            self._writer.write_event(event)
        self._writer.flush()


def _tag(column: str) -> str:
    for prefix, group in _GROUPS:
        if column.startswith(prefix):
            return f"{group}/{column.removeprefix(prefix)}"
    return column
