"""Images that arrive together are scored together."""

import asyncio
import contextlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8

from ahl_jax.inference.predictor import Predictor

Found = tuple[float, Float[np.ndarray, "h w"]]
"""The score and the heat map of an image."""


class Batches:
    """Scores images that arrive within some seconds of each other in one call.

    Args:
        predictor: the detector.
        size: images in a call, at most.
        wait: seconds that the first of them waits.
    """

    def __init__(self, predictor: Predictor, size: int, wait: float) -> None:
        self.predictor, self.wait = predictor, wait
        self.size = min(size, predictor.config.features.image_batch)
        self._queue: asyncio.Queue[tuple[UInt8[np.ndarray, "h w 3"], asyncio.Future[Found]]] = (
            asyncio.Queue()
        )

    def warm_up(self) -> Iterator[None]:
        """Compile the programs for all sizes of a batch, one a step."""
        frame = self.predictor.frame
        for power in range((self.size - 1).bit_length() + 1):
            images = min(2**power, self.size)
            self.predictor.of_arrays(np.zeros((images, frame.height, frame.width, 3), np.uint8))
            yield

    async def found(self, image: UInt8[np.ndarray, "h w 3"]) -> Found:
        """The score and the heat map of an image, once ``run`` comes to it."""
        future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((image, future))
        return await future

    async def run(self) -> None:
        """Score until cancelled."""
        while True:
            batch = [await self._queue.get()]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.wait):
                    while len(batch) < self.size:
                        batch.append(await self._queue.get())
            # Whose request has ended needs none.
            batch = [(image, future) for image, future in batch if not future.done()]
            if batch:
                await self._score(*zip(*batch, strict=True))

    async def _score(
        self, images: tuple[np.ndarray, ...], futures: tuple[asyncio.Future[Found], ...]
    ) -> None:
        try:
            found = await asyncio.to_thread(self.predictor.of_arrays, np.stack(images))
        except Exception as error:
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, score, heat in zip(futures, found.scores, found.heat, strict=True):
            if not future.done():
                future.set_result((float(score), heat))
