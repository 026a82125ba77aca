"""Connections of clients: none waits for ever, and none is reset before its answer is read."""

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from ahl_jax.serving.limits import Limits

CONNECTIONS = 256
"""Connections beside those of the photographs on their way; more are refused."""

_REST_SECONDS, _REST_BYTES = 30.0, 2**30
"""How much of a request is read after its answer, and for how long."""


class Connection(H11Protocol):
    """A client.

    Unlike uvicorn's own, it refuses a head that does not arrive, answers a client that has closed
    its half, and gives up one that does not read. It reads on after an answer that came before the
    end of the request: if bytes stay unread, the system resets the connection, and the client loses
    the answer.

    Args:
        args: as for uvicorn's.
        limits: how slow a client may be, and how many there may be.
        kwargs: as for uvicorn's.
    """

    def __init__(self, *args: Any, limits: Limits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits, self._rest = limits, _REST_BYTES
        self._ended = False  # Whether the client sends no more.
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Await a head, or refuse one connection too many."""
        closing = _Closing(cast(asyncio.Transport, transport), self._close)
        super().connection_made(cast(asyncio.Transport, closing))
        most = self._limits.max_waiting + CONNECTIONS
        if len(self.connections) > 2 * most:  # Even those that are refused take room.
            self.transport.abort()
        elif len(self.connections) > most:
            self._refuse(503, "too many connections; try again later")
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request, or forget it once that has been answered."""
        if self.transport.is_closing():
            self._rest -= len(data)
            if self._rest < 0:
                self.transport.abort()
            return
        super().data_received(data)
        self._watch_head()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a client that sends no more, but may still listen; whether it is kept."""
        if self.transport.is_closing():
            return False
        self._ended = True
        if self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            self._refuse(400, "the request broke off")
        elif self.cycle is None or self.cycle.response_complete:
            return False
        else:
            self.cycle.keep_alive = False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        for name in list(self._timers):
            self._cancel(name)
        cast(_Closing, self.transport).closed = True
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client is slow to read."""
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        self._cancel("reading")

    def on_response_complete(self) -> None:
        """Await another request, unless this one has not arrived yet."""
        if self.conn.their_state is h11.SEND_BODY:
            self.transport.close()
        super().on_response_complete()
        self._watch_head()

    def shutdown(self) -> None:
        """Close once the answer under way is sent."""
        if not self.transport.is_closing():
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(400, msg)

    def _refuse(self, status: int, sentence: str) -> None:
        """Answer in the place of the application, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": sentence}).encode()
            headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
            headers += [("Connection", "close")]
            reason = STATUS_PHRASES[status]
            self.transport.write(
                self.conn.send(h11.Response(status_code=status, headers=headers, reason=reason))
                + self.conn.send(h11.Data(data=body))
                + self.conn.send(h11.EndOfMessage())
            )
        self.transport.close()

    def _close(self, transport: asyncio.Transport) -> None:
        """Close, if need be once the client has had the time to read its answer."""
        self._watch_head()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        whole = self.conn.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)
        if self._ended or (whole and not self.conn.trailing_data[0]):
            transport.close()
        else:
            transport.write_eof()
            self.flow.resume_reading()
            self._after(_REST_SECONDS, "rest", transport.abort)
        self._watch_reading()

    def _watch_head(self) -> None:
        """Await a head that has begun to arrive, and no longer one that has arrived."""
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            self._cancel("head")
        elif self.conn.trailing_data[0] and "head" not in self._timers:
            self._unset_keepalive_if_required()
            self._await_head()

    def _await_head(self) -> None:
        seconds = self._limits.read_timeout
        sentence = f"the request has not arrived within {seconds:g} seconds"
        self._after(seconds, "head", self._refuse, 408, sentence)

    def _watch_reading(self, before: float = math.inf) -> None:
        """Give the client up if it has read nothing of an answer since it had so much to read."""
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        elif left:
            self._after(self._limits.read_timeout, "reading", self._watch_reading, left)

    def _after(self, seconds: float, name: str, function: Callable[..., None], *args: Any) -> None:
        self._cancel(name)
        self._timers[name] = self.loop.call_later(seconds, function, *args)

    def _cancel(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()


class _Closing:
    """A transport that is closed in another way, and else as it is.

    Args:
        transport: the transport.
        close: closes it.
    """

    def __init__(
        self, transport: asyncio.Transport, close: Callable[[asyncio.Transport], None]
    ) -> None:
        self._transport, self._close, self.closed = transport, close, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Close it, the first time."""
        if not self.closed:
            self.closed = True
            self._close(self._transport)

    def is_closing(self) -> bool:
        """Whether it has been closed."""
        return self.closed or self._transport.is_closing()
