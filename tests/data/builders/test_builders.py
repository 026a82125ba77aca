from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.model_selection import train_test_split

from ahl_jax.config.settings import DataConfig
from ahl_jax.data.builders import NAMES, builder_class
from ahl_jax.data.images import read_image
from ahl_jax.data.masks import find_masks, read_mask
from ahl_jax.data.open import load_dataset
from ahl_jax.data.prepare import prepare
from ahl_jax.data.prepared import read_manifest
from tests.data.builders.miniatures import ALL, EXPECTED, decoded, put


def load(name):
    return load_dataset(DataConfig(name, category="screw" if name == "mvtec_ad" else None))


def examples(folder, split):
    return list(tfds.builder_from_directory(folder).as_data_source(split))


@pytest.mark.parametrize("name", ALL)
def test_a_miniature_is_prepared_and_read(name, source):
    folder = prepare(name, source(name))[0]
    train, test = EXPECTED[name]
    dataset = load(name)
    assert len(dataset.train_normals) == train
    assert len(dataset.test_normals) == test["good"]
    assert {"good": test["good"]} | {k: len(v) for k, v in dataset.anomalies.items()} == test
    assert list(dataset.anomalies) == sorted(dataset.anomalies)
    records = [*dataset.train_normals, *dataset.test_normals, *sum(dataset.anomalies.values(), ())]
    assert len(set(records)) == len(records)
    assert len({record.read() for record in records}) == len(records)
    for record in records:
        assert read_image(record, 32).std() > 5
    # What TFDS reads is what the manifest says.
    for split in ("train", "test"):
        images = read_manifest(folder)[split]["images"]
        found = [
            [e["name"].decode(), e["anomaly_class"].decode(), len(e["image"])]
            for e in examples(folder, split)
        ]
        assert found == images


def test_there_is_a_builder_for_every_name():
    assert set(ALL) | {"elpv"} == set(NAMES)
    for name in NAMES:
        builder = builder_class(name)
        assert builder.name == name
        assert builder.PAGE.startswith("https://")


def test_who_uses_a_builder_with_tfds_is_told_what_to_download(source, tmp_path):
    root, empty = source("brainmri"), tmp_path / "empty"
    empty.mkdir()
    made = builder_class("brainmri")(data_dir=tmp_path / "tfds", file_format="array_record")
    for folder, message in (
        (empty, "Download archive.zip from https://www.kaggle.com"),
        (root, ""),
    ):
        config = tfds.download.DownloadConfig(manual_dir=folder)
        with pytest.raises(AssertionError, match=message) if message else nullcontext():
            made.download_and_prepare(download_dir=tmp_path / "tfds", download_config=config)
    assert made.as_data_source("train")[0]["image"]


