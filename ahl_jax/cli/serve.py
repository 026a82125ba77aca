"""`ahl serve`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ahl_jax.common import stop
from ahl_jax.common.errors import UserError
from ahl_jax.common.libraries import library
from ahl_jax.common.remote import any_path, resolved
from ahl_jax.serving.limits import Limits


@dataclass(frozen=True)
class Serve:
    """Score photographs over HTTP with one or several trained detectors, until stopped.

    POST /v1/NAME/score takes an image, or a form with several; the page at / takes photographs that
    are dropped on it. The documentation, Serving, has the rest.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN RUN ...")]
    """The folders that were given to the trainings. Each detector is called as its folder, or as
    NAME in NAME=RUN."""

    host: str = "127.0.0.1"
    """The address to listen at. Whoever reaches it may use it: for others than this machine, put a
    proxy with TLS and passwords before it."""

    port: int = 8000
    """The port; 0 for any that is free."""

    fpr: float | None = None
    """The rate of false positives among normal images that the thresholds are set for; 0.01 by
    default. A request may name another with ?fpr=."""

    threshold: float | None = None
    """The score above which an image is an anomaly, in the place of `fpr`; ?threshold= in a
    request."""

    limits: Limits = field(default_factory=Limits)


def run(command: Serve) -> None:
    """Run ``ahl serve``.

    Raises:
        UserError: if a library is missing, as by ``named``, or as by
            ``ahl_jax.serving.server.serve``.
        KeyboardInterrupt: when it is stopped.
    """
    from ahl_jax.inference.predictor import load
    from ahl_jax.inference.threshold import check_cut

    stop.expected()
    check_cut(command.fpr, command.threshold)
    folders = named(command.runs)
    # Starlette would ask for python_multipart at the first form only.
    for name in ("prometheus_client", "python_multipart", "starlette", "uvicorn"):
        library(name, "ahl serve", "prometheus-client python-multipart starlette uvicorn")
    from ahl_jax.serving.server import serve

    serve(
        {name: load(folder) for name, folder in folders.items()},
        command.limits,
        host=command.host,
        port=command.port,
        fpr=command.fpr,
        threshold=command.threshold,
    )


def named(words: Sequence[str]) -> dict[str, Path]:
    """Folders of runs by the names of their detectors.

    Args:
        words: ``RUN`` or ``NAME=RUN`` each.

    Raises:
        UserError: if a name is no part of an address or is given twice.
    """
    found: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or any_path(word).exists():
            name, folder = resolved(word).name, word
        if not name or "/" in name:
            raise UserError(f"'{word}' gives no name to its detector; write it as NAME=RUN")
        if name in found:
            raise UserError(f"two detectors are called {name}; name one of them with NAME=RUN")
        found[name] = any_path(folder)
    return found
