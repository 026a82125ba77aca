"""Requests -> images: reads what clients send, and refuses it by a status and a sentence."""

import asyncio
import contextlib
import io
import re
from collections.abc import AsyncIterator

import numpy as np
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from ahl_jax.common.errors import BadImageError
from ahl_jax.common.text import printable
from ahl_jax.data.images import read_image, seen_size, without_skipping
from ahl_jax.data.records import Encoded
from ahl_jax.inference.predictor import Predictor
from ahl_jax.serving.limits import Limits
from ahl_jax.serving.room import Room

_SCANS = 100
"""Scans of a JPEG at most; each is a pass over all of its pixels, and files have some ten."""

_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_START, _SCAN, _END = b"\xd8", b"\xda", b"\xd9"


@contextlib.asynccontextmanager
async def uploads(request: Request, limits: Limits, held: Room) -> AsyncIterator[list[Encoded]]:
    """The files of a request, which is one, or a form with one or several.

    Args:
        request: the request, of which nothing is read yet.
        limits: how large and how slow it may be.
        held: room for the bytes of all requests, of which this takes its own within the block.

    Raises:
        HTTPException: if it is empty, too large or too slow, or too much has arrived at once.
    """
    taken = 0
    too_large = HTTPException(413, f"the request has more than {limits.max_bytes} bytes")
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > limits.max_bytes:
        raise too_large

    async def receive() -> Message:
        nonlocal taken
        message = await request.receive()
        size = len(message.get("body", b""))
        if taken + size > limits.max_bytes:
            raise too_large
        held.take(size)
        taken += size
        return message

    try:
        try:
            async with asyncio.timeout(limits.read_timeout):
                files = await _files(Request(request.scope, receive), limits)
        except TimeoutError:
            raise HTTPException(
                408,
                f"the request has not arrived within {limits.read_timeout:g} seconds",
                # Or the rest would be awaited.
                {"Connection": "close"},
            ) from None
        except ClientDisconnect:
            raise HTTPException(400, "the request broke off") from None
        yield files
    finally:
        held.free(taken)


def is_form(request: Request) -> bool:
    """Whether the body is a form with files, and not a file."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def _files(request: Request, limits: Limits) -> list[Encoded]:
    if not is_form(request):
        files = [Encoded("the file sent", await request.body())]
    else:
        async with request.form(max_files=limits.max_waiting, max_fields=16) as form:
            sent = [each for _, each in form.multi_items() if isinstance(each, UploadFile)]
            files = [Encoded(printable(each.filename or ""), await each.read()) for each in sent]
    if not any(each.content for each in files):
        raise HTTPException(400, "the request holds no whole file; send an image file")
    return files


def decoded(file: Encoded, predictor: Predictor, max_pixels: int) -> np.ndarray:
    """An image as the detector takes it, uint8 [h, w, 3].

    Raises:
        HTTPException: 413 if it has more than ``max_pixels`` or too many scans, 415 if it is no
            image, 422 if it is damaged or does not suit the detector.
    """
    try:
        (width, height), _ = seen_size(file)
        if width * height > max_pixels:
            raise HTTPException(413, f"{file} has more than {max_pixels} pixels")
        if _has_many_scans(file.content):
            raise HTTPException(413, f"{file} has more than {_SCANS} scans")
        return read_image(file, predictor.frame)
    except BadImageError as error:
        statuses: dict[type | None, int]
        statuses = {UnidentifiedImageError: 415, Image.DecompressionBombError: 413}
        status = statuses.get(type(error.__cause__), 422)
        raise HTTPException(status, without_skipping(str(error))) from None


def _has_many_scans(content: bytes) -> bool:
    """Whether a JPEG is a small file that takes hours to decode."""
    scans, place = 0, 0 if content.startswith(b"\xff" + _START) else len(content)
    while scans <= _SCANS and (found := _MARKER.search(content, place)) and found[1] != _END:
        place = found.end()
        if found[1] != _START:
            scans += found[1] == _SCAN
            place += int.from_bytes(content[place : place + 2])
    return scans > _SCANS


def drawn(file: Encoded, heat: Float[np.ndarray, "h w"], predictor: Predictor) -> bytes:
    """An image beside its heat map, as a PNG."""
    content = io.BytesIO()
    Image.fromarray(predictor.picture(file, heat)).save(content, "PNG")
    return content.getvalue()
