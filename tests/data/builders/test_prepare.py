import fcntl
import io
import resource
import signal
import socket
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import ahl_jax
from ahl_jax.common.errors import BadImageError, UserError
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.batches import iter_batches
from ahl_jax.data.images import image_digest, image_size, read_image
from ahl_jax.data.open import load_dataset
from ahl_jax.data.prepare import prepare
from ahl_jax.data.prepared import read_manifest
from ahl_jax.data.splits import make_split
from tests.data.builders.miniatures import put, tree


def pack(root, archive, form):
    """The whole folder as an archive."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    if form == "zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for path in sorted(root.rglob("*")):
                packed.write(path, path.relative_to(root))
    else:
        with tarfile.open(archive, f"w:{form}") as packed:
            packed.add(root, ".")  # as `tar c .` does


@pytest.mark.parametrize(
    ("name", "archive", "form"),
    [
        ("mvtec_ad", "mvtec_anomaly_detection.tar.xz", "xz"),
        ("sdd", "KolektorSDD.zip", "zip"),
        ("brainmri", "archive.zip", "zip"),
        ("hyper_kvasir", "hyper-kvasir-labeled-images.zip", "zip"),
        ("optical", "dagm.tar", ""),
        ("headct", "archive.zip", "zip"),
    ],
)
def test_an_archive_gives_what_its_folder_gives(
    name, archive, form, source, tmp_path, monkeypatch, data_folder
):
    root = source(name)
    folder = prepare(name, root)[-1]
    pack(root, tmp_path / "packed" / archive, form)
    monkeypatch.setenv("AHL_DATA", str(tmp_path / "other"))
    before = tree(tmp_path / "packed")
    other = prepare(name, tmp_path / "packed")[-1]
    assert read_manifest(other) == read_manifest(folder)
    assert tree(tmp_path / "packed") == before
    assert not (tmp_path / "other" / name / ".unpacked").exists()


def test_several_archives_and_a_loose_file(source, tmp_path):
    root = source("headct")
    with zipfile.ZipFile(root / "head_ct.zip", "w") as packed:
        for path in sorted((root / "head_ct").rglob("*.png")):
            packed.write(path, path.relative_to(root / "head_ct"))
            path.unlink()
    assert read_manifest(prepare("headct", root)[0])["train"]["counts"] == {"good": 4}


@pytest.mark.parametrize("member", ["../evil.png", "/evil.png", "a/../../evil.png", "C:/evil.png"])
@pytest.mark.parametrize("form", ["zip", "tar"])
def test_members_that_lead_out_are_refused(member, form, tmp_path, data_folder):
    home = tmp_path / "downloads"
    home.mkdir()
    if form == "zip":
        with zipfile.ZipFile(home / "KolektorSDD.zip", "w") as packed:
            packed.writestr(member, b"x")
    else:
        with tarfile.open(home / "KolektorSDD.tar", "w") as packed:
            packed.addfile(tarfile.TarInfo(member), io.BytesIO())
    with pytest.raises(UserError, match="leads out of it"):
        prepare("sdd", home)
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_links_in_archives_are_refused(form, tmp_path):
    home = tmp_path / "downloads"
    home.mkdir()
    if form == "zip":
        with zipfile.ZipFile(home / "KolektorSDD.zip", "w") as packed:
            info = zipfile.ZipInfo("kos01")
            info.external_attr = 0o120777 << 16
            packed.writestr(info, "/etc")
    else:
        with tarfile.open(home / "KolektorSDD.tar", "w") as packed:
            info = tarfile.TarInfo("kos01")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc"
            packed.addfile(info)
    with pytest.raises(UserError, match="link in it, kos01"):
        prepare("sdd", home)


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.xz"])
def test_damaged_archives_are_named(ending, tmp_path):
    (tmp_path / f"kolektorsdd.{ending}").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match=rf"kolektorsdd\.{ending} cannot be unpacked"):
        prepare("sdd", tmp_path)


def test_other_peoples_archives_are_left_alone(source, tmp_path):
    pack(source("sdd"), tmp_path / "packed" / "KolektorSDD.zip", "zip")
    for name in ("KolektorSDD2.zip", "KolektorSDD-boxes.zip", "holidays.zip", "thesis.tar.gz"):
        (tmp_path / "packed" / name).write_bytes(b"no archive at all")
    prepare("sdd", tmp_path / "packed")


@pytest.mark.parametrize("form", ["xz", "gz", "bz2"])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_archives_damaged_inside_are_named(form, damage, source, tmp_path):
    archive = tmp_path / "packed" / f"KolektorSDD.tar.{form}"
    pack(source("sdd"), archive, form)
    content = bytearray(archive.read_bytes())
    middle = len(content) // 2
    if damage == "cut":
        del content[middle:]
    else:
        content[middle : middle + 64] = bytes(64)
    archive.write_bytes(content)
    with pytest.raises(UserError, match=f"{archive.name} cannot be unpacked"):
        prepare("sdd", archive.parent)


def test_what_is_prepared_stays_and_the_rest_is_added(source):
    root = source("mvtec_ad")
    (folder,) = prepare("mvtec_ad", root, "tile")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare("mvtec_ad", None, "tile") == [folder]
    assert folder in prepare("mvtec_ad", root)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_kill_leaves_nothing_half_prepared(source, data_folder):
    root = source("brainmri")
    # Without what the package itself imports, JAX and all, which takes seconds.
    code = f"""
        import os, signal, sys, types
        from pathlib import Path
        sys.modules["ahl_jax"] = types.ModuleType("ahl_jax")
        sys.modules["ahl_jax"].__file__ = {ahl_jax.__file__!r}
        sys.modules["ahl_jax"].__path__ = [{str(Path(ahl_jax.__file__).parent)!r}]
        from ahl_jax.data.builders import base, sources
        from ahl_jax.data.builders.brainmri.brainmri_dataset_builder import Builder
        from ahl_jax.data.prepare import prepare
        Builder.COUNTS = {{}}
        whole, read = sources._whole, []

        def killed_at_the_sixth(path):
            read.append(path)
            if len(read) == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(path)

        sources._whole = killed_at_the_sixth
        prepare("brainmri", Path({str(root)!r}))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any("incomplete" in path.name for path in (data_folder / "brainmri").iterdir())
    with pytest.raises(UserError, match="not prepared"):
        load_dataset(DataConfig("brainmri"))
    prepare("brainmri", root)
    assert len(load_dataset(DataConfig("brainmri")).train_normals) == 4
    assert {path.name for path in (data_folder / "brainmri").iterdir()} == {".lock", "1.0.0"}


