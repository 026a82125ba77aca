"""How far a long computation is, on stderr: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from ahl_jax.common import stop

_SECONDS = 10


class Progress:
    """A context manager that counts to ``total``.

    Args:
        total: How many there are to compute.
        label: What is counted; None shows nothing.
        cached: How many more there were that need no computing.
        unit: One of them.
        verb: What is done to them.
    """

    def __init__(
        self,
        total: int,
        label: str | None,
        *,
        cached: int = 0,
        unit: str = "image",
        verb: str = "compute",
    ) -> None:
        self._total = total
        self._done = 0
        self._printed = -1
        self._label = label
        self._start = self._shown = time.monotonic()
        self._bar: tqdm | None = None
        if label is not None and sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=label, unit=unit, leave=False)
        elif label is not None:
            known = f" ({cached} more are there already)" if cached else ""
            print(f"{label}: {total} to {verb}{known}", file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def update(self, count: int) -> None:
        """Counts ``count`` more; a point to stop at."""
        stop.check()
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._label is not None and time.monotonic() - self._shown >= _SECONDS:
            self._print()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._label is not None and error is None and self._printed < self._done:
            self._print()

    def _print(self) -> None:
        self._shown, self._printed = time.monotonic(), self._done
        rate = self._done / max(self._shown - self._start, 1e-9)
        print(
            f"{self._label}: {self._done} of {self._total}, {rate:.1f} per second",
            file=sys.stderr,
        )
