"""How much memory features may take, and giving back what is not needed any more."""

import ctypes
import os

import jax

_OF_MACHINE, _OF_ACCELERATOR = 0.4, 0.6
"""Default shares: the rest is for the other copy on a CPU, and for the work on batches."""


def on_host(gib: float | None) -> float:
    """Bytes of this machine's memory that features may take.

    Args:
        gib: what the user allows; by default 40 percent of the machine's memory.
    """
    if gib is not None:
        return gib * 2**30
    return _OF_MACHINE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def on_device(gib: float | None) -> float:
    """Bytes of one device's memory that features may take.

    Args:
        gib: what the user allows; by default 60 percent of an accelerator's memory, and of a CPU's
            the same as ``on_host``.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if gib is None and "bytes_limit" in stats:
        return _OF_ACCELERATOR * stats["bytes_limit"]
    return on_host(gib)


def give_back_memory() -> None:
    """Return freed memory to the system; glibc keeps the half gigabyte that a compilation took."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return  # Another C library.
    trim(0)
