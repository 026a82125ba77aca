import os
import unicodedata
from pathlib import Path

import pytest

from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import DataConfig
from ahl_jax.data import folder as folder_module
from ahl_jax.data.folder import anomalies_below, check_good
from ahl_jax.data.open import load_dataset


def put(root, *names):
    """Files with distinct contents; finding them never opens them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def layout(root):
    put(root, "train/good/1.png", "train/good/2.png", "test/good/3.png", "test/cut/4.png")
    return root


def names(paths, root):
    return [path.relative_to(root).as_posix() for path in paths]


def test_mvtec_layout(tmp_path):
    root = layout(tmp_path / "bottle")
    put(root, "ground_truth/cut/4_mask.png", "test/hole/5.png", "readme.txt", "train/readme.png")
    (root / "test" / "empty").mkdir()
    dataset = load_dataset(DataConfig(str(root)))
    assert dataset.name == "bottle"
    assert names(dataset.train_normals, root) == ["train/good/1.png", "train/good/2.png"]
    assert names(dataset.test_normals, root) == ["test/good/3.png"]
    assert {k: names(v, root) for k, v in dataset.anomalies.items()} == {
        "cut": ["test/cut/4.png"],
        "hole": ["test/hole/5.png"],
    }
    assert list(dataset.anomalies) == ["cut", "hole"]


def test_classes_in_train_are_labelled(tmp_path):
    layout(tmp_path)
    put(tmp_path, "train/hair/a/5.png", "train/cut/6.png")
    (tmp_path / "train/none").mkdir()
    dataset = load_dataset(DataConfig(str(tmp_path)))
    assert {k: names(v, tmp_path) for k, v in dataset.labelled.items()} == {
        "cut": ["train/cut/6.png"],
        "hair": ["train/hair/a/5.png"],
    }
    assert list(dataset.anomalies) == ["cut"]


@pytest.mark.parametrize(("good", "bad"), [("good", "bad"), ("OK", "Ng"), ("Normal", "anomalous")])
def test_folders_of_good_and_bad_are_split(tmp_path, good, bad):
    put(tmp_path, *(f"{good}/{i}.png" for i in range(8)))
    put(tmp_path, f"{bad}/1.png", f"{bad}/cut/deep/2.png", f"{bad}/anomaly/3.png", "notes/4.png")
    dataset = load_dataset(DataConfig(str(tmp_path)))
    assert (len(dataset.train_normals), len(dataset.test_normals)) == (6, 2)
    assert len({*dataset.train_normals, *dataset.test_normals}) == 8
    assert {k: names(v, tmp_path / bad) for k, v in dataset.anomalies.items()} == {
        "anomaly": ["1.png", "anomaly/3.png"],
        "cut": ["cut/deep/2.png"],
    }
    assert f"the 8 images of {good} are normals" in dataset.note
    assert "nothing of notes is used" in dataset.note
    with pytest.raises(UserError, match="leave out `category="):
        load_dataset(DataConfig(str(tmp_path), category="cup"))
    # A split that there is goes before.
    layout(tmp_path)
    split = load_dataset(DataConfig(str(tmp_path)))
    assert (len(split.train_normals), split.note) == (2, "")


def test_a_folder_of_defects_has_no_good_parts(tmp_path):
    put(tmp_path, "new/hole/1.png", "new/bad/2.png", "new/bad/cut/3.png", "new/4.png")
    found = {k: names(v, tmp_path / "new") for k, v in anomalies_below(tmp_path / "new").items()}
    assert found == {
        "anomaly": ["4.png", "bad/2.png"],
        "cut": ["bad/cut/3.png"],
        "hole": ["hole/1.png"],
    }
    put(tmp_path, "new/OK/5.png")
    with pytest.raises(UserError, match="defects alone, and OK in it are good parts"):
        anomalies_below(tmp_path / "new")


def test_a_folder_of_good_parts_has_no_defects(tmp_path):
    put(tmp_path, "new/good/1.png", "new/monday/2.png")
    check_good(tmp_path / "new")
    put(tmp_path, "new/NG/3.png")
    with pytest.raises(UserError, match="good parts alone, and NG in it are defects"):
        check_good(tmp_path / "new")


def test_which_files_are_images(tmp_path):
    put(
        tmp_path, "train/good/a.PNG", "train/good/b.JpEg", "train/good/c.bmp", "train/good/d.TIF",
        "train/good/e.tiff", "train/good/f.npy", "train/good/g.jpg", "train/good/.h.png",
        "train/good/i.txt", "train/good/Thumbs.db", "train/good/png", "train/good/.cache/j.png",
        "train/good/k.png.part",
    )  # fmt: skip
    (tmp_path / "train/good/l.png").mkdir()
    os.mkfifo(tmp_path / "train/good/m.png")
    found = load_dataset(DataConfig(str(tmp_path))).train_normals
    assert [path.name for path in found] == [
        "a.PNG", "b.JpEg", "c.bmp", "d.TIF", "e.tiff", "f.npy", "g.jpg",
    ]  # fmt: skip


def test_folders_inside_a_class_belong_to_it(tmp_path):
    layout(tmp_path)
    put(tmp_path, "test/cut/b/2.png", "test/cut/b/a/1.png", "test/cut/a.png", "test/cut/z.png")
    cut = load_dataset(DataConfig(str(tmp_path))).anomalies["cut"]
    assert names(cut, tmp_path / "test/cut") == ["4.png", "a.png", "b/2.png", "b/a/1.png", "z.png"]


def test_names_in_any_script(tmp_path):
    root = layout(tmp_path / "part 1 é" / "部品")
    composed, decomposed = "fissuré", unicodedata.normalize("NFD", "fissuré")
    put(root, f"test/{decomposed}/ひび 1.png", "test/царапина/ä 2.png")
    dataset = load_dataset(DataConfig(str(root.parent), category="部品"))
    assert dataset.name == "部品"
    assert list(dataset.anomalies) == ["cut", composed, "царапина"]
    assert dataset.anomalies[composed][0].is_file()
    put(root, f"test/{composed}/other.png")
    assert len(load_dataset(DataConfig(str(root))).anomalies[composed]) == 2


def test_a_category_may_be_spelled_either_way(tmp_path):
    stored, typed = unicodedata.normalize("NFD", "clé"), unicodedata.normalize("NFC", "clé")
    layout(tmp_path / stored)
    layout(tmp_path / "other")
    assert load_dataset(DataConfig(str(tmp_path), category=typed)).name == typed


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    layout(tmp_path)
    put(tmp_path, *(f"test/{c}/{i}.png" for c in "xyz" for i in range(12)))
    before = load_dataset(DataConfig(str(tmp_path)))
    walk, iterdir = os.walk, Path.iterdir

    def backwards(*args, **kwargs):
        for parent, folders, files in walk(*args, **kwargs):
            folders.sort(reverse=True)
            yield parent, folders, sorted(files, reverse=True)

    monkeypatch.setattr(folder_module.os, "walk", backwards)
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(iterdir(self), reverse=True)))
    after = load_dataset(DataConfig(str(tmp_path)))
    assert after == before
    assert list(after.anomalies) == list(before.anomalies)


def test_one_category_needs_no_name(tmp_path):
    layout(tmp_path / "only")
    put(tmp_path, "notes/readme.txt")
    assert load_dataset(DataConfig(str(tmp_path))).name == "only"


def test_the_current_folder_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(layout(tmp_path / "here"))
    assert load_dataset(DataConfig(".")).name == "here"


@pytest.mark.parametrize("category", [None, "pen", "../out", "..", ".", "cup/", "/", "cup/train"])
def test_wrong_categories_are_answered_with_the_right_ones(tmp_path, category):
    layout(tmp_path / "out")
    for name in ("cup", "tray"):
        layout(tmp_path / "root" / name)
    with pytest.raises(UserError, match="cup, tray"):
        load_dataset(DataConfig(str(tmp_path / "root"), category=category))


def test_a_single_data_set_has_no_category(tmp_path):
    with pytest.raises(UserError, match="leave out `category="):
        load_dataset(DataConfig(str(layout(tmp_path)), category="cup"))


def test_other_layouts_are_explained(tmp_path):
    put(tmp_path, "good/1.png", "scratch/2.png")
    with pytest.raises(UserError, match="train/good"):
        load_dataset(DataConfig(str(tmp_path)))
    put(tmp_path, "file.png")
    for data in (tmp_path / "gone", tmp_path / "file.png"):
        with pytest.raises(UserError, match="elpv"):
            load_dataset(DataConfig(str(data)))


def test_links_inside_the_folder_are_followed_and_others_left_out(tmp_path):
    root = layout(tmp_path / "root")
    put(tmp_path, "secret/9.png")
    (root / "train/good/in.png").symlink_to(root / "train/good/1.png")
    (root / "train/good/out.png").symlink_to(tmp_path / "secret/9.png")
    (root / "train/good/gone.png").symlink_to(root / "nowhere.png")
    (root / "test/cut/out").symlink_to(tmp_path / "secret")
    (root / "test/cut/circle").symlink_to(root / "test")
    with pytest.warns(UserWarning, match=r"left out 3 link"):
        dataset = load_dataset(DataConfig(str(root)))
    assert [path.name for path in dataset.train_normals] == ["1.png", "2.png", "in.png"]
    assert [path.name for path in dataset.anomalies["cut"]] == ["4.png"]


@pytest.mark.parametrize("linked", ["cup", "cup/train", "cup/train/good", "cup/test/cut"])
def test_a_layout_folder_that_leads_elsewhere_is_refused(tmp_path, linked):
    root = tmp_path / "root"
    layout(root / "cup")
    (root / linked).rename(tmp_path / "elsewhere")
    (root / linked).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="leads out"):
        load_dataset(DataConfig(str(root), category="cup"))


def test_the_named_folder_itself_may_be_a_link(tmp_path):
    layout(tmp_path / "store")
    (tmp_path / "link").symlink_to(tmp_path / "store")
    assert len(load_dataset(DataConfig(str(tmp_path / "link"))).train_normals) == 2


def test_a_folder_that_may_not_be_listed_is_an_error(tmp_path, monkeypatch):
    # Permissions do not stop root, so the refusal is played.
    layout(tmp_path)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("cut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="cut cannot be listed"):
        load_dataset(DataConfig(str(tmp_path)))
