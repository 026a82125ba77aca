"""Detectors behind HTTP, at a port of this machine."""

import base64
import contextlib
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.exceptions import HTTPException

from ahl_jax import Predictor, load
from ahl_jax.data.frame import WHOLE
from ahl_jax.inference.heatmaps import beside
from ahl_jax.serving import connection, server
from ahl_jax.serving.app import App
from ahl_jax.serving.limits import Limits
from ahl_jax.serving.room import Room
from ahl_jax.serving.server import address_of, running
from tests.runs import FinishedRun

Answer = tuple[int, Any]


@pytest.fixture(scope="module")
def predictor(finished: FinishedRun) -> Predictor:
    return load(finished.workdir)


@pytest.fixture(scope="module")
def url(predictor: Predictor) -> Iterator[str]:
    limits = Limits(200_000, 250_000, batch=2, max_wait=0.2, read_timeout=0.5)
    app = App({"one": predictor, "<two>": predictor}, limits)
    with socket.create_server(("127.0.0.1", 0)) as listener, running(app, listener):
        address = address_of(listener)
        assert ask(f"{address}/healthz") == (200, {"status": "alive"})
        assert ask(f"{address}/readyz")[0] == 503
        assert ask(f"{address}/v1/one/score", b"x")[0] == 503
        for _ in app.served["one"].batches.warm_up():
            pass
        app.ready = True
        assert ask(f"{address}/readyz")[0] == 200
        yield address


