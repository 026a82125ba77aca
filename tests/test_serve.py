"""The example server in docs/examples/serve, as a process of its own."""

import io
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ahl_jax import load
from tests.runs import FinishedRun

pytest.importorskip("starlette", reason="the example server needs starlette")
pytest.importorskip("uvicorn", reason="the example server needs uvicorn")

SERVER = Path(__file__).parents[1] / "docs/examples/serve/server.py"


@pytest.fixture(scope="module")
def url(finished: FinishedRun) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limits = ["--max-bytes", "200000", "--max-pixels", "250000", "--batch", "4"]
    command = [sys.executable, str(SERVER), str(finished.workdir), "--port", str(port), *limits]
    with subprocess.Popen([*command, "--max-wait", "0.2"], stderr=subprocess.PIPE) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(600):
                assert server.poll() is None, server.stderr and server.stderr.read().decode()
                try:
                    assert json.load(urllib.request.urlopen(f"{address}/healthz", timeout=5)) == {
                        "status": "ok"
                    }
                    break
                except urllib.error.URLError:
                    time.sleep(0.2)
            yield address
        finally:
            server.terminate()


def ask(url: str, body: bytes) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(f"{url}/score", data=body, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_images_sent_at_once_get_the_scores_of_the_detector(
    url: str, finished: FinishedRun, weave: Path
) -> None:
    predictor = load(finished.workdir)
    paths = [weave / "test" / name / f"{i:02}.png" for name in ("good", "spot") for i in range(4)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda path: ask(url, path.read_bytes()), paths))
    assert {status for status, _ in answers} == {200}
    found = {name: [answer[name] for _, answer in answers] for name in answers[0][1]}
    np.testing.assert_allclose(found["score"], predictor.score(paths), atol=1e-4)
    np.testing.assert_allclose(found["probability"], predictor.probability(paths), atol=1e-4)
    threshold = predictor.calibrated().threshold()
    assert found["threshold"] == [pytest.approx(threshold)] * len(paths)
    assert found["anomaly"] == [score > threshold for score in found["score"]]


def test_a_damaged_exif_is_no_reason_to_refuse_an_image(url: str, weave: Path) -> None:
    whole = (weave / "test/spot/00.png").read_bytes()
    garbage = b"\0\0\0\7eXIfgarbage" + zlib.crc32(b"eXIfgarbage").to_bytes(4, "big")
    text = b"tEXtComment\0" + bytes(65_000)
    content = (len(text) - 4).to_bytes(4, "big") + text + b"crc?"
    answers = [ask(url, whole[:33] + chunks + whole[33:]) for chunks in (b"", garbage + content)]
    assert answers[0] == answers[1]
    assert answers[0][0] == 200


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "empty"),
        (b"no image", 415, "PNG"),
        (
            png(np.zeros((96, 96), np.uint8))[:60],
            422,
            "the file sent cannot be read as an image (image file is truncated); "
            "send an undamaged PNG, JPEG, BMP or TIFF file",
        ),
        (png(np.zeros((600, 600), np.uint8)), 413, "pixels"),
        (b"x" * 200001, 413, "bytes"),
    ],
    ids=["empty", "text", "damaged", "pixels", "bytes"],
)
def test_what_is_refused_is_refused_by_a_reason(
    url: str, body: bytes, status: int, message: str
) -> None:
    found, answer = ask(url, body)
    assert found == status
    assert message in answer["error"]
