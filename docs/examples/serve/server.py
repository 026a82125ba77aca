"""Scores images over HTTP with a trained detector: ``python server.py WORKDIR``."""

import argparse
import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import uvicorn
from PIL import Image, UnidentifiedImageError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ahl_jax import BadImageError, Predictor, load
from ahl_jax.cli.shell import keep_compiled_programs
from ahl_jax.data.images import as_image, opened

FORMATS = ("PNG", "JPEG", "BMP", "TIFF")


class Batches:
    """Scores images that arrive within ``wait`` seconds of each other in one call."""

    def __init__(self, predictor: Predictor, size: int, wait: float, waiting: int) -> None:
        self.predictor, self.size, self.wait = predictor, size, wait
        self.queue: asyncio.Queue[tuple[np.ndarray, asyncio.Future]] = asyncio.Queue(waiting)

    async def score(self, image: np.ndarray) -> float:
        """The anomaly score of an image; 503 if too many are waiting."""
        future = asyncio.get_running_loop().create_future()
        try:
            self.queue.put_nowait((image, future))
        except asyncio.QueueFull:
            raise HTTPException(503, "too many images are waiting", {"Retry-After": "1"}) from None
        return await future

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            batch = [await self.queue.get()]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.wait):
                    while len(batch) < self.size:
                        batch.append(await self.queue.get())
            futures = [future for _, future in batch]
            try:
                images = np.stack([image for image, _ in batch])
                scores = (await asyncio.to_thread(self.predictor.of_arrays, images)).scores
                results = scores.tolist()
            except Exception as error:
                results = [error] * len(batch)
            for future, result in zip(futures, results, strict=True):
                if future.done():  # Its client has gone.
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)


def application(
    predictor: Predictor,
    *,
    fpr: float = 0.01,
    max_bytes: int = 20 * 2**20,
    max_pixels: int = 50_000_000,
    batch: int = 8,
    max_wait: float = 0.005,
    max_waiting: int = 64,
) -> Starlette:
    """The ASGI application: ``POST /score`` with an image as the body, ``GET /healthz``.

    Args:
        predictor: the trained detector.
        fpr: the rate of false positives among normal images that the threshold is set for.
        max_bytes: larger bodies are refused.
        max_pixels: larger images are refused before they are decoded.
        batch: images in one call, at most.
        max_wait: seconds that an image waits for others.
        max_waiting: images that wait, beyond which others are refused.
    """
    size = predictor.config.features.image_size
    batches = Batches(predictor, batch, max_wait, max_waiting)

    async def body(request: Request) -> bytes:
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > max_bytes:
                raise HTTPException(413, f"the image has more than {max_bytes} bytes")
        if not content:
            raise HTTPException(400, "the body is empty; send an image file")
        return bytes(content)

    def decode(content: bytes) -> np.ndarray:
        advice = f"send an undamaged {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"

        def prepare(picture: Image.Image) -> None:
            if picture.width * picture.height > max_pixels:
                raise HTTPException(413, f"the image has more than {max_pixels} pixels")
            picture.draft(None, (2 * size, 2 * size))  # as files are read
            picture.load()

        try:
            with opened(io.BytesIO(content), prepare, FORMATS) as picture:
                return as_image(picture, size)
        except HTTPException:
            raise
        except UnidentifiedImageError:
            raise HTTPException(415, f"the file sent is no image; {advice}") from None
        except Exception as error:  # decoders raise nearly anything on damaged files
            cause = error.__cause__ if isinstance(error, BadImageError) else error
            reason = f"the file sent cannot be read as an image ({cause})"
            raise HTTPException(422, f"{reason}; {advice}") from None

    async def score(request: Request) -> JSONResponse:
        image = await asyncio.to_thread(decode, await body(request))
        value = await batches.score(image)
        answer: dict[str, float | bool] = {"score": value}
        if predictor.calibration is not None:
            answer["threshold"] = predictor.calibration.threshold(fpr)
            answer["anomaly"] = value > answer["threshold"]
            answer["probability"] = float(predictor.calibration.probability(np.array([value]))[0])
        return JSONResponse(answer)

    async def healthz(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def refused(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        # Every program is compiled before the first request.
        for power in range((batch - 1).bit_length() + 1):
            images = np.zeros((min(2**power, batch), size, size, 3), np.uint8)
            await asyncio.to_thread(predictor.of_arrays, images)
        worker = asyncio.create_task(batches.run())
        yield
        worker.cancel()

    return Starlette(
        routes=[
            Route("/score", score, methods=["POST"]),
            Route("/healthz", healthz, methods=["GET"]),
        ],
        exception_handlers={HTTPException: refused},
        lifespan=lifespan,
    )


def main() -> None:
    """Serve a run's detector."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path, help="the folder that was given to ahl train")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--fpr", type=float, default=0.01, help="false positives allowed")
    parser.add_argument("--max-bytes", type=int, default=20 * 2**20)
    parser.add_argument("--max-pixels", type=int, default=50_000_000)
    parser.add_argument("--batch", type=int, default=8, help="images in one call, at most")
    parser.add_argument("--max-wait", type=float, default=0.005, help="seconds")
    parser.add_argument("--max-waiting", type=int, default=64, help="images, beyond which: 503")
    options = vars(parser.parse_args())
    workdir, host, port = (options.pop(name) for name in ("workdir", "host", "port"))
    keep_compiled_programs()
    uvicorn.run(application(load(workdir), **options), host=host, port=port, log_level="warning")


if __name__ == "__main__":
    main()
