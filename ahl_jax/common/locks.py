"""Waiting for a lock, and keeping it."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from ahl_jax.common import stop


@contextlib.contextmanager
def kept(
    taken: Callable[[], bool],
    busy: Callable[[], None],
    renew: Callable[[threading.Event], None],
    release: Callable[[], None],
) -> Iterator[None]:
    """Wait until a lock is taken, renew it as long as the body runs, then release it.

    Args:
        taken: takes it, if it can be taken; whether it did.
        busy: called where another process has it already, before waiting until it is gone.
        renew: runs in a thread of its own until the event that it is given is set.
        release: called after that.
    """
    told = False
    while not taken():
        if not told:
            busy()
        told = True
        stop.check()
        time.sleep(0.1)
    done = threading.Event()
    thread = threading.Thread(target=renew, args=(done,), daemon=True, name="lock")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        release()
