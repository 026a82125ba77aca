"""Programs that go through a batch image by image, on all cores of a CPU."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array, PyTree, Shaped

Tree = TypeVar("Tree", bound=PyTree)


def on_all_cores(
    program: Callable[[Shaped[Any, "m ..."]], Tree],
    images: Shaped[np.ndarray | Array, "b ..."],
) -> Tree:
    """Runs a program on parts of a batch at a time, one for each core, on a CPU.

    XLA divides every product between the cores, and they wait for each other at each of an image's
    hundred small ones. With images of its own a core does not wait. Elsewhere the program gets the
    whole batch.

    Args:
        program: maps images to arrays whose first axis is theirs; it is called with batches of one
            size, from several threads.
        images: the batch. It is cut into as many equal parts as there are cores, or fewer.

    Returns:
        What the program returns for the batch.
    """
    count = parts(len(images)) if jax.default_backend() == "cpu" else 1
    if count == 1:
        return program(images)
    found = _threads().map(
        lambda part: jax.block_until_ready(program(part)), np.split(np.asarray(images), count)
    )
    return jax.tree.map(lambda *pieces: np.concatenate(pieces), *found)


def parts(images: int) -> int:
    """How many parts a batch is cut into: the largest divisor that is no more than the cores."""
    return next(n for n in range(min(images, cores()), 0, -1) if images % n == 0)


@functools.cache
def cores() -> int:
    """How many cores this process may use: by its affinity, and by the quota of its container."""
    from joblib import cpu_count  # Late, as it takes a tenth of a second.

    return int(cpu_count())


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), "image")
