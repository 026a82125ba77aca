"""Batches of images, read ahead of the computation."""

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Int, UInt8

from ahl_jax.common import stop
from ahl_jax.common.errors import BadImageError
from ahl_jax.data.frame import Frame
from ahl_jax.data.images import read_image, without_skipping
from ahl_jax.data.records import ImageSource

_log = logging.getLogger(__name__)

_THREADS = 8


def iter_batches(
    paths: Sequence[ImageSource],
    frame: Frame | int,
    batch: int,
    *,
    skip_bad: bool = False,
    on_bad: Callable[[ImageSource, str], None] | None = None,
) -> Iterator[tuple[Int[np.ndarray, " b"], UInt8[np.ndarray, "b h w 3"]]]:
    """Reads images in order, in threads that decode ahead while the caller computes.

    Args:
        paths: The images.
        frame: As for ``read_image``.
        batch: Images per batch; the last one may have fewer.
        skip_bad: Leave out images that cannot be read. Later images move up, so that every batch
            but the last is full.
        on_bad: Called with the path and the error message of each image left out.

    Yields:
        The indices into ``paths`` and the images of a batch.

    Raises:
        BadImageError: if an image cannot be read and ``skip_bad`` is off.
    """
    # Imported late: it takes two seconds, which commands that read no images need not wait.
    import grain

    def read(index: int) -> tuple[int, UInt8[np.ndarray, "h w 3"] | BadImageError]:
        try:
            return index, read_image(paths[index], frame)
        except BadImageError as error:
            return index, error

    ahead = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=max(batch, 2 * _THREADS))
    indices: list[int] = []
    images: list[UInt8[np.ndarray, "h w 3"]] = []
    for index, image in grain.MapDataset.range(len(paths)).map(read).to_iter_dataset(ahead):
        stop.check()
        if isinstance(image, BadImageError):
            if not skip_bad:
                raise image
            if on_bad is not None:
                on_bad(paths[index], str(image))
            continue
        indices.append(index)
        images.append(image)
        if len(images) == batch:
            yield np.asarray(indices), np.stack(images)
            indices, images = [], []
    if images:
        yield np.asarray(indices), np.stack(images)


def left_out(path: ImageSource, reason: str) -> None:
    """Warns of an image that cannot be read; an ``on_bad`` of ``iter_batches``."""
    _log.warning("left out: %s", without_skipping(reason))
