"""Formats that take another package, and files in formats that are not read."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from ahl_jax.common.errors import BadImageError
from ahl_jax.config.settings import DataConfig
from ahl_jax.data import formats
from ahl_jax.data.formats import FORMATS, Format, unread_in_words
from ahl_jax.data.images import read_image, read_pixels, seen_size
from ahl_jax.data.open import load_dataset

GREY = np.arange(64, dtype=np.uint16).reshape(8, 8) * 16


def dicom(path, stored=GREY, **elements):
    """A grey DICOM file; elements by their keywords."""
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = elements.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    data.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelRepresentation = int(stored.dtype.kind == "i")
    data.PixelData = stored.tobytes()
    for name, value in elements.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def test_dicom_is_read_as_it_is_seen(tmp_path):
    path = tmp_path / "a.dcm"
    whole = read_pixels(dicom(path))[..., 0]
    np.testing.assert_array_equal(whole, np.rint(GREY / GREY.max() * 255))
    # Value 200 is 400 - 300 = 100 after rescaling, where the window from 0 to 200 has its middle.
    window = {"RescaleSlope": 2, "RescaleIntercept": -300, "WindowCenter": 100, "WindowWidth": 200}
    shown = read_pixels(dicom(path, VOILUTFunction="LINEAR_EXACT", **window))[..., 0]
    wanted = np.clip((2.0 * GREY - 300) / 200, 0, 1) * 255
    np.testing.assert_allclose(shown, wanted, rtol=0, atol=0.51)
    inverted = dicom(
        path, VOILUTFunction="LINEAR_EXACT", PhotometricInterpretation="MONOCHROME1", **window
    )
    np.testing.assert_array_equal(read_pixels(inverted)[..., 0], 255 - shown)
    signed = dicom(path, (GREY - 500).astype(np.int16))
    np.testing.assert_array_equal(read_pixels(signed)[..., 0], whole)


def test_dicom_that_is_no_picture_or_too_large_is_refused(tmp_path):
    path = tmp_path / "a.dcm"
    with pytest.raises(BadImageError, match="pixels"):
        read_image(dicom(path, Rows=60000, Columns=60000), 8)
    with pytest.raises(BadImageError, match="compressed as JPEG-LS Lossless"):
        read_image(_with_syntax(dicom(path), b"1.2.840.10008.1.2.4.80"), 8)
    path.write_bytes(dicom(path).read_bytes()[:-20])
    with pytest.raises(BadImageError, match="less than expected"):
        read_image(path, 8)


def test_dicom_is_not_inflated(tmp_path, monkeypatch):
    path = _with_syntax(dicom(tmp_path / "a.dcm"), b"1.2.840.10008.1.2.1.99")
    monkeypatch.setattr(zlib, "decompress", lambda *_: pytest.fail("it inflates"))
    with pytest.raises(BadImageError, match="deflated as a whole; save it without"):
        read_image(path, 8)


def _with_syntax(path, uid):
    """A file that says to be compressed."""
    old = b"1.2.840.10008.1.2.1\0"
    before, content = path.read_bytes().split(b"UI" + len(old).to_bytes(2, "little") + old)
    uid += b"\0" * (len(uid) % 2)
    # The length of the file's meta information.
    at = before.index(b"UL\4\0") + 4
    length = int.from_bytes(before[at : at + 4], "little") + len(uid) - len(old)
    before = before[:at] + length.to_bytes(4, "little") + before[at + 4 :]
    path.write_bytes(before + b"UI" + len(uid).to_bytes(2, "little") + uid + content)
    return path


def test_heic_is_read_the_right_way_up(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    rows, columns = np.mgrid[:64, :96]
    array = np.stack([rows * 3, columns * 2, rows + columns], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in (("a.heic", {}), ("b.HEIC", {"exif": exif.tobytes()})):
        heif.from_pillow(Image.fromarray(array)).save(tmp_path / name, quality=100, **options)
    upright, turned = (read_pixels(tmp_path / name).astype(int) for name in ("a.heic", "b.HEIC"))
    assert np.abs(upright - array).max() < 8
    np.testing.assert_array_equal(turned, np.rot90(upright, 3))
    assert seen_size(tmp_path / "b.HEIC")[0] == (64, 96)


def test_a_gif_gives_its_first_picture(tmp_path):
    first, second = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert (read_pixels(tmp_path / "a.gif") == (255, 0, 0)).all()


@pytest.fixture
def without_packages(monkeypatch):
    """As where nothing but Pillow is installed."""
    read = [each for each in FORMATS if not each.package]
    missing = {s: each for each in FORMATS if each.package for s in each.suffixes}
    monkeypatch.setattr(formats, "_MISSING", missing)
    suffixes = frozenset(s for each in read for s in each.suffixes)
    for module in ("formats", "folder"):
        monkeypatch.setattr(f"ahl_jax.data.{module}.SUFFIXES", suffixes)
    monkeypatch.setattr("ahl_jax.data.images.ENCODED", tuple(each.name for each in read[:-1]))
    monkeypatch.setattr(formats, "_READ", tuple(read))


@pytest.mark.usefixtures("without_packages")
def test_files_that_are_not_read_are_counted(tmp_path):
    names = ["a.HEIC", "b.heic", "c.cr2", "IM0001", "d.png", "e.txt", "Thumbs.db", ".f.heic"]
    for name in names:
        for part in ("train/good", "test/good"):
            (tmp_path / part).mkdir(parents=True, exist_ok=True)
            (tmp_path / part / name).touch()
    (tmp_path / "train/good/g.dng").mkdir()
    said = r"^skipped 4 .heic \(pip install pillow-heif\), 2 (.cr2|without a suffix), 2 .* in "
    with pytest.warns(UserWarning, match=said) as warned:
        dataset = load_dataset(DataConfig(str(tmp_path)))
    assert len(warned) == 1
    assert [path.name for path in dataset.train_normals] == ["d.png"]
    assert unread_in_words([tmp_path / "train/good/d.png"]) == ""


@pytest.mark.usefixtures("without_packages")
def test_what_reads_a_file_is_named_with_it(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    with pytest.raises(BadImageError, match="to read such files, run pip install pillow-heif"):
        read_image(tmp_path / "a.heic", 8)


def test_a_pillow_without_a_feature_is_told():
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "WEBP")
    assert Format("WEBP", (".webp",), feature="webp").is_read
    old = Format("NEW", (".new",), feature="not_known_yet")
    assert not old.is_read
    assert old.remedy == "pip install --upgrade pillow"