def ask(url: str, body: bytes | None = None, **headers: str) -> Answer:
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            kind, content = answer.headers["content-type"], answer.read()
            return answer.status, json.loads(content) if "json" in kind else content
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def form(*files: tuple[str, bytes]) -> tuple[bytes, str]:
    """The body and the type of a form."""
    parts = (
        f'--limit\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    )
    return b"".join(parts) + b"--limit--\r\n", "multipart/form-data; boundary=limit"


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of few bytes that claims to have so many pixels in a line."""
    whole = png(np.zeros((8, 8), np.uint8))
    head = b"IHDR" + side.to_bytes(4, "big") * 2 + whole[24:29]
    return whole[:12] + head + zlib.crc32(head).to_bytes(4, "big") + whole[33:]


def passes(scans: int) -> bytes:
    """A JPEG whose last scan is there so many times more."""
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + scans * last + whole[-2:]


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_images_sent_at_once_get_the_scores_of_the_detector(
    url: str, predictor: Predictor, weave: Path
) -> None:
    paths = [weave / "test" / name / f"{i:02}.png" for name in ("good", "spot") for i in range(4)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda path: ask(f"{url}/v1/one/score", path.read_bytes()), paths))
    assert {status for status, _ in answers} == {200}
    found = {name: [answer[name] for _, answer in answers] for name in answers[0][1]}
    # In twos, whose program is there.
    scores = np.concatenate([predictor.score(paths[i : i + 2]) for i in range(0, 8, 2)])
    np.testing.assert_allclose(found["score"], scores, atol=1e-4)
    probability = predictor.calibrated().probability(scores)
    np.testing.assert_allclose(found["probability"], probability, atol=1e-4)
    threshold = predictor.calibrated().threshold()
    assert found["threshold"] == [pytest.approx(threshold)] * len(paths)
    above = ["anomaly" if score > threshold else "normal" for score in found["score"]]
    assert found["decision"] == above
    figures = ask(f"{url}/metrics")[1].decode()
    assert 'ahl_requests_total{detector="one",status="200"} 8.0' in figures
    assert 'ahl_images_total{detector="one"} 8.0' in figures
    assert "ahl_waiting 0.0" in figures


def test_a_request_names_a_threshold_and_gets_the_heat_map(
    url: str, predictor: Predictor, weave: Path
) -> None:
    path = weave / "test/spot/00.png"
    address, content = f"{url}/v1/%3Ctwo%3E/score", path.read_bytes()
    _, answer = ask(f"{address}?heat_map=png&threshold=1e6", content)
    assert (answer["threshold"], answer["decision"]) == (1e6, "normal")
    rate = ask(f"{address}?fpr=0.5", content)[1]["threshold"]
    assert rate == predictor.calibrated().threshold(0.5)
    # As `ahl predict` draws it; the outline may turn on the last bits of a location.
    scale, level = predictor.heat_scale(np.zeros((1, 1))), predictor.calibrated().contour
    heat = predictor.outcome([path]).heat[0]
    expected = beside(pixels(content), heat, scale, WHOLE, level)
    drawn = pixels(base64.b64decode(answer["heat_map"]))
    assert (np.abs(drawn.astype(int) - expected) > 1).mean() < 0.001
    status, picture = ask(address, content, Accept="image/png")
    assert status == 200
    np.testing.assert_array_equal(pixels(picture), pixels(base64.b64decode(answer["heat_map"])))


def test_a_form_has_several_files(url: str, weave: Path) -> None:
    address = f"{url}/v1/one/score"
    contents = [(weave / "test/spot" / f"{i:02}.png").read_bytes() for i in range(2)]
    body, kind = form(("a.png", contents[0]), ("b/../c.png", contents[1]))
    status, answer = ask(address, body, **{"Content-Type": kind})
    assert status == 200
    assert [each.pop("file") for each in answer["images"]] == ["a.png", "b/../c.png"]
    for each, content in zip(answer["images"], contents, strict=True):
        assert each["score"] == pytest.approx(ask(address, content)[1]["score"], abs=1e-4)
    body, kind = form(("/etc/passwd", b"text"))
    status, answer = ask(address, body, **{"Content-Type": kind})
    assert (status, "/etc/passwd cannot be read" in answer["error"]) == (415, True)
    # Of several, those that cannot be read cost the others nothing.
    refused = [("/etc/passwd", b"text"), ("cut.png", contents[1][:99]), ("large.png", bomb(10_000))]
    body, kind = form(refused[0], ("a.png", contents[0]), *refused[1:], ("none.png", b""))
    scored = ask(f"{url}/metrics")[1].decode().split('ahl_images_total{detector="one"} ')[1]
    status, answer = ask(address, body, **{"Content-Type": kind})
    names = ["/etc/passwd", "a.png", "cut.png", "large.png", "none.png"]
    assert (status, [each["file"] for each in answer["images"]]) == (200, names)
    reasons = ["cannot be read", "", "truncated", "pixels", "empty file"]
    for each, why in zip(answer["images"], reasons, strict=True):
        assert (each.keys() == {"file", "error"} and why in each["error"]) if why else each["score"]
    figures = ask(f"{url}/metrics")[1].decode()
    assert f'ahl_images_total{{detector="one"}} {float(scored.split()[0]) + 1}' in figures
    status, _ = ask(address, body[:50], **{"Content-Type": kind})
    assert status == 400
    both = {"Content-Type": kind, "Accept": "image/png"}
    assert ask(address, body, **both)[0] == 406


def test_a_jpeg_may_have_some_scans(url: str) -> None:
    # Beyond its end are no scans.
    content = passes(80) + 100 * b"\xff\xda\0\2"
    assert ask(f"{url}/v1/one/score", content)[0] == 200


def test_the_log_says_once_that_photographs_shrink_too_much(
    predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    app = App({"one": predictor, "two": predictor}, Limits())
    app.ready = True
    with socket.create_server(("127.0.0.1", 0)) as listener, running(app, listener):
        for side in (700, 900, 1200):
            photograph = png(np.zeros((side, side, 3), np.uint8))
            for name in ("one", "two"):
                assert ask(f"{address_of(listener)}/v1/{name}/score", photograph)[0] == 200
    said = [r.getMessage() for r in caplog.records if "times smaller" in r.getMessage()]
    assert [each.partition(" pixels become 5")[0] for each in said] == [
        f"{name}: photographs of 900 x 900" for name in ("one", "two")
    ]


def test_a_damaged_exif_is_no_reason_to_refuse_an_image(url: str, weave: Path) -> None:
    whole = (weave / "test/spot/00.png").read_bytes()
    garbage = b"\0\0\0\7eXIfgarbage" + zlib.crc32(b"eXIfgarbage").to_bytes(4, "big")
    text = b"tEXtComment\0" + bytes(65_000)
    content = (len(text) - 4).to_bytes(4, "big") + text + b"crc?"
    answers = [
        ask(f"{url}/v1/one/score", whole[:33] + chunks + whole[33:])
        for chunks in (b"", garbage + content)
    ]
    assert answers[0] == answers[1]
    assert answers[0][0] == 200


@pytest.mark.parametrize(
    ("query", "body", "status", "message"),
    [
        ("one/score", b"", 400, "no whole file"),
        ("one/score", b"no image", 415, "PNG"),
        (
            "one/score",
            png(np.zeros((96, 96), np.uint8))[:60],
            422,
            "the file sent cannot be read as an image (image file is truncated); replace the file",
        ),
        ("one/score", png(np.zeros((600, 600), np.uint8)), 413, "pixels"),
        ("one/score", bomb(10_000), 413, "pixels"),
        ("one/score", bomb(60_000), 413, "decompression bomb"),
        ("one/score", passes(100), 413, "more than 100 scans"),
        ("one/score", b"x" * 200001, 413, "bytes"),
        ("one/score", b"x" * 20_000_000, 413, "bytes"),
        ("three/score", b"x" * 20_000_000, 404, "no such detector"),
        ("three/score", b"x", 404, "post to /v1/NAME/score: one, <two>"),
        ("../score", b"x", 404, "no such detector"),
        ("one/score?fpr=2", b"x", 400, "it must be between 0 and 1"),
        ("one/score?threshold=nan", b"x", 400, "a finite number"),
        ("one/score?fpr=0.1&threshold=1", b"x", 400, "give one of them"),
        ("one/score?heat_map=/etc/passwd", b"x", 400, "it may be png"),
        ("one/score?fpr=0.1&fpr=0.5", b"x", 400, "fpr is given more than once"),
        ("one/score?thresold=3", b"x", 400, "no parameter 'thresold'; did you mean threshold?"),
        ("one/score?colour=1", b"x", 400, "'colour'; choose from heat_map, fpr, threshold"),
    ],
)
def test_a_refusal_has_a_reason(
    url: str, query: str, body: bytes, status: int, message: str
) -> None:
    found, answer = ask(f"{url}/v1/{query}", body)
    assert found == status
    assert message in answer["error"]


@contextlib.contextmanager
def _client(url: str, *sent: bytes) -> Iterator[socket.socket]:
    """A client that has sent this so far."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        for each in sent:
            client.sendall(each)
        yield client


def _received(client: socket.socket) -> bytes:
    """All that arrives until the server closes."""
    return b"".join(iter(lambda: client.recv(2**16), b""))


def _head(path: str, *headers: str, method: str = "POST") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: x", *headers, "", "")).encode()


_SCORE = "/v1/one/score"


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        ((_head(_SCORE, "Content-Length: 1000"), b"x"), 408, "has not arrived within 0.5 seconds"),
        ((_head(_SCORE)[:20],), 408, "has not arrived within 0.5 seconds"),
        ((), 408, "has not arrived within 0.5 seconds"),
        # An answer, and half of the next request.
        ((_head("/healthz", method="GET") + _head(_SCORE)[:20],), 408, "within 0.5 seconds"),
        ((_head(_SCORE, "Content-Length: 1000000000000"),), 413, "bytes"),
        ((_head(_SCORE, "Content-Length: many"), b"x"), 400, "Invalid HTTP request"),
        ((_head(_SCORE, "Transfer-Encoding: chunked"), b"none\r\n"), 400, "Invalid HTTP request"),
        ((_head(_SCORE), b"\0\1"), 400, "Invalid HTTP request"),
        ((b"\x16\x03\x01 TLS",), 400, "Invalid HTTP request"),
    ],
)
def test_no_client_waits_for_ever(
    url: str, sent: tuple[bytes, ...], status: int, message: str
) -> None:
    began = time.monotonic()
    with _client(url, *sent) as client:
        answer = _received(client)
    assert time.monotonic() - began < 5
    head, _, body = answer[answer.rindex(b"HTTP/1.1") :].partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert message in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/v1/one/score", 405, "GET is not for this address, which takes POST"),
        ("/none", 404, "there is nothing at this address"),
    ],
)
def test_other_addresses_and_methods_are_refused_in_words(
    url: str, path: str, status: int, said: str
) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url + path, timeout=20)
    assert refused.value.code == status
    assert json.loads(refused.value.read())["error"].startswith(said)


