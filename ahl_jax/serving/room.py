"""Room for what is under way at once."""

import contextlib
from collections.abc import Iterator

from starlette.exceptions import HTTPException


class Room:
    """A number of things that there is room for; only one thread may use it."""

    def __init__(self, size: int, what: str) -> None:
        self.size, self.taken, self._what = size, 0, what

    def take(self, count: int) -> None:
        """Take room, until ``free``.

        Raises:
            HTTPException: 503 if there is too little.
        """
        if self.taken + count > self.size:
            detail = f"too many {self._what} are on their way; send it again later"
            raise HTTPException(503, detail, {"Retry-After": "1"})
        self.taken += count

    def free(self, count: int) -> None:
        """Give back what was taken."""
        self.taken -= count

    @contextlib.contextmanager
    def of(self, count: int) -> Iterator[None]:
        """Take room within this block.

        Raises:
            HTTPException: as by ``take``.
        """
        self.take(count)
        try:
            yield
        finally:
            self.free(count)