@pytest.mark.parametrize("name", ["mvtec_ad", "brainmri", "mastcam", "hyper_kvasir", "headct"])
def test_whole_images_keep_their_bytes(name, source):
    root = source(name)
    folder = prepare(name, root)[0]
    files = {path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for split in ("train", "test"):
        for example in examples(folder, split):
            assert example["image"] in files
            assert not example["ground_truth"] or example["ground_truth"] in files


@pytest.mark.parametrize(("name", "with_masks"), [("mvtec_ad", 6), ("optical", 20), ("sdd", 6)])
def test_every_anomaly_has_its_mask(name, with_masks, source):
    folder = prepare(name, source(name))[0]
    test = examples(folder, "test")
    assert all(bool(e["ground_truth"]) == bool(e["anomaly_class"]) for e in test)
    assert sum(bool(e["ground_truth"]) for e in test) == with_masks
    for example in test:
        if example["ground_truth"]:
            marked = decoded(example["ground_truth"])
            assert marked.any()
            assert marked.shape[:2] == decoded(example["image"]).shape[:2]
    dataset = load(name)
    records = [record for some in dataset.anomalies.values() for record in some]
    masks = find_masks(records, folder)
    assert len(records) == len(masks) == with_masks
    assert all(read_mask(records[i], mask) is not None for i, mask in masks.items())
    assert find_masks(dataset.test_normals, folder) == {}


def test_mvtec_keeps_its_split_and_prepares_what_was_downloaded(source):
    root = source("mvtec_ad")
    folders = prepare("mvtec_ad", root)
    assert [folder.parent.name for folder in folders] == ["screw", "tile"]
    names = [record.name for record in load("mvtec_ad").train_normals]
    assert names == [f"train/good/{i:03}.png" for i in range(6)]


def test_archives_of_single_categories_lie_side_by_side(source, tmp_path):
    root = source("mvtec_ad")
    for category in ("screw", "tile"):
        outer = tmp_path / "apart" / category
        outer.mkdir(parents=True)
        (root / category).rename(outer / category)
    assert len(prepare("mvtec_ad", tmp_path / "apart")) == 2


def test_the_folder_of_one_category_can_be_named(source):
    folders = prepare("mvtec_ad", source("mvtec_ad") / "tile")
    assert [folder.parent.name for folder in folders] == ["tile"]


def test_aitex_squares_are_cut_where_they_say(source):
    root = source("aitex")
    folder = prepare("aitex", root)[0]
    found = {e["name"].decode(): e for e in examples(folder, "train") + examples(folder, "test")}
    faulty = sorted(name for name in found if name.startswith("Defect"))
    # The second fault of 0044 crosses a border; 0106 has an empty mask and 0100 none; the end of
    # 0094, where its other fault is, is narrower than a square.
    assert faulty == [
        "Defect_images/0003_002_00.png#0", "Defect_images/0044_019_04.png#0",
        "Defect_images/0044_019_04.png#1", "Defect_images/0044_019_04.png#15",
        "Defect_images/0094_027_05.png#4",
    ]  # fmt: skip
    for name, example in found.items():
        path, _, i = name.partition("#")
        box = slice(int(i) * 256, int(i) * 256 + 256)
        strip = np.asarray(Image.open(root / path))
        np.testing.assert_array_equal(decoded(example["image"]), strip[:, box])
    marked = decoded(found["Defect_images/0044_019_04.png#0"]["ground_truth"])
    assert marked.shape == (256, 256)
    assert np.argwhere(marked).min(0).tolist() == [0, 250]
    assert np.argwhere(marked).max(0).tolist() == [8, 255]


def test_normals_are_split_in_the_sources_order(source):
    prepare("aitex", source("aitex"))
    dataset = load("aitex")
    strips = ("2306881-210020u/0000_000_00.png", "2306894-210033u/0001_000_01.png")
    names = [f"NODefect_images/{strip}#{i}" for strip in strips for i in range(16)]
    train, test = train_test_split(names, test_size=0.25, random_state=42)
    assert [record.name for record in dataset.train_normals] == train
    assert [record.name for record in dataset.test_normals] == test


def test_sdd_thirds_cover_the_image_and_only_the_marked_one_is_a_defect(source):
    root = source("sdd")
    folder = prepare("sdd", root)[0]
    found = {e["name"].decode(): e for e in examples(folder, "train") + examples(folder, "test")}
    thirds = [decoded(found[f"kos02/Part1.jpg#{i}"]["image"]) for i in range(3)]
    whole = np.asarray(Image.open(root / "kos02/Part1.jpg"))
    np.testing.assert_array_equal(np.concatenate(thirds), whole)
    # Rows 20 to 24 are marked, and 21 is the first cut: the fault is in the first two thirds.
    kinds = Counter(name[-2:] for name, e in found.items() if e["anomaly_class"])
    assert kinds == {"#0": 3, "#1": 3}


def test_optical_takes_the_class_from_the_texture_and_the_label_from_the_list(source):
    prepare("optical", source("optical"))
    dataset = load("optical")
    assert [record.name for record in dataset.anomalies["Class10"]] == [
        "Class10/Train/0002.PNG", "Class10/Test/0005.PNG",
    ]  # fmt: skip


def test_mastcam_reads_the_first_three_channels(source):
    root = source("mastcam")
    prepare("mastcam", root)
    record = load("mastcam").train_normals[0]
    array = np.load(root / record.name)
    np.testing.assert_array_equal(read_image(record, 64), array[..., :3])
    assert read_image(record, 64).tobytes() == read_image(root / record.name, 64).tobytes()


def test_brainmri_takes_one_of_the_two_copies(source):
    root = source("brainmri")
    put(root / "brain_tumor_dataset/no/deeper copy only.jpg")
    prepare("brainmri", root)
    assert len(load("brainmri").train_normals) == 4


@pytest.mark.slow
def test_elpv_prepared_is_elpv_from_the_package():
    pytest.importorskip("elpv_dataset")
    from ahl_jax.data import prepared

    prepare("elpv")
    mine, package = prepared.load(DataConfig("elpv")), load_dataset(DataConfig("elpv"))
    for one, other in (
        (mine.train_normals, package.train_normals),
        (mine.test_normals, package.test_normals),
        *((mine.anomalies[kind], package.anomalies[kind]) for kind in package.anomalies),
    ):
        assert [record.read() for record in one] == [path.read_bytes() for path in other]
    assert list(mine.anomalies) == list(package.anomalies)
