"""Sources that are not as they were published: each is answered with one clear sentence."""

import shutil

import numpy as np
import pytest
from PIL import Image

from ahl_jax.common.errors import UserError
from ahl_jax.data.builders import builder_class
from ahl_jax.data.prepare import prepare
from ahl_jax.data.records import data_folder
from tests.data.builders.miniatures import ALL, mask, put


def remove(name):
    def change(root):
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def add(name, *size):
    return lambda root: put(root / name, *size)


def write(name, content):
    return lambda root: (root / name).write_bytes(content)


def edit(name, old, new):
    def change(root):
        text = (root / name).read_bytes()
        assert old in text
        (root / name).write_bytes(text.replace(old, new))

    return change


def move(name, to):
    return lambda root: (root / name).rename(root / to)


def link(name, to):
    def change(root):
        (root / name).unlink()
        (root / name).symlink_to(to)

    return change


def array(name, values):
    return lambda root: np.save(root / name, values)


STRIP = "2306881-210020u/0000_000_00.png"
LABELS = "Class3/Train/Label/Labels.txt"
BROKEN = {
    "a mask is missing": ("mvtec_ad", remove("screw/ground_truth/scratch/001_mask.png"),
                          r"ground_truth/scratch/001_mask\.png is missing"),
    "all masks are missing": ("mvtec_ad", remove("screw/ground_truth"), "_mask.png is missing"),
    "a mask too many": ("mvtec_ad", remove("screw/test/scratch/001.png"),
                        r"scratch/001_mask\.png is the mask of no image"),
    "an image too many": ("mvtec_ad", add("screw/train/good/extra.png"),
                          r"\(screw\) has 7 training normals where 6 were published"),
    "an image is missing": ("mvtec_ad", remove("screw/test/good/001.png"), "has 2 test normals"),
    "no test": ("mvtec_ad", remove("screw/test"), "screw/test/good is missing"),
    "a cut image": ("mvtec_ad", write("screw/train/good/001.png", b"\x89PNG\r\n\x1a\n"),
                    r"train/good/001\.png cannot be read as an image"),
    "a mask's size": ("mvtec_ad", lambda root: mask(
        root / "screw/ground_truth/scratch/001_mask.png", 40, 20, (0, 0, 9, 9)),
        r"001_mask\.png has 40 x 20 pixels, and the image it belongs to has 40 x 40"),
    "an image in another class": ("mvtec_ad", lambda root: [
        move(f"screw/{old}/001{end}.png", f"screw/{new}/009{end}.png")(root)
        for old, new, end in (("test/scratch", "test/thread_top", ""),
                              ("ground_truth/scratch", "ground_truth/thread_top", "_mask"))],
        "has 2 scratch where 3 were published"),
    "a link": ("mvtec_ad", link("screw/train/good/001.png", "/etc/hostname"), "is a link"),
    "aitex: no mask": ("aitex", remove("Mask_images/0003_002_00_mask.png"),
                       r"0003_002_00\.png has no mask 0003_002_00_mask\.png"),
    "aitex: no image": ("aitex", remove("Defect_images/0003_002_00.png"),
                        r"0003_002_00_mask\.png is the mask of no image"),
    "aitex: size": ("aitex", add(f"NODefect_images/{STRIP}", 4000, 256),
                    "4000 x 256 pixels where 4096 x 256 are expected"),
    "aitex: mask size": ("aitex", lambda root: mask(
        root / "Mask_images/0003_002_00_mask.png", 2048, 256, (0, 0, 9, 9)),
        "has 2048 x 256 pixels, and the image it belongs to has 4096 x 256"),
    "aitex: code": ("aitex", add("Defect_images/0300_099_01.png", 4096, 256), "no known defect"),
    "aitex: text": ("aitex", write("Mask_images/0003_002_00_mask.png", b"text"),
                    "cannot be read as an image"),
    "sdd: no mask": ("sdd", remove("kos02/Part1_label.bmp"), r"Part1_label\.bmp is missing"),
    "sdd: size": ("sdd", add("kos02/Part1.jpg", 30, 60, 1),
                  r"Part1_label\.bmp has 30 x 64 pixels, .* has 30 x 60"),
    "sdd: no image": ("sdd", remove("kos02/Part1.jpg"), "is the mask of no image"),
    "sdd: extra": ("sdd", add("kos01/Scratch.jpg"), "neither PartN nor PartN_label"),
    "sdd: item": ("sdd", remove("kos02"), "has 6 images where 9 were published"),
    "sdd: mask": ("sdd", lambda root: mask(root / "kos01/Part1_label.bmp", 30, 64),
                  "has 2 images with a defect where 3 were published"),
    "optical: class": ("optical", remove("Class7"), "has no Class7"),
    "optical: list": ("optical", remove(LABELS), r"Labels\.txt is missing"),
    "optical: line": ("optical", edit(LABELS, b"3\t0\t0003.PNG\t0\t0\r\n", b""),
                      r"0003\.PNG has no line in .*Labels\.txt"),
    "optical: fields": ("optical", edit(LABELS, b"1\t0\t0001.PNG", b"1\t7\t0001.PNG"),
                        r"line 2 of .*Labels\.txt is not"),
    "optical: out": ("optical", edit(LABELS, b"0002_label.PNG", b"../0001.PNG"), "line 3 of"),
    "optical: image": ("optical", remove("Class3/Train/0001.PNG"), r"0001\.PNG is missing"),
    "optical: mask": ("optical", remove("Class3/Train/Label/0002_label.PNG"), "is missing"),
    "optical: size": ("optical", add("Class3/Train/0002.PNG", 30, 20, 1),
                      r"0002_label\.PNG has 24 x 20 pixels, .* has 30 x 20"),
    "optical: extra": ("optical", add("Class3/Test/0099.PNG"), r"0099\.PNG has no line in"),
    "optical: label": ("optical", edit(LABELS, b"2\t1\t", b"2\t0\t"), "test normals where"),
    "headct: extra": ("headct", add("head_ct/head_ct/099.png"), r"099\.png has no line"),
    "headct: line": ("headct", edit("labels.csv", b"7, 0\n", b""), r"007\.png has no line"),
    "headct: image": ("headct", remove("head_ct/head_ct/004.png"), r"004\.png is missing"),
    "headct: value": ("headct", edit("labels.csv", b"7, 0\n", b"7, no\n"), "line 9 of"),
    "headct: no text": ("headct", write("labels.csv", b"\xff\xfe\x00\xd8"), "labels.csv"),
    "brainmri: image": ("brainmri", remove("yes/Y1.jpg"), "has 3 tumor where 4 were published"),
    "brainmri: extra": ("brainmri", add("no/extra.jpg"), "has 5 training normals where 4 were"),
    "brainmri: text": ("brainmri", write("no/0 no.jpg", b"<html>"), "not a PNG, JPEG"),
    "mastcam: suffix": ("mastcam", move("train_typical/mcam00001.npy", "train_typical/m.png"),
                        "not an .npy file"),
    "mastcam: size": ("mastcam", array("train_typical/mcam00001.npy", np.zeros((32, 64, 6))),
                      "has 32 x 64 x 6 values where 64 x 64 x 6 are expected"),
    "mastcam: extra": ("mastcam", array("test_typical/extra.npy", np.zeros((64, 64, 6))),
                       "has 5 test normals where 4 were published"),
    "mastcam: shape": ("mastcam", array("test_novel/drt/mcam90001.npy", np.zeros((4, 4, 2))),
                       "cannot be read as an image"),
    "mastcam: objects": ("mastcam", array("test_novel/drt/mcam90001.npy", np.array([[None]])),
                         "cannot be read as an image"),
    "mastcam: part": ("mastcam", remove("test_novel"), r"download .*test_novel\.zip"),
    "mastcam: classes": ("mastcam", lambda root: [
        shutil.rmtree(root / "test_novel" / kind) for kind in ("drt", "float", "veins")],
        "no folder per class"),
    "kvasir: extra": ("hyper_kvasir", add(
        "labeled-images/upper-gi-tract/pathological-findings/polyps/p.jpg"),
        "has 7 anomalies where 6 were published"),
    "kvasir: class": ("hyper_kvasir", remove(
        "labeled-images/upper-gi-tract/pathological-findings/barretts"), "has 0 barretts"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_said_in_one_sentence(case, source):
    name, change, message = BROKEN[case]
    root = source(name)
    change(root)
    with pytest.raises(UserError, match=message) as caught:
        prepare(name, root)
    assert "\n" not in str(caught.value)
    left = {path.name for path in (data_folder() / name).rglob("*")}
    assert not any(part.startswith(("incomplete", ".unpacked")) for part in left)
    assert "1.0.0" not in left


@pytest.mark.parametrize("name", ["mvtec_ad", "sdd", "headct"])
def test_a_source_with_other_counts_than_published_is_refused(name, tmp_path):
    ALL[name](tmp_path / "downloads")
    with pytest.raises(UserError, match="published"):
        prepare(name, tmp_path / "downloads")


def test_published_counts_of_mvtec_add_up():
    counts = builder_class("mvtec_ad").COUNTS.values()
    totals = [sum(each[part] for each in counts) for part in ("train", "good", "anomalies")]
    assert totals == [3629, 467, 1258]
    assert sum(len(each) - 3 for each in counts) == 73  # kinds of defects


def test_other_files_are_passed_over(source):
    root = source("mvtec_ad")
    (root / "screw/train/good/Thumbs.db").write_bytes(b"x")
    (root / "screw/train/good/._000.png").write_bytes(b"x")
    (root / "screw/readme.txt").write_text("x")
    Image.new("L", (4, 4)).save(root / "other.png")
    assert len(prepare("mvtec_ad", root)) == 2


def test_what_to_download_is_said(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for name, folder, message in (
        ("aitex", None, r"7z x.*https://www\.aitex\.es"),
        ("aitex", empty, r"Mask_images\.7z.*`manual_dir`"),
        ("sdd", tmp_path / "gone", "is not a folder"),
        ("screws", None, "no builder for 'screws'; there are: mvtec_ad"),
        ("../sdd", None, "no builder"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(name, folder)


def test_categories_are_checked(source):
    root = source("mvtec_ad")
    for name, category, message in (
        ("mvtec_ad", "pen", "no category 'pen'; it has: bottle, cable"),
        ("mvtec_ad", "../x", "no category"),
        ("mvtec_ad", "wood", "was not downloaded; there are: screw, tile"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(name, root, category)
    assert len(prepare("mvtec_ad", root, "tile")) == 1
    for name in ("elpv", "sdd"):
        with pytest.raises(UserError, match="no categories; leave out `category="):
            prepare(name, None, "mono")
