import csv
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.masks import find_masks
from ahl_jax.data.open import load_dataset

HEADER = "path,label,class,split\n"


def listed(folder, text, *names, file="images.csv"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (folder / file).write_text(text, encoding="utf-8")
    return DataConfig(str(folder / file))


def names(paths, folder):
    return [path.relative_to(folder).as_posix() for path in paths]


def test_a_list_of_images(tmp_path):
    text = (
        """class , path,label,split,remark
    ,a.png,normal,train,x
    good,b/c.jpg,0,test,"quoted, with a comma"
    scratch,d.png,anomaly,test,x
    ,e.png,1,,x
    scratch,"f, g.png",anomaly,,
    """.replace("\n    ", "\n").rstrip()
        + "\n"
    )
    config = listed(tmp_path, text, "a.png", "b/c.jpg", "d.png", "e.png", "f, g.png")
    dataset = load_dataset(config)
    assert dataset.name == "images"
    assert names(dataset.train_normals, tmp_path) == ["a.png"]
    assert names(dataset.test_normals, tmp_path) == ["b/c.jpg"]
    assert {k: names(v, tmp_path) for k, v in dataset.anomalies.items()} == {
        "anomaly": ["e.png"],
        "scratch": ["d.png", "f, g.png"],
    }


@pytest.mark.parametrize("first", ["", "sep=,\n", '"SEP=,"\n'])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_list_of_a_spreadsheet(tmp_path, delimiter, first):
    text = f"\ufeff{first}{HEADER.title()}" + 'a.png,0,,train\n"b, c.png",NG,hole,Train\n,,,\n'
    quoted = text.replace("b, c", "b# c").replace(",", delimiter).replace("#", ",")
    config = listed(tmp_path, quoted.replace("\n", "\r\n"), "a.png", "b, c.png")
    dataset = load_dataset(config)
    assert len(dataset.train_normals) == 1
    assert {k: names(v, tmp_path) for k, v in dataset.labelled.items()} == {"hole": ["b, c.png"]}
    (tmp_path / "b, c.png").unlink()
    with pytest.raises(UserError, match=f"line {3 + bool(first)} of .* names 'b, c.png', which"):
        load_dataset(config)


@pytest.mark.skipif(os.sep != "/", reason="there it is the separator")
def test_a_list_made_on_windows_names_files_here(tmp_path):
    text = "path,label,split,mask\nin\\a.png,good,train,\nin\\b.png,bad,test,m\\b.png\n"
    config = listed(tmp_path, text + "c\\d.png,good,test,\n", "in/a.png", "in/b.png", "m/b.png")
    (tmp_path / "c\\d.png").touch()
    dataset = load_dataset(config)
    (image,) = dataset.anomalies["anomaly"]
    normals = names((*dataset.train_normals, *dataset.test_normals), tmp_path)
    assert (normals, image) == (["in/a.png", "c\\d.png"], tmp_path / "in/b.png")
    assert find_masks([image], tmp_path / "images.csv") == {0: tmp_path / "m/b.png"}
    for name in (r"..\images.png", r"\etc\hostname.png"):
        with pytest.raises(UserError, match="write one inside"):
            load_dataset(listed(tmp_path, f"path,label\n{name},good\n"))


def test_a_list_without_splits_is_split(tmp_path):
    labels = ["good", "OK", "normal", "0"] * 5 + ["bad", "ng", "anomaly", "1", "Anomalous"]
    files = [f"{i:02}.png" for i in range(len(labels))]
    text = "label,path\n" + "".join(
        f"{label},{file}\n" for label, file in zip(labels, files, strict=True)
    )
    dataset = load_dataset(listed(tmp_path, text, *files))
    assert (len(dataset.train_normals), len(dataset.test_normals)) == (15, 5)
    both = names([*dataset.train_normals, *dataset.test_normals], tmp_path)
    assert sorted(both) == files[:20]
    assert {k: names(v, tmp_path) for k, v in dataset.anomalies.items()} == {"anomaly": files[20:]}
    assert not dataset.labelled


def test_a_list_may_name_masks(tmp_path, monkeypatch):
    text = "path,label,mask\na.png,good,\nb.png,good,\nc.png,bad,m/c.bmp\n"
    config = listed(tmp_path, text, "a.png", "b.png", "c.png", "m/c.bmp")
    (image,) = load_dataset(config).anomalies["anomaly"]
    assert find_masks([image], tmp_path / "images.csv") == {0: tmp_path / "m/c.bmp"}
    monkeypatch.chdir(tmp_path)
    assert find_masks([Path("c.png")], tmp_path / "images.csv") == {0: tmp_path / "m/c.bmp"}
    (tmp_path / "m/c.bmp").unlink()
    with pytest.raises(UserError, match=r"line 4 .*'m/c.bmp', which is not in"):
        load_dataset(config)


BAD = {
    "label": ("a.png,odd,,train", "line 2 of .* has the label 'odd'; write normal or anomaly"),
    "split": ("a.png,normal,,validation", "the split 'validation'; write train or test"),
    "no split": ("a.png,normal,,", "leaves the split of normals empty, and there are fewer than"),
    "seen": ("a.png,anomaly,x,held-out", "the split 'held-out'; write train or test"),
    "class": ("a.png,normal,scratch,train", "a normal of class 'scratch'"),
    "good": ("a.png,anomaly,good,test", "an anomaly of class 'good'"),
    "twice": ("a.png,normal,,train\na.png,normal,,test", "line 3 of .* 'a.png' once more"),
    "gone": ("b.png,normal,,train", "names 'b.png', which is not in"),
    "folder": ("f.png,normal,,train", "which is not in"),
    "kind": ("a.txt,normal,,train", "not an image"),
    "empty": (",normal,,train", "the path ''"),
    "few": ("a.png,normal,train", "does not have 4 values"),
    "many": ("a.png,normal,,train,x", "does not have 4 values"),
    "up": ("../out.png,normal,,train", r"the path '\.\./out\.png'; write one inside"),
    "inner up": ("x/../../out.png,normal,,train", "write one inside"),
    "absolute": ("/etc/hostname.png,normal,,train", "write one inside"),
    "link": ("link.png,normal,,train", "a link out of"),
    "nothing": ("", "lists no images"),
    "quote": ('"a.png,normal,,train', "cannot be read as a CSV file"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_named(tmp_path, case):
    line, message = BAD[case]
    home = tmp_path / "home"
    config = listed(home, f"{HEADER}{line}\n", "a.png", "a.txt")
    (tmp_path / "out.png").write_bytes(b"")
    (home / "f.png").mkdir()
    (home / "link.png").symlink_to(tmp_path / "out.png")
    with pytest.raises(UserError, match=message) as caught:
        load_dataset(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column 'path'"),
        (b"path,class,split\n", "no column 'label'.*path,label,class,split,mask"),
        (b"\xff\xfe\x00", "cannot be read as a CSV file"),
        ("path,label\nä.png,good\n".encode("cp1252"), "not in UTF-8.; save it as CSV UTF-8"),
        (b"path,label,class,split\n\x00\n", "images.csv"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "images.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_dataset(DataConfig(str(tmp_path / "images.csv")))


def test_a_list_has_no_categories(tmp_path):
    config = listed(tmp_path, HEADER)
    with pytest.raises(UserError, match="leave out `category='x'`"):
        load_dataset(DataConfig(config.data, category="x"))


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=20),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_name_that_a_file_can_have_can_be_listed(tmp_path_factory, stems):
    folder = tmp_path_factory.mktemp("list")
    # Outer blanks are not part of a path in a list, and some file systems fold names.
    stems = {unicodedata.normalize("NFC", f"x{stem}").casefold(): f"x{stem}" for stem in stems}
    wanted = []
    for stem in stems.values():
        try:
            (folder / f"{stem}.png").write_bytes(b"")
        except OSError:
            continue
        wanted.append(f"{stem}.png")
    with (folder / "list.csv").open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(["path", "label", "class", "split"])
        writer.writerows([name, "normal", "", "train"] for name in wanted)
    found = load_dataset(DataConfig(str(folder / "list.csv"))).train_normals
    assert [os.path.basename(path) for path in found] == wanted
