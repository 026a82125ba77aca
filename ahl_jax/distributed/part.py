"""A process's part of every list of images."""

from typing import NamedTuple


class Part(NamedTuple):
    """A process's part of every list of images: one of equal parts, or all of it."""

    number: int = 0
    of: int = 1
    shards: int = 1
    """How many devices divide the part among them."""

    def span(self, count: int) -> range:
        """Its places in a list of ``count``."""
        return range(count * self.number // self.of, count * (self.number + 1) // self.of)

    def lengths(self, count: int) -> list[int]:
        """How many of a list of ``count`` each part has."""
        return [len(self._replace(number=p).span(count)) for p in range(self.of)]


WHOLE = Part()
