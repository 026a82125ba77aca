"""How much a server takes on at once, so that its memory stays bounded whatever it is sent."""

from dataclasses import dataclass
from typing import Annotated

from ahl_jax.config.checks import Above, AtLeast, check_values


@dataclass(frozen=True)
class Limits:
    """How much is taken on at once."""

    max_bytes: Annotated[int, AtLeast(1)] = 20 * 2**20
    """Larger requests are refused (413)."""

    max_pixels: Annotated[int, AtLeast(1)] = 50_000_000
    """Larger photographs are refused before they are decoded (413)."""

    max_waiting: Annotated[int, AtLeast(1)] = 64
    """Photographs that are on their way at once; more are refused (503)."""

    read_timeout: Annotated[float, Above(0)] = 20.0
    """Seconds in which a request has to have arrived (408)."""

    batch: Annotated[int, AtLeast(1)] = 8
    """Photographs that are scored in one call."""

    max_wait: Annotated[float, Above(0)] = 0.005
    """Seconds that a photograph waits for others to be scored with."""

    def __post_init__(self) -> None:
        check_values(self)