@pytest.mark.parametrize(
    ("path", "status"), [(_SCORE, 413), ("/v1/three/score", 404), ("/", 405), ("/none", 404)]
)
def test_who_hears_of_nothing_before_all_is_sent_hears_of_a_refusal(
    url: str, path: str, status: int
) -> None:
    head = _head(path, "Content-Length: 10000000", "Connection: close")
    with _client(url, head, bytes(1000)) as client:
        time.sleep(0.7)  # By then the server has answered.
        for _ in range(10):
            client.sendall(bytes(999_900))
        assert _received(client).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ((_head(_SCORE, "Content-Length: 8"), b"no image"), 415),
        ((_head(_SCORE, "Content-Length: 9"), b"no image"), 400),
        ((_head(_SCORE)[:20],), 400),
    ],
)
def test_who_sends_no_more_may_still_listen(url: str, sent: tuple[bytes, ...], status: int) -> None:
    with _client(url, *sent) as client:
        client.shutdown(socket.SHUT_WR)
        assert _received(client).startswith(f"HTTP/1.1 {status} ".encode())


def test_who_does_not_read_is_given_up(url: str) -> None:
    with _client(url) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            client.sendall(10**6 * _head("/metrics", method="GET"))


def test_a_connection_too_many_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECTIONS", 1 - 64)
    with _client(url), _client(url) as client:
        assert _received(client).startswith(b"HTTP/1.1 503 ")


