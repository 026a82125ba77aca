"""How much memory features may take, and giving back what is not needed any more."""

import contextlib
import ctypes
import os
from pathlib import Path

import jax

_OF_MACHINE, _OF_ACCELERATOR = 0.4, 0.6
"""Default shares: the rest is for the other copy on a CPU, and for the work on batches."""


def on_host(gib: float | None) -> float:
    """Bytes of this machine's memory that features may take.

    Args:
        gib: what the user allows; by default 40 percent of the machine's memory, or of that which
            its container may have.
    """
    if gib is not None:
        return gib * 2**30
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _OF_MACHINE * min([machine, *container_limits()])


def container_limits(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """The bytes of memory that this process's container may have, where there is such a limit.

    Within a container its own control group is at the top.

    Args:
        root: where control groups are mounted, of version 2 or 1.
    """
    found = []
    for file in (root / "memory.max", root / "memory" / "memory.limit_in_bytes"):
        # No such file; or "max", which is no limit.
        with contextlib.suppress(OSError, ValueError):
            found.append(int(file.read_text()))
    return found


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
