"""Files that strangers have changed: what is read of them is right or refused in one sentence."""

import csv
import io
import json
import random
import resource
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from ahl_jax import UserError, preset
from ahl_jax.backbones import read_torch_weights
from ahl_jax.common.files import writing
from ahl_jax.config.settings import DataConfig
from ahl_jax.data import records
from ahl_jax.data.builders.archives import unpack
from ahl_jax.data.formats import FORMATS
from ahl_jax.data.images import image_mode, read_image, seen_size
from ahl_jax.data.masks import read_mask
from ahl_jax.data.open import load_dataset
from ahl_jax.data.prepare import prepare
from ahl_jax.data.prepared import load as load_prepared
from ahl_jax.data.remembered import Row
from ahl_jax.inference.results import read_table
from ahl_jax.inference.threshold import read_calibration
from ahl_jax.storage.checkpoints import Checkpoints
from ahl_jax.storage.workdir import Workdir
from tests.data.builders.miniatures import ALL
from tests.data.test_formats import dicom
from tests.goldens.inputs import GOLDENS
from tests.strangers.mutations import mutated

QUICK, ALL_OF_THEM = 300, 10_000
_SECONDS, _BYTES = 20, 2 * 2**30
"""For one file, and in all."""


class Kind(NamedTuple):
    """Whole files in a folder, and what reads them."""

    files: list[Path]
    read: Callable[[Path], object]
    """Of one of the files, each time from the start."""


def _weights(folder: Path) -> Kind:
    for name in ("zip.pth", "legacy.pth", "training_legacy.pth"):
        shutil.copy(GOLDENS / name, folder)
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((0, 2), np.int64)}
    (folder / "w.safetensors").write_bytes(safetensors.numpy.save(tensors))

    def read(path: Path) -> None:
        found = read_torch_weights(path)
        assert sum(each.copy().nbytes for each in found.values()) <= 16 * path.stat().st_size

    return Kind(sorted(folder.iterdir()), read)


def _picture() -> Image.Image:
    rows, columns = np.mgrid[:40, :48]
    return Image.fromarray(np.stack([rows * 6, columns * 5, rows + columns], -1).astype(np.uint8))


def _images(folder: Path) -> Kind:
    for each in FORMATS:
        path = folder / f"a{each.suffixes[0]}"
        if each.name == "NPY":
            np.save(path, np.asarray(_picture()))
        elif each.name == "DICOM":
            dicom(path)
        elif each.is_read:
            if each.name == "HEIF":
                import pillow_heif

                pillow_heif.register_heif_opener()
            _picture().save(path, each.name)
    Image.fromarray(np.asarray(_picture()).astype(np.uint16)[..., 0] * 99).save(folder / "b.tif")
    _picture().quantize(16).save(folder / "b.png")

    def read(path: Path) -> None:
        assert read_image(path, 32).shape == (32, 32, 3)
        assert min(seen_size(path)[0]) > 0
        assert image_mode(path)

    return Kind(sorted(folder.iterdir()), read)


def _masks(folder: Path) -> Kind:
    _picture().save(folder.parent / "seen.png")
    for name in ("m.png", "m.bmp", "m.tif"):
        _picture().convert("L").point(lambda value: 255 * (value > 99)).save(folder / name)

    def read(path: Path) -> None:
        found = read_mask(folder.parent / "seen.png", path)
        assert found is None or found.shape == (40, 48)

    return Kind(sorted(folder.iterdir()), read)


def _archives(folder: Path) -> Kind:
    content = {"data/a.txt": b"1" * 700, "data/b/c.txt": b"2" * 20, "d.txt": b""}
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in content.items():
            packed.writestr(name, text)
    for form in ("", "gz", "xz", "bz2"):
        with tarfile.open(folder / f"x.tar.{form}".rstrip("."), f"w:{form}") as tar:
            for name, text in content.items():
                member = tarfile.TarInfo(name)
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text))

    def read(path: Path) -> None:
        alone, into = folder.parent / "alone", folder.parent / "into"
        for old in (alone, into):
            shutil.rmtree(old, ignore_errors=True)
        alone.mkdir()
        shutil.copy(path, alone)
        before = {*folder.parent.iterdir()}
        # Names that the file system refuses are told of by `prepare`.
        with writing(into, "rename them"):
            unpack(alone, ["x"], into)
        assert {*folder.parent.iterdir()} <= before | {into}
        assert not any(each.is_symlink() for each in into.rglob("*"))

    return Kind(sorted(folder.iterdir()), read)


def _prepared(folder: Path) -> Kind:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AHL_DATA", str(folder))
        from ahl_jax.data.builders import builder_class

        patch.setattr(builder_class("headct"), "COUNTS", {})
        ALL["headct"](folder.parent / "headct")
        prepare("headct", folder.parent / "headct")

    def read(path: Path) -> None:
        records._open.cache_clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AHL_DATA", str(folder))
            for sample in load_prepared(DataConfig("headct")).samples():
                assert read_image(sample.path, 8).shape == (8, 8, 3)

    return Kind(sorted(path for path in folder.rglob("*.*") if path.is_file()), read)


