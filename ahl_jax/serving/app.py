"""The ASGI application: scores by name, a page to drop photographs on, and signs of life."""

import asyncio
import base64
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ahl_jax.common.errors import UserError
from ahl_jax.common.text import nearest
from ahl_jax.data.records import Encoded
from ahl_jax.features.tiles import warn_of_shrinking
from ahl_jax.inference.predictor import Predictor
from ahl_jax.inference.threshold import Cut, cut_of
from ahl_jax.reports.build import environment
from ahl_jax.serving.batches import Batches
from ahl_jax.serving.limits import Limits
from ahl_jax.serving.metrics import Metrics
from ahl_jax.serving.room import Room
from ahl_jax.serving.uploads import decoded, drawn, is_form, uploads

T = TypeVar("T")

_DECODED = 4
"""Photographs that are decoded or drawn at once, as each may take hundreds of MB."""

_HELD = 8
"""Requests of the largest size whose bytes are held at once."""

_RATES = ("fpr", "threshold")
_QUERY = ("heat_map", *_RATES)
"""The names that a query may have."""


@dataclass(frozen=True, eq=False)
class Served:
    """A detector under a name."""

    predictor: Predictor
    batches: Batches
    cut: Cut | None
    """Where decisions are made, unless a request says otherwise."""

    label: str
    """Its name, where there are others."""


@dataclass(frozen=True)
class _Asked:
    """The wishes of a request."""

    cut: Cut | None
    heat_map: bool
    """Whether the heat map is to be among the rest."""

    picture: bool
    """Whether it is to be all of the response."""


@dataclass(frozen=True)
class _Found:
    """The findings in an image."""

    score: float
    picture: bytes | None = None
    """A PNG of its heat map, if that is wanted."""

    def answer(self, predictor: Predictor, cut: Cut | None) -> dict[str, Any]:
        """The same as JSON has it; null for what the detector does not know."""
        calibration, score = predictor.calibration, np.array([self.score], np.float32)
        answer: dict[str, Any] = {
            "score": self.score,
            "threshold": cut and cut.threshold,
            "decision": cut and ("anomaly" if score[0] > cut.threshold else "normal"),
            "probability": calibration and float(calibration.probability(score)[0]),
        }
        if self.picture is not None:
            answer["heat_map"] = base64.b64encode(self.picture).decode()
        return answer


class App:
    """The application, and whether it is ready.

    Args:
        predictors: detectors by their names.
        limits: how much is taken on at once.
        fpr: as for ``cut_of``.
        threshold: as for ``cut_of``.

    Raises:
        UserError: as by ``cut_of``.
    """

    def __init__(
        self,
        predictors: Mapping[str, Predictor],
        limits: Limits,
        *,
        fpr: float | None = None,
        threshold: float | None = None,
    ) -> None:
        self.ready = False
        self.limits = limits
        self.served = {}
        for name, each in predictors.items():
            label = name if len(predictors) > 1 else ""
            batches = Batches(each, limits.batch, limits.max_wait)
            self.served[name] = Served(each, batches, each.cut(fpr, threshold, name=label), label)
        # Whom no photograph has shrunk too much for; one warning of that is enough.
        self._sharp = set(self.served.values())
        self._only = next(iter(self.served)) if len(self.served) == 1 else ""
        self._waiting = Room(limits.max_waiting, "photographs")
        self._held = Room(_HELD * limits.max_bytes, "bytes")
        self._decoding = asyncio.Semaphore(_DECODED)
        self._metrics = Metrics(lambda: self._waiting.taken)
        page, policy = page_of(list(predictors))
        headers = {"Content-Security-Policy": policy}
        self.asgi = Starlette(
            routes=[
                Route("/", lambda _: HTMLResponse(page, headers=headers)),
                Route("/score", self._score, methods=["POST"]),
                Route("/v1/{name}/score", self._score, methods=["POST"]),
                Route("/metrics", self._figures),
                Route("/healthz", lambda _: JSONResponse({"status": "alive"})),
                Route("/readyz", self._readyz),
            ],
            exception_handlers={HTTPException: _refused},
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        running = [asyncio.create_task(each.batches.run()) for each in self.served.values()]
        yield
        for task in running:
            task.cancel()

    def _figures(self, _: Request) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)

    def _readyz(self, _: Request) -> Response:
        if self.ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "starting"}, 503)

    async def _score(self, request: Request) -> Response:
        """Answer ``POST /v1/NAME/score``, and count it."""
        start, status, images = time.perf_counter(), 500, 0
        # Figures have the names of detectors alone, not whatever clients ask for.
        name = request.path_params.get("name", self._only)
        served = self.served.get(name)
        try:
            if served is None:
                names = ", ".join(self.served)
                raise HTTPException(404, f"no such detector; post to /v1/NAME/score: {names}")
            response, images = await self._answer(request, served)
            status = response.status_code
            return response
        except HTTPException as error:
            status = error.status_code
            raise
        except asyncio.CancelledError:  # The server has no more time for it.
            status = 503
            raise HTTPException(status, "the server is stopping; send it again later") from None
        finally:
            self._metrics.add(name if served else "", status, time.perf_counter() - start, images)

    async def _answer(self, request: Request, served: Served) -> tuple[Response, int]:
        """The response to a request, and how many images it has scores of."""
        if not self.ready:
            raise HTTPException(503, "the server is starting", {"Retry-After": "5"})
        asked = _asked(request, served)
        with self._waiting.of(1):
            async with uploads(request, self.limits, self._held) as files:
                if asked.picture and len(files) > 1:
                    raise HTTPException(406, "image/png is for one file; ask for ?heat_map=png")
                with self._waiting.of(len(files) - 1):
                    found = await _all(self._found(file, served, asked) for file in files)
        first, *others = found
        if isinstance(first, HTTPException) and not others:
            raise first
        if asked.picture and isinstance(first, _Found):
            return Response(first.picture, media_type="image/png"), 1
        answers = [
            {"error": each.detail}
            if isinstance(each, HTTPException)
            else each.answer(served.predictor, asked.cut)
            for each in found
        ]
        if not is_form(request):
            return JSONResponse(answers[0]), 1
        named = [{"file": str(file)} | each for file, each in zip(files, answers, strict=True)]
        return JSONResponse({"images": named}), sum(isinstance(each, _Found) for each in found)

    async def _found(self, file: Encoded, served: Served, asked: _Asked) -> _Found:
        image = await self._in_turn(self._decoded, file, served)
        score, heat = await served.batches.found(image)
        if not (asked.heat_map or asked.picture):
            return _Found(score)
        return _Found(score, await self._in_turn(drawn, file, heat, served.predictor))

    def _decoded(self, file: Encoded, served: Served) -> np.ndarray:
        image = decoded(file, served.predictor, self.limits.max_pixels)
        features = served.predictor.config.features
        if served in self._sharp and warn_of_shrinking([file], features, name=served.label):
            self._sharp.discard(served)
        return image

    async def _in_turn(self, function: Callable[..., T], *args: Any) -> T:
        async with self._decoding:
            return await asyncio.to_thread(function, *args)