def test_tensorflow_is_never_imported(source):
    prepare("brainmri", source("brainmri"))
    image_digest(load_dataset(DataConfig("brainmri")).train_normals[0])
    assert "tensorflow_datasets" in sys.modules
    assert not [name for name in sys.modules if name.split(".")[0] == "tensorflow"]


def test_two_processes_do_not_prepare_the_same(source, data_folder):
    root = source("brainmri")
    (data_folder / "brainmri").mkdir(parents=True)
    with (data_folder / "brainmri" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            prepare("brainmri", root)


def test_a_folder_that_cannot_be_written_to_is_named(source, tmp_path, monkeypatch):
    root = source("brainmri")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("AHL_DATA", str(tmp_path / "file"))
    with pytest.raises(UserError, match="AHL_DATA"):
        prepare("brainmri", root)


def test_a_full_disk_is_named_and_leaves_nothing(source, data_folder):
    root = source("mastcam")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match=r"\(file too large\); make room") as caught:
            prepare("mastcam", root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert {path.name for path in (data_folder / "mastcam").iterdir()} == {".lock"}
    prepare("mastcam", root)


def test_nothing_is_written_elsewhere_nor_asked_of_the_net(
    source, tmp_path, data_folder, monkeypatch
):
    root = source("sdd")
    before = tree(root)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asks the net"))
    prepare("sdd", root)
    assert tree(root) == before
    assert {path.name for path in tmp_path.iterdir()} == {"downloads", "prepared"}
    assert {path.name for path in data_folder.iterdir()} == {"sdd"}


def test_categories_are_looked_up_among_those_prepared(source):
    prepare("mvtec_ad", source("mvtec_ad"))
    assert load_dataset(DataConfig("mvtec_ad", category="tile")).name == "tile"
    for category, message in (
        (None, "choose one with `category`: screw, tile"),
        ("wood", r"'wood' of mvtec_ad is not prepared.*screw, tile.*ahl data prepare mvtec_ad"),
        ("../mvtec_ad/tile", "not prepared"),
        ("", "not prepared"),
    ):
        with pytest.raises(UserError, match=message):
            load_dataset(DataConfig("mvtec_ad", category=category))


def test_a_folder_of_the_same_name_can_still_be_named(tmp_path, monkeypatch):
    put(tmp_path / "sdd/train/good/1.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"write \./sdd"):
        load_dataset(DataConfig("sdd"))
    assert len(load_dataset(DataConfig("./sdd")).train_normals) == 1


def test_records_are_read_by_many_threads_at_once(source):
    prepare("sdd", source("sdd"))
    records = load_dataset(DataConfig("sdd")).train_normals
    once = [image_digest(record) for record in records]
    with ThreadPoolExecutor(16) as pool:
        often = list(pool.map(image_digest, records * 20))
    assert often == once * 20
    images = np.concatenate([images for _, images in iter_batches(records, 16, 4)])
    np.testing.assert_array_equal(images, [read_image(record, 16) for record in records])


def test_a_damaged_record_is_named_and_can_be_left_out(source):
    (folder,) = prepare("sdd", source("sdd"))
    dataset = load_dataset(DataConfig("sdd"))
    (path,) = folder.glob("*train*record*")
    path.write_bytes(path.read_bytes()[:200])
    record = dataset.train_normals[0]
    for read in (lambda: read_image(record, 16), lambda: image_digest(record)):
        with pytest.raises(BadImageError, match="ahl data prepare") as caught:
            read()
        assert str(record) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert list(iter_batches(dataset.train_normals, 16, 4, skip_bad=True)) == []


def test_a_damaged_manifest_is_named(source):
    (folder,) = prepare("sdd", source("sdd"))
    (folder / "metadata.json").write_text('{"train": ')
    with pytest.raises(UserError, match="damaged"):
        load_dataset(DataConfig("sdd"))


def test_images_in_training_and_test_alike_are_left_out_of_the_test(source):
    root = source("mvtec_ad")
    twin = root / "screw/test/good/001.png"
    twin.write_bytes((root / "screw/train/good/002.png").read_bytes())
    prepare("mvtec_ad", root)
    config = DataConfig("mvtec_ad", category="screw", shots=2)
    dataset = load_dataset(config)
    assert image_size(dataset.test_normals[1]) == twin.stat().st_size
    with pytest.warns(UserWarning, match="left 1 image"):
        split = make_split(dataset, config, seed=0)
    names = [sample.path.name for sample in split.test if sample.anomaly_class is None]
    assert names == ["test/good/000.png", "test/good/002.png"]