def test_who_cannot_be_answered_in_time_is_told_that_the_server_stops(
    predictor: Predictor, weave: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (weave / "test/spot/00.png").read_bytes()
    monkeypatch.setattr(server, "_LAST", 1)
    app = App({"one": predictor}, Limits(batch=1))
    app.ready = True
    of_arrays = Predictor.of_arrays
    with ThreadPoolExecutor(8) as pool, socket.create_server(("127.0.0.1", 0)) as listener:
        with running(app, listener):
            ask(f"{address_of(listener)}/score", content)

            def slow(predictor: Predictor, images: np.ndarray) -> Any:
                time.sleep(0.4)
                return of_arrays(predictor, images)

            monkeypatch.setattr(Predictor, "of_arrays", slow)
            asked = [pool.submit(ask, f"{address_of(listener)}/score", content) for _ in range(8)]
            while "ahl_waiting 8.0" not in ask(f"{address_of(listener)}/metrics")[1].decode():
                pass
            began = time.monotonic()
        assert time.monotonic() - began < 3
        answers = [each.result() for each in asked]
    assert {status for status, _ in answers} == {200, 503}
    assert all("stopping" in answer["error"] for status, answer in answers if status == 503)


def test_there_is_room_for_so_many() -> None:
    room = Room(3, "photographs")
    with room.of(2), room.of(1), pytest.raises(HTTPException, match=r"503.*too many photographs"):
        room.take(1)
    assert room.taken == 0


def _memory(process: subprocess.Popen) -> float:
    """The most MiB that a process has had."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_crowd_is_answered_or_refused_and_the_last_requests_too(
    finished: FinishedRun, weave: Path
) -> None:
    command = [sys.executable, "-m", "ahl_jax", "serve", str(finished.workdir), "--port", "0"]
    command += ["--max-waiting", "16", "--read-timeout", "2"]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(server.kill)
        assert server.stderr
        said = next(line for line in server.stderr if " at http://" in line)
        url = said.split(" at ")[1].strip()
        large = np.random.default_rng(0).integers(0, 255, (2000, 2000, 3), np.uint8)
        bodies = [
            (weave / "test/spot/00.png").read_bytes(), bomb(10_000), bomb(60_000), b"x",
            b"x" * 30_000_000, png(large),
        ]  # fmt: skip
        for body in bodies[-2:]:
            ask(f"{url}/score?heat_map=png", body)
        before = _memory(server)
        head = _head("/score", "Content-Length: 1000")
        slow = [
            stack.enter_context(_client(url, sent)) for sent in 8 * [head[:-20], head, head + b"x"]
        ]
        refused = []

        def answered(kind: int) -> int:
            while (status := ask(f"{url}/score?heat_map=png", bodies[kind])[0]) in (429, 503):
                refused.append(kind)
                time.sleep(0.2)
            return status

        turns = [0 if turn % 5 else turn // 5 % 6 for turn in range(500)]
        with ThreadPoolExecutor(32) as pool:
            statuses = list(pool.map(answered, turns))
        assert statuses == [[200, 413, 413, 415, 413, 200][kind] for kind in turns]
        assert refused
        for each in slow:
            assert _received(each).startswith(b"HTTP/1.1 408")
        # Four large pictures at once, and what the allocator keeps of them.
        assert _memory(server) - before < 500
        last: list[Answer] = []
        threads = [
            threading.Thread(target=lambda: last.append(ask(f"{url}/score", bodies[-1])))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        while "ahl_waiting 8.0" not in ask(f"{url}/metrics")[1].decode():
            assert len(last) < 8
        server.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert server.wait(timeout=10) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 5
        for thread in threads:
            thread.join()
        assert [status for status, _ in last] == [200] * 8
        said = server.stderr.read()
        assert "Traceback" not in said
        assert said.endswith("\nahl: stopped\n")
