"""The process that serves: from trained detectors to an address, and an orderly end."""

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import uvicorn

from ahl_jax.common import stop
from ahl_jax.common.errors import UserError
from ahl_jax.common.files import reason
from ahl_jax.inference.predictor import Predictor
from ahl_jax.serving.app import App
from ahl_jax.serving.connection import Connection
from ahl_jax.serving.limits import Limits

log = logging.getLogger(__name__)

_LAST = 3
"""Seconds that requests under way have once the server is to stop; then they are refused."""


def serve(
    predictors: Mapping[str, Predictor],
    limits: Limits,
    *,
    host: str,
    port: int,
    fpr: float | None = None,
    threshold: float | None = None,
) -> None:
    """Answer requests until asked to stop; then those that are under way.

    Args:
        predictors: detectors by their names.
        limits: how much is taken on at once.
        host: the address to listen at.
        port: 0 for any that is free.
        fpr: as for ``cut_of``.
        threshold: as for ``cut_of``.

    Raises:
        UserError: if the address cannot be had, or as by ``cut_of``.
        KeyboardInterrupt: once it has stopped, see ``ahl_jax.common.stop``.
    """
    app = App(predictors, limits, fpr=fpr, threshold=threshold)
    with _listening(host, port) as listener, running(app, listener) as ended:
        for each in app.served.values():
            for _ in each.batches.warm_up():
                stop.check()
        app.ready = True
        address = address_of(listener)
        log.info("serving %s at %s", ", ".join(app.served), address)
        log.info("post images to %s/v1/NAME/score, or drop them on the page there", address)
        while not ended.done():
            stop.check()
            with contextlib.suppress(TimeoutError):
                ended.result(timeout=0.1)


@contextlib.contextmanager
def running(app: App, listener: socket.socket) -> Iterator[Future[None]]:
    """Answer requests in a thread; at the end of the block, those that are under way."""
    config = uvicorn.Config(
        app.asgi,
        ws="none",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        http=cast(type[asyncio.Protocol], functools.partial(Connection, limits=app.limits)),
        timeout_graceful_shutdown=_LAST,
    )
    server = uvicorn.Server(config)
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    # Its signals are those of ``ahl_jax.common.stop`` in any other thread than the main one.
    with ThreadPoolExecutor(1, "server") as thread:
        ended = thread.submit(server.run, [listener])
        try:
            yield ended
        finally:
            server.should_exit = True
    ended.result()


def _is_news(record: logging.LogRecord) -> bool:
    """Not that requests are given up at the end: whoever waits for them is told by ``App``."""
    return not str(record.msg).startswith("Cancel ")


def address_of(listener: socket.socket) -> str:
    """The address to give to a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise UserError(
            f"cannot listen at {host}, port {port} ({why}); give another `host` or `port`"
        ) from error
