"""SIGINT and SIGTERM ask a command to stop; it does where nothing is left half done.

A handler of Python's may run anywhere, such as in a callback of the compiler that swallows what it
raises, and never while the compiler has the thread. So signals only ask; long work calls ``check``
now and then; and where that takes too long, a thread ends the process, as a kill may at any time.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

_GRACE = 4.0
"""Seconds until a command that has come to no safe point is ended."""

_HANDLED = 128
"""Added to the number of a signal that a handler of Python's tells of."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _State:
    asked: int | None = None
    """The first signal that came."""

    shared = False
    """Whether other processes have to stop at the same point."""

    held = False
    """Whether this is no such point."""

    expected = False
    """Whether the command runs until it is stopped, so that nothing is left to go on with."""


_state = _State()


def check() -> None:
    """A point where nothing is half done.

    Raises:
        KeyboardInterrupt: with the signal's number, if a stop was asked for.
    """
    if _state.asked is not None and not _state.held:
        raise KeyboardInterrupt(_state.asked)


def share() -> None:
    """From now on other processes take part: they all stop where each of them allows it."""
    _state.shared = _state.held = True


def allow(*, here: bool) -> None:
    """Say whether this part of a program that processes share may be stopped."""
    _state.held = not here


def expected() -> None:
    """From now on the command runs until it is stopped, and that is no interruption."""
    _state.expected = True


def in_words() -> str:
    """The last sentence of a command that was stopped."""
    return "ahl: stopped" + "; the same command goes on from where it was" * (not _state.expected)


def asked() -> int | None:
    """The signal that asked to stop, if one did."""
    return _state.asked


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Within this block, SIGINT and SIGTERM ask to stop; a second one ends the process at once.

    So does SIGINT of a process that a shell started in the background, to ignore it.
    """
    _state.asked, _state.shared, _state.held, _state.expected = None, False, False, False
    read, write = os.pipe()
    os.set_blocking(write, False)

    def arrived(number: int, _frame: object) -> None:
        os.write(write, bytes([number | _HANDLED]))

    # The one waits for the main thread, which may be in the compiler; event loops take the other.
    earlier = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    before = {number: signal.signal(number, arrived) for number in _SIGNALS}
    threading.Thread(target=_listen, args=(read,), daemon=True, name="signals").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(write)


def leave(number: int) -> None:
    """End the process with a signal's exit code, before anything can crash that is under way.

    Processes that share a program take leave of each other first, so there this only returns.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if not _state.shared:
        os._exit(128 + number)


def before_all_else() -> None:
    """End the process at a signal, as nothing has begun; for ``ahl`` while it is imported."""
    if Path(sys.argv[0]).name == "ahl" or (sys.argv[0] == "-m" and "ahl_jax" in sys.orig_argv):
        for number in _SIGNALS:
            signal.signal(number, lambda number, _: _end(number))


def _end(number: int) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"\n{in_words()}\n".encode())
    os._exit(128 + number)


def _listen(pipe: int) -> None:
    timer: threading.Timer | None = None
    came = {0: 0, _HANDLED: 0}
    with open(pipe, "rb", buffering=0) as signals:
        while byte := signals.read(1):
            number = byte[0] & ~_HANDLED
            if number not in _SIGNALS:
                continue
            came[byte[0] & _HANDLED] += 1
            if max(came.values()) > 1:
                _end(_state.asked or number)
            if _state.asked is not None:
                continue
            _state.asked = number
            if _state.shared:
                log.info("stopping when all processes can; once more to stop at once")
                continue
            timer = threading.Timer(_GRACE, _end, [number])
            timer.daemon = True
            timer.start()
    if timer:
        timer.cancel()
