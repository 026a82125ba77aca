"""Seconds that ``ahl serve`` takes to start and to answer, at several numbers of clients.

    python -m experiments.benchmarks.serve RUN [--clients 1 8 32] [--quick]

Each client sends a photograph, waits for the answer, and sends the next one. Clients are threads of
this process, and the server is another one on the same machine.
"""

import http.client
import io
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image

from ahl_jax.cli.shell import run_command
from ahl_jax.common.errors import UserError
from experiments.benchmarks import common


@dataclass(frozen=True)
class Serve:
    """Seconds to an answer, by the number of clients."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a finished run."""

    clients: tuple[int, ...] = (1, 8, 32)
    """How many ask at once."""

    requests: int = 500
    """Requests for each of these numbers."""

    side: int = 1024
    """Width and height of the photographs, which are JPEG files of noise."""

    heat_maps: bool = False
    """Ask for heat maps too."""

    quick: bool = False
    """40 requests."""

    json: Path | None = None
    """Write the rows here as JSON too."""


def measured(args: Serve) -> Iterator[dict[str, Any]]:
    """A row for each number of clients.

    Raises:
        UserError: if the server does not start.
    """
    content = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (args.side, args.side, 3), np.uint8)
    Image.fromarray(noise).save(content, "JPEG", quality=90)
    query = "?heat_map=png" if args.heat_maps else ""
    began = time.perf_counter()
    command = [sys.executable, "-m", "ahl_jax", "serve", str(args.run), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        said = next((line for line in server.stderr if "http://" in line), None)
        if said is None:
            raise UserError(f"ahl serve did not start on {args.run}; try it by hand")
        started = time.perf_counter() - began
        address = said.strip().rpartition("http://")[2]

        def ask(_: int) -> tuple[int, float]:
            connection = http.client.HTTPConnection(address, timeout=60)
            start = time.perf_counter()
            connection.request("POST", f"/score{query}", content.getvalue())
            response = connection.getresponse()
            response.read()
            connection.close()
            return response.status, time.perf_counter() - start

        try:
            for clients in args.clients:
                requests = 40 if args.quick else args.requests
                with ThreadPoolExecutor(clients) as pool:
                    list(pool.map(ask, range(clients)))
                    start = time.perf_counter()
                    answers = list(pool.map(ask, range(requests)))
                    taken = time.perf_counter() - start
                times = [1000 * each for status, each in answers if status == 200]
                p50, p99 = np.percentile(times, [50, 99])
                yield {
                    "device": common.device_name(),
                    "clients": clients,
                    "requests": requests,
                    "refused": requests - len(times),
                    "per_second": len(times) / taken,
                    "p50_ms": float(p50),
                    "p99_ms": float(p99),
                    "start_seconds": started,
                }
        finally:
            server.terminate()


def main() -> None:
    """Measure and print."""
    args = common.parse(Serve, __doc__)
    common.report(list(measured(args)), args.json)


if __name__ == "__main__":
    run_command(main)
