"""Downloads of single files, which go on where they broke off."""

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ahl_jax.common.errors import UserError
from ahl_jax.common.files import reason
from ahl_jax.common.progress import Progress

_MB = 1_000_000
_PATIENCE = 60
"""Seconds without a byte after which a connection is given up."""


def download(address: str, path: Path, most: int, otherwise: str, *, progress: bool = True) -> None:
    """Download a file, or the rest of one that is there in part.

    Whoever calls it keeps other processes from the path.

    Args:
        address: of HTTP or HTTPS; the latter is never left for the former.
        path: where it goes; a part stays there for the next call.
        most: bytes that it may have.
        otherwise: another way to have the file, as an order.
        progress: show how far it is, on stderr.

    Raises:
        UserError: if the server refuses, breaks off or offers too much.
        OSError: if nothing can be written.
    """
    done = path.stat().st_size if path.exists() else 0
    with _answer(address, done, otherwise) as answer:
        start, total = _span(address, answer, otherwise)
        if total > most:
            raise UserError(
                f"{address} has {total // _MB} MB, where {most // _MB} are the most that is taken; "
                "check the address"
            )
        if done == total:
            return
        if answer.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            # It was a part of something longer.
            path.unlink()
            download(address, path, most, otherwise, progress=progress)
            return
        if start not in (0, done):
            raise UserError(f"{address} answers with another part than asked for; try again")
        left = (total - start) // _MB
        label = f"MB of {address.rpartition('/')[2]}" if progress else None
        done = start
        with (
            path.open("ab") as file,
            Progress(left, label, cached=start // _MB, unit="MB", verb="download") as bar,
        ):
            file.truncate(start)
            for block in _blocks(answer, total - start):
                file.write(block)
                bar.update((done + len(block)) // _MB - done // _MB)
                done += len(block)
    if done < total:
        raise UserError(
            f"the connection broke after {done // _MB} of {total // _MB} MB of {address}; the same "
            "command goes on from there"
        )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Those that stay as secure as the address is."""

    def redirect_request(self, req: urllib.request.Request, *others: Any) -> Any:
        if req.type == "https" and not others[-1].startswith("https:"):
            raise UserError(f"{req.full_url} leads to {others[-1]}, which is not secure")
        return super().redirect_request(req, *others)


def _answer(address: str, start: int, otherwise: str) -> Any:
    """The server's response to a request for the file from byte ``start`` on."""
    request = urllib.request.Request(address, headers={"User-Agent": "ahl_jax"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=_PATIENCE)
    except urllib.error.HTTPError as error:
        if start and error.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return error
        raise UserError(
            f"cannot download {address}: the server says {error.status} {error.reason}; try later, "
            f"or {otherwise}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        why = reason(getattr(error, "reason", error))
        raise UserError(
            f"cannot download {address} ({why}); check the connection, or {otherwise}"
        ) from error


def _span(address: str, answer: Any, otherwise: str) -> tuple[int, int]:
    """The first byte of those that come, and the bytes of the whole file."""
    if answer.status == http.client.OK:
        found = re.fullmatch(r"()(\d{1,18})", answer.headers.get("Content-Length", ""))
    else:
        found = re.fullmatch(
            r"bytes (?:(\d{1,18})-\d+|\*)/(\d{1,18})", answer.headers.get("Content-Range", "")
        )
    if found is None:
        raise UserError(f"{address} does not say how long it is; {otherwise}")
    return int(found[1] or 0), int(found[2])


def _blocks(answer: Any, most: int) -> Iterator[bytes]:
    """What comes, up to a number of bytes or to the end of the connection."""
    while most > 0:
        try:
            block = answer.read(min(most, _MB))
        except (OSError, http.client.HTTPException):
            return
        if not block:
            return
        yield block
        most -= len(block)