def _run(folder: Path) -> Kind:
    run = Workdir(folder)
    run.claim(preset("debug", str(folder), shots=3), overwrite=False)
    (folder / "checkpoint").mkdir()
    run.write_images([Row("a.png", "cut", "train", "0123456789abcdef"), Row("b", "", "test", "0")])
    run.write_history([{"epoch": i, "w_1": 0.5, "seconds": 2.5} for i in (1, 2)])
    run.write_metrics({"auc_roc": 0.9, "epochs": 2})
    run.write_calibration('{"scores": [13.4, 90.6], "locations": [0.5, 1.5], "folds": 2}\n')
    # Who knows what a checksum is writes the right one.
    described = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({"config": described["config"], "data": "x"}))

    def read(path: Path) -> None:
        run.config()
        run.data_digest()
        assert isinstance(run.images(), list)
        assert len(run.read_history(2)) == 2
        assert isinstance(run.metrics(), dict | None)
        calibration = read_calibration(folder / "checkpoint")
        assert calibration is None or np.isfinite(calibration.threshold())

    return Kind(sorted(path for path in folder.rglob("*.*") if path.is_file()), read)


_COLUMNS = ["path", "score", "probability", "decision", "head", "defect_area", "defect_left",
            "defect_top", "defect_width", "defect_height", "sha256"]  # fmt: skip


def _tables(folder: Path) -> Kind:
    with (folder / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerow(["/x/a.png", 1.5, 0.25, "normal", 2, "", "", "", "", "", "0" * 16])
        writer.writerow(["b.png", -1.5, "", "", 2, 0.5, 1, 2, 3, 4, "f" * 16])
    rows = ["path,label,class,split,mask", "a.png,normal,,train,", "b.png,1,cut,test,a.png"]
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    for name in ("a.png", "b.png"):
        _picture().save(folder / name)

    def read(path: Path) -> None:
        if path.name == "scores.csv":
            assert all(np.isfinite(float(row[1])) or row[1] for row in read_table(path, _COLUMNS))
        else:
            samples = load_dataset(DataConfig(str(path))).samples()
            assert not any("cut" in str(sample.path) for sample in samples)

    return Kind(sorted(folder.glob("*.csv")), read)


def _checkpoints(folder: Path) -> Kind:
    with Checkpoints(folder) as checkpoints:
        checkpoints.save_trunk("resnet18", {"a": {"kernel": np.arange(6, dtype=np.float32)}})
        model = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.ones(3, np.int32)}
        checkpoints.save(1, inference={"model": model}, state={"x": np.ones(3)}, metadata={"n": 1})

    def read(path: Path) -> None:
        with Checkpoints(folder, read_only=True) as checkpoints:
            name, params = checkpoints.load_trunk()
            arrays, metadata = checkpoints.restore_inference()
        assert name == "resnet18"
        assert metadata == {"n": 1}
        assert (arrays["model"]["w"] == model["w"]).all()
        assert (params["a"]["kernel"] == np.arange(6)).all()

    return Kind(sorted(path for path in folder.rglob("*") if path.is_file()), read)


KINDS: dict[str, tuple[Callable[[Path], Kind], int]] = {
    "weights": (_weights, 20),
    "images": (_images, 30),
    "masks": (_masks, 10),
    "archives": (_archives, 15),
    "prepared": (_prepared, 3),
    "run": (_run, 15),
    "tables": (_tables, 5),
    "checkpoints": (_checkpoints, 2),
}
"""What makes files, and their share of all, in percent."""


def _tried(kind: str, folder: Path, count: int) -> int:
    """Change files and read them; how many were refused."""
    make, share = KINDS[kind]
    whole = folder / "whole"
    whole.mkdir()
    files, read = make(whole)
    for path in files:
        read(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for number in range(count * share // 100):
        path = files[number % len(files)]
        content = path.read_bytes()
        draw = random.Random(f"{kind} {number}")
        path.write_bytes(mutated(content, draw))
        began, said = time.monotonic(), ""
        try:
            read(path)
        except UserError as error:
            refused, said = refused + 1, str(error)
        except BaseException as error:
            raise AssertionError(f"number {number}, {path.name}") from error
        finally:
            path.write_bytes(content)
        assert time.monotonic() - began < _SECONDS, (number, path)
        assert "\n" not in said, (number, path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (peak - before) * 1024 < _BYTES
    return refused


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    assert _tried(kind, tmp_path, QUICK)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_changed_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    assert _tried(kind, tmp_path, ALL_OF_THEM)