async def _all(works: Iterable[Awaitable[T]]) -> list[T | HTTPException]:
    """The results of all, once the last one has ended: until then each takes its room.

    Raises:
        BaseException: the first that one of them ended with, unless it is a refusal.
    """
    ended = await asyncio.gather(*works, return_exceptions=True)
    results: list[T | HTTPException] = []
    for each in ended:
        if isinstance(each, BaseException) and not isinstance(each, HTTPException):
            raise each
        results.append(each)
    return results


def _asked(request: Request, served: Served) -> _Asked:
    """The wishes of a request.

    Raises:
        HTTPException: 400 if one is none.
    """
    query = request.query_params
    for name in query:
        if name not in _QUERY:
            advice = nearest(name, _QUERY) or f"choose from {', '.join(_QUERY)}"
            raise HTTPException(400, f"there is no parameter {name!r}; {advice}")
        if len(query.getlist(name)) > 1:
            raise HTTPException(400, f"{name} is given more than once")
    if query.get("heat_map", "png") != "png":
        raise HTTPException(400, f"heat_map is {query['heat_map']!r}; it may be png")
    numbers = {}
    for name in _RATES:
        if name in query:
            try:
                numbers[name] = float(query[name])
            except ValueError:
                raise HTTPException(400, f"{name} is {query[name]!r}; give a number") from None
    try:
        cut = cut_of(served.predictor.calibration, **numbers) if numbers else served.cut
    except UserError as error:
        raise HTTPException(400, str(error).replace("`", "")) from None
    picture = "image/png" in request.headers.get("accept", "")
    return _Asked(cut, "heat_map" in query, picture)


def page_of(names: Sequence[str]) -> tuple[str, str]:
    """The page to drop photographs on, and the Content-Security-Policy that bars all else."""
    page = environment("ahl_jax.serving").get_template("page.html.j2").render(names=names)
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; connect-src 'self'; img-src data:; script-src 'sha256-{digest}'"
    return page, f"{policy}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    said = error.detail
    if said == HTTPStatus.NOT_FOUND.phrase:  # Of Starlette's.
        said = "there is nothing at this address; post to /v1/NAME/score"
    elif said == HTTPStatus.METHOD_NOT_ALLOWED.phrase:
        allowed = (error.headers or {}).get("Allow")
        said = f"{request.method} is not for this address, which takes {allowed}"
    return JSONResponse({"error": said}, error.status_code, error.headers)
