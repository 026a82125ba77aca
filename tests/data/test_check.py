"""What ``ahl data check`` finds, and what it does not take for copies."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ahl_jax.cli.main import main
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.check import Check, Group, check, same_pictures
from ahl_jax.data.images import image_mode
from ahl_jax.data.open import load_dataset
from ahl_jax.data.records import InMemory

Capture = pytest.CaptureFixture[str]


def part(seed: int, noise: float = 6) -> Image.Image:
    """A photograph of one of many equal parts in one place, with its own dirt and noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:240, :320]
    grey = np.where((rows - 120) ** 2 + (columns - 160) ** 2 < 90**2, 60.0, 190.0)
    grey += 20 * np.sin(columns / 9) * (rows > 60)
    for top, left in rng.integers(0, 200, (4, 2)):
        grey[top : top + 12, left : left + 12] -= 25
    return Image.fromarray(np.clip(grey + rng.normal(0, noise, grey.shape), 0, 255).astype("u1"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Clean data of twelve parts."""
    places = [("train/good", 6), ("test/good", 3), ("test/dent", 3)]
    seed = 0
    for folder, count in places:
        (tmp_path / folder).mkdir(parents=True)
        for i in range(count):
            part(seed).save(tmp_path / folder / f"{i}.png")
            seed += 1
    return tmp_path


def found(data: Path) -> Check:
    return check(load_dataset(DataConfig(str(data))), data, progress=False)


def names(group: Group) -> list[str]:
    return ["/".join(Path(str(image.path)).parts[-3:]) for image in group.images]


def thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("F").resize((32, 32), Image.Resampling.BILINEAR))


def test_clean_data_is_counted(data: Path) -> None:
    result = found(data)
    assert result.clean
    assert result.counts == {"train: good": 6, "test: good": 3, "test: dent": 3}
    assert result.sizes == {(320, 240): 12}
    assert result.modes == {"grey": 12}
    assert (result.few, result.drawn) == ({"dent": 3}, 3)


def test_unreadable_files_are_named_with_the_reason(data: Path) -> None:
    (data / "train/good/0.png").write_bytes(b"")
    result = found(data)
    assert [path for path, _ in result.unreadable] == [data / "train/good/0.png"]
    assert "empty file" in result.unreadable[0][1]
    assert "skip" not in result.unreadable[0][1]
    assert not result.clean
    assert sum(result.modes.values()) == 11
    assert result.counts["train: good"] == 6


def test_masks_that_cannot_be_used_are_named(data: Path) -> None:
    masks = data / "ground_truth/dent"
    masks.mkdir(parents=True)
    Image.new("L", (320, 240), 255).save(masks / "0_mask.png")
    Image.new("L", (32, 24), 255).save(masks / "1_mask.png")
    (masks / "2_mask.png").write_bytes(b"no picture")
    result = found(data)
    assert [path.name for path, _ in result.masks] == ["1.png", "2.png"]
    assert "32 x 24 pixels" in result.masks[0][1]
    assert not result.clean


def test_copies_are_of_three_kinds(data: Path) -> None:
    first = data / "train/good/0.png"
    (data / "test/good/copy.png").write_bytes(first.read_bytes())
    Image.open(data / "train/good/1.png").save(data / "train/good/as.bmp")
    half = Image.open(data / "train/good/2.png").resize((160, 120), Image.Resampling.LANCZOS)
    half.save(data / "test/dent/half.jpg", quality=75)
    file, pixels, near = found(data).groups
    assert names(file) == ["train/good/0.png", "test/good/copy.png"]
    assert (file.kind, file.leaks, file.contradicts) == ("file", True, False)
    assert names(pixels) == ["train/good/1.png", "train/good/as.bmp"]
    assert (pixels.kind, pixels.leaks, pixels.contradicts) == ("pixels", False, False)
    assert names(near) == ["train/good/2.png", "test/dent/half.jpg"]
    assert (near.kind, near.leaks, near.contradicts) == ("near", True, True)


def test_a_test_normal_that_is_an_anomaly_too_contradicts_without_a_leak(data: Path) -> None:
    (data / "test/dent/copy.png").write_bytes((data / "test/good/0.png").read_bytes())
    (group,) = found(data).groups
    assert (group.leaks, group.contradicts) == (False, True)


def test_all_copies_of_a_picture_are_one_group(data: Path) -> None:
    first = data / "train/good/0.png"
    (data / "train/good/copy.png").write_bytes(first.read_bytes())
    for quality in (50, 90):
        Image.open(first).save(data / f"test/good/q{quality}.jpg", quality=quality)
    (group,) = found(data).groups
    assert len(group.images) == 4
    assert group.kind == "near"


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("share", [0.5, 0.75, 1, 2])
def test_scaled_and_compressed_pictures_are_the_same(
    tmp_path: Path, quality: int, share: float
) -> None:
    image = part(0)
    other = image.resize((round(320 * share), round(240 * share)), Image.Resampling.BICUBIC)
    other.save(tmp_path / "other.jpg", quality=quality)
    both = np.stack([thumbnail(image), thumbnail(Image.open(tmp_path / "other.jpg"))])
    assert len(set(same_pictures(both).tolist())) == 1


def test_equal_parts_in_one_place_are_different_pictures() -> None:
    many = np.stack([thumbnail(part(seed, noise=2)) for seed in range(60)])
    correlations = np.corrcoef(many.reshape(60, -1))[np.triu_indices(60, 1)]
    assert correlations.max() > 0.98  # They are alike.
    assert len(set(same_pictures(many).tolist())) == 60


def test_a_picture_with_a_defect_drawn_into_it_is_another_picture() -> None:
    image = part(0)
    marked = image.copy()
    marked.paste(150, (42, 42, 54, 52))
    both = np.stack([thumbnail(image), thumbnail(marked)])
    assert np.corrcoef(both.reshape(2, -1))[0, 1] > 0.999
    assert np.abs(both[0] - both[1]).mean() < 0.8
    assert len(set(same_pictures(both).tolist())) == 2


def test_blank_and_faint_images_are_not_taken_for_each_other() -> None:
    rng = np.random.default_rng(0)
    blank = np.full((3, 32, 32), 250.0) + np.arange(3)[:, None, None] / 10
    faint = 128 + rng.normal(0, 0.3, (5, 32, 32))
    assert len(set(same_pictures(np.concatenate([blank, faint])).tolist())) == 8


def test_blocks_agree_with_pairs_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 12, 90)
    thumbnails = rng.uniform(0, 255, (12, 32, 32))[pictures] + rng.normal(0, 0.3, (90, 32, 32))
    monkeypatch.setattr("ahl_jax.data.check._BLOCK", 7)
    monkeypatch.setattr("ahl_jax.data.check._PAIRS", 5)
    numbers = same_pictures(thumbnails.astype(np.float16))
    same = pictures[:, None] == pictures
    np.testing.assert_array_equal(numbers[:, None] == numbers, same)


def test_nothing_to_compare() -> None:
    assert same_pictures(np.zeros((0, 32, 32))).tolist() == []


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [
        (np.zeros((4, 5), np.uint8), "grey"),
        (np.zeros((4, 5), bool), "grey"),
        (np.zeros((4, 5), np.uint16), "16 bit"),
        (np.zeros((4, 5, 3), np.uint8), "RGB"),
        (np.zeros((4, 5, 4), np.uint8), "with alpha"),
    ],
)
def test_modes_of_pictures(tmp_path: Path, pixels: np.ndarray, mode: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert image_mode(tmp_path / "a.png") == mode


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [
        (np.zeros((4, 5, 1), np.uint8), "grey"),
        (np.zeros((4, 5, 3), np.uint8), "RGB"),
        (np.zeros((5, 5, 6), np.uint8), "6 channels"),
        (np.zeros((4, 5), np.uint16), "16 bit"),
        (np.zeros((4, 5), np.float32), "floating point"),
    ],
)
def test_modes_of_arrays(tmp_path: Path, pixels: np.ndarray, mode: str) -> None:
    np.save(tmp_path / "a.npy", pixels)
    assert image_mode(tmp_path / "a.npy") == mode
    assert image_mode(InMemory("a", pixels)) == mode


def test_the_command_ends_with_0_for_clean_data(data: Path, capsys: Capture) -> None:
    main(["data", "check", str(data)])
    out, err = capsys.readouterr()
    assert "Clean: " in out
    assert "320 x 240 (12)" in out
    assert "grey (12)" in out
    assert "All anomalies are fewer than --shots 10 takes: 3" in out
    assert "12 of 12" in err


def test_the_command_lists_what_it_finds_and_ends_with_1(data: Path, capsys: Capture) -> None:
    (data / "test/good/2.png").write_text("no image")
    for i, folder in enumerate(("test/dent", "test/good")):
        source = (data / f"train/good/{i}.png").read_bytes()
        (data / folder / "copy.png").write_bytes(source)
    Image.open(data / "test/dent/0.png").save(data / "test/dent/0.bmp")
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", str(data)])
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert "Cannot be read: 1 image" in out
    assert "test/good/2.png" in out
    assert "Both normal and anomaly: 1 picture" in out
    assert "the same file in training and in the test:" in out
    assert "In training and in the test: 1 picture" in out
    assert "More than once: 1 picture" in out
    assert "equal pixels:" in out
    assert "Clean" not in out


def test_the_command_shows_twenty_pictures_unless_all_are_asked_for(
    data: Path, capsys: Capture
) -> None:
    for i in range(23):
        for copy in "ab":
            part(100 + i).save(data / f"train/good/{i}{copy}.png")
    lengths = []
    for more in ([], ["--all"]):
        with pytest.raises(SystemExit):
            main(["data", "check", str(data), *more])
        out = capsys.readouterr().out
        assert "More than once: 23 pictures" in out
        assert ("and 3 more, which --all lists" in out) == (not more)
        lengths.append(len(out.splitlines()))
    assert lengths[1] - lengths[0] == 3 * 3 - 1


def test_the_command_checks_each_category_by_itself(textures: Path, capsys: Capture) -> None:
    main(["data", "check", str(textures)])
    out = capsys.readouterr().out
    assert out.count("Clean: ") == 2
    main(["data", "check", str(textures), "--category", "grid"])
    assert "carpet" not in capsys.readouterr().out


def test_the_command_refuses_what_is_no_data(tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", str(tmp_path / "none")])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1
