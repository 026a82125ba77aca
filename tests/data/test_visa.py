import pytest
from sklearn.model_selection import train_test_split

from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import DataConfig
from ahl_jax.data.open import load_dataset


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(str(path).encode())


def visa(root, categories=("candle", "pcb1"), split=True):
    lines = ["object,split,label,image,mask"]
    for category in categories:
        for i in range(8):
            image = f"{category}/Data/Images/Normal/{i:04}.JPG"
            put(root / image)
            lines.append(f"{category},{'test' if i in (2, 5) else 'train'},normal,{image},")
        for i in range(3):
            image = f"{category}/Data/Images/Anomaly/{i:03}.JPG"
            mask = f"{category}/Data/Masks/Anomaly/{i:03}.png"
            put(root / image)
            put(root / mask)
            lines.append(f"{category},test,anomaly,{image},{mask}")
    if split:
        (root / "split_csv").mkdir()
        (root / "split_csv/1cls.csv").write_text("\n".join(lines) + "\n")
    return root


def stems(paths):
    return [path.stem for path in paths]


def test_its_own_split(tmp_path):
    dataset = load_dataset(DataConfig(str(visa(tmp_path)), category="pcb1"))
    assert dataset.name == "pcb1"
    assert stems(dataset.train_normals) == ["0000", "0001", "0003", "0004", "0006", "0007"]
    assert stems(dataset.test_normals) == ["0002", "0005"]
    assert {k: stems(v) for k, v in dataset.anomalies.items()} == {"anomaly": ["000", "001", "002"]}
    assert all("pcb1" in path.parts for path in dataset.train_normals)


@pytest.mark.parametrize("inside", [False, True])
def test_the_layout_without_the_split(tmp_path, inside):
    root = visa(tmp_path, split=False)
    config = DataConfig(str(root / "candle")) if inside else DataConfig(str(root), "candle")
    dataset = load_dataset(config)
    assert dataset.name == "candle"
    train, test = train_test_split([f"{i:04}" for i in range(8)], test_size=0.25, random_state=42)
    assert (stems(dataset.train_normals), stems(dataset.test_normals)) == (train, test)
    assert stems(dataset.anomalies["anomaly"]) == ["000", "001", "002"]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("category", [None, "pen", "../candle", ""])
def test_the_categories_are_named(tmp_path, split, category):
    root = visa(tmp_path, split=split)
    with pytest.raises(UserError, match="candle, pcb1"):
        load_dataset(DataConfig(str(root), category=category))


def test_one_category_needs_no_name(tmp_path):
    assert load_dataset(DataConfig(str(visa(tmp_path, ("candle",))))).name == "candle"
    with pytest.raises(UserError, match="leave out `category="):
        load_dataset(DataConfig(str(tmp_path / "candle"), category="candle"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("candle/Data/Images/Normal/0000.JPG", "candle/../../x.JPG", "write one inside of"),
        ("Normal/0003.JPG", "Normal/0033.JPG", "line 5 of .*is not in"),
        ("candle,train,normal", "candle,validation,normal", "'validation'"),
        ("candle,test,anomaly", "candle,test,bad", "'bad'"),
        ("object,", "category,", "no column 'object'"),
    ],
)
def test_a_broken_split_is_named(tmp_path, old, new, message):
    table = visa(tmp_path) / "split_csv/1cls.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        load_dataset(DataConfig(str(tmp_path), category="candle"))


def test_too_few_normals_are_named(tmp_path):
    put(tmp_path / "Data/Images/Normal/0000.JPG")
    with pytest.raises(UserError, match="Normal there are fewer than two"):
        load_dataset(DataConfig(str(tmp_path)))
