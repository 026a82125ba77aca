"""Small sources in the layouts that the real ones are downloaded in."""

import io
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def put(path, width=24, height=20, channels=3, **options):
    """An image whose content its path decides, in the format of its suffix."""
    parts = path.parts[-4:]
    rng = np.random.default_rng(zlib.crc32("/".join(parts).encode()))
    small = rng.integers(0, 256, (4, max(4, width // 64), channels), dtype=np.uint8).squeeze()
    large = Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)
    path.parent.mkdir(parents=True, exist_ok=True)
    large.save(path, **options)
    return path


def mask(path, width=24, height=20, box=None):
    """A black image with a white box."""
    image = Image.new("L", (width, height))
    if box:
        image.paste(255, box)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def mvtec_ad(root, categories=("screw", "tile")):
    for category in categories:
        home = root / category
        for i in range(6):
            put(home / f"train/good/{i:03}.png", 40, 40)
        for kind in ("good", "scratch", "thread_top"):
            for i in range(3):
                put(home / f"test/{kind}/{i:03}.png", 40, 40)
                if kind != "good":
                    mask(home / f"ground_truth/{kind}/{i:03}_mask.png", 40, 40, (3, 3, 9, 9))
        (home / "license.txt").write_text("CC BY-NC-SA 4.0")


def aitex(root):
    def strip(path, width=4096):
        put(root / path, width, 256, 1, compress_level=1)

    strip("NODefect_images/2306881-210020u/0000_000_00.png")
    strip("NODefect_images/2306894-210033u/0001_000_01.png")
    strips = {
        "0003_002_00": [(100, 10, 140, 30)],
        "0044_019_04": [(250, 0, 260, 9), (4000, 5, 4096, 256)],
        "0106_010_03": [None],
        "0094_027_05": [(3700, 0, 3796, 256), (1024, 0, 1280, 1)],
    }
    for name, boxes in strips.items():
        width = 3796 if name.startswith("0094") else 4096
        strip(f"Defect_images/{name}.png", width)
        for i, box in enumerate(boxes, 1):
            number = i if len(boxes) > 1 else ""
            mask(root / f"Mask_images/{name}_mask{number}.png", width, 256, box)
    strip("Defect_images/0100_025_08.png")


def sdd(root):
    for item in ("kos01", "kos02", "kos03"):
        for i in range(3):
            faulty = i == 1
            put(root / f"{item}/Part{i}.jpg", 30, 64, 1)
            mask(root / f"{item}/Part{i}_label.bmp", 30, 64, (2, 20, 4, 25) if faulty else None)


def optical(root):
    for number in range(1, 11):
        for half, first in (("Train", 1), ("Test", 4)):
            home = root / f"Class{number}" / half
            lines = ["1"]
            for i in range(first, first + 3):
                put(home / f"{i:04}.PNG", channels=1)
                faulty = i == first + 1
                lines.append(f"{i}\t{int(faulty)}\t{i:04}.PNG\t0\t0")
                if faulty:
                    lines[-1] = f"{i}\t1\t{i:04}.PNG\t1\t{i:04}_label.PNG"
                    mask(home / f"Label/{i:04}_label.PNG", box=(1, 1, 5, 5))
            (home / "Label" / "Labels.txt").write_text("\r\n".join(lines) + "\r\n")


def headct(root):
    for i in range(12):
        put(root / f"head_ct/head_ct/{i:03}.png")
    rows = [f"{i}, {int(i < 6)}" for i in range(12)]
    (root / "labels.csv").write_text("\n".join(["id, hemorrhage", *rows]) + "\n")


def brainmri(root):
    for home in (root, root / "brain_tumor_dataset"):
        for i in range(6):
            put(home / "no" / f"{i} no.jpg")
        for name in ("Y1.jpg", "Y2.JPG", "Y3.jpeg", "Y4.png"):
            put(home / "yes" / name)


def mastcam(root):
    def array(path):
        rng = np.random.default_rng(zlib.crc32(str(path).encode()))
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / path, rng.integers(0, 256, (64, 64, 6), dtype=np.uint8))

    for part in ("train_typical", "validation_typical", "test_typical"):
        for i in range(4):
            array(f"{part}/mcam{i:05}.npy")
    for i, kind in enumerate(("drt", "drt", "float", "veins")):
        array(f"test_novel/{kind}/mcam9{i:04}.npy")
        array(f"test_novel/all/mcam9{i:04}.npy")


def hyper_kvasir(root):
    home = root / "labeled-images/upper-gi-tract"
    for kind in ("pylorus", "z-line"):
        for i in range(4):
            put(home / f"anatomical-landmarks/{kind}/{kind}{i}.jpg")
    for kind in ("barretts", "esophagitis-a"):
        for i in range(3):
            put(home / f"pathological-findings/{kind}/{kind}{i}.jpg")
    put(root / "labeled-images/lower-gi-tract/anatomical-landmarks/cecum/c.jpg")


ALL = {
    name: globals()[name]
    for name in (
        "mvtec_ad", "aitex", "sdd", "optical", "headct", "brainmri", "mastcam", "hyper_kvasir",
    )
}  # fmt: skip

# Training normals; then the test's images by class.
EXPECTED = {
    "mvtec_ad": (6, {"good": 3, "scratch": 3, "thread_top": 3}),
    "aitex": (24, {"good": 8, "Broken_end": 1, "Fuzzyball": 3, "Knots": 1}),
    "sdd": (15, {"good": 6, "defect": 6}),
    "optical": (30, {"good": 10} | {f"Class{i}": 2 for i in range(1, 11)}),
    "headct": (4, {"good": 2, "hemorrhage": 6}),
    "brainmri": (4, {"good": 2, "tumor": 4}),
    "mastcam": (4, {"good": 4, "drt": 2, "float": 1, "veins": 1}),
    "hyper_kvasir": (6, {"good": 2, "barretts": 3, "esophagitis-a": 3}),
}


def published(builder, expected):
    """The counts of a miniature, in the place of the real source's."""
    train, test = expected
    names = [config.name for config in builder.BUILDER_CONFIGS] or [""]
    anomalies = sum(test.values()) - test["good"]
    return {name: {"train": train, **test, "anomalies": anomalies} for name in names}


def decoded(content):
    """The pixels of an encoded image."""
    return np.asarray(Image.open(io.BytesIO(content)))


def tree(folder):
    """All files below a folder and what is in them."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }
