"""Density's settings compared on training data, on two tiny data sets."""

from pathlib import Path

import numpy as np
import pytest

from ahl_jax import Config, UserError, preset
from ahl_jax.backbones import load_trunk
from ahl_jax.detectors.whitening import Whitening, fit_whitening
from ahl_jax.features import Store, extract
from ahl_jax.features.pooling import global_averages
from ahl_jax.features.split import load_split
from ahl_jax.run.choices import left_out_auc
from experiments import cross_validate


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> str:
    words = ["cross_validate", "--quick", "--out", str(out), "--seeds", "0", "1", *arguments]
    monkeypatch.setattr("sys.argv", words)
    cross_validate.main()
    (file,) = out.iterdir()
    assert file.name == "cross_validate_quick.md"
    return file.read_text()


def test_a_row_per_combination_and_a_column_per_data_set(
    textures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_up(config: Config, whitening: Whitening, normals: np.ndarray, seen: np.ndarray):
        assert len(normals) == 20
        assert normals.shape[1] == seen.shape[1] == len(whitening.averages)
        poolings = normals.shape[1] // 1328
        assert whitening.averages.shape == (poolings * 1328, 1328)
        grid = config.data.category == "grid"
        return (
            poolings / 100
            + (config.seed + config.detector.groups + 4 * grid) / 10
            + len(seen) / 100
        )

    monkeypatch.setattr(cross_validate, "left_out_auc", made_up)
    monkeypatch.setattr(cross_validate, "DEFAULT_ROW", (*cross_validate.DEFAULT_ROW[:3], 1))
    choice = ("--groups", "1", "3", "--levels", "4", "--views", "1", "--shots", "4", "1")
    text = run(monkeypatch, tmp_path, "--data", str(textures), *choice)
    head = "| trunk | levels | groups | views | poolings | textures/carpet | textures/grid | mean |"
    assert [line for line in text.splitlines() if line.startswith(("##", "| "))] == [
        "## 4 labelled anomalies",
        head,
        "| efficientnet_lite0 | 4 | 1 | 1 | 1 | 0.2000 | 0.6000 | 0.4000 |",
        "| efficientnet_lite0 | 4 | 1 | 1 | 3 | 0.2200 | 0.6200 | 0.4200 |",
        "| efficientnet_lite0 \\* | 4 | 3 | 1 | 1 | 0.4000 | 0.8000 | 0.6000 |",
        "| efficientnet_lite0 \\* | 4 | 3 | 1 | 3 | 0.4200 | 0.8200 | 0.6200 |",
        "## 1 labelled anomaly",
        head,
        "| efficientnet_lite0 | 4 | 1 | 1 | 1 | 0.1700 | 0.5700 | 0.3700 |",
        "| efficientnet_lite0 | 4 | 1 | 1 | 3 | 0.1900 | 0.5900 | 0.3900 |",
        "| efficientnet_lite0 \\* | 4 | 3 | 1 | 1 | 0.3700 | 0.7700 | 0.5700 |",
        "| efficientnet_lite0 \\* | 4 | 3 | 1 | 3 | 0.3900 | 0.7900 | 0.5900 |",
    ]


@pytest.mark.slow
def test_the_figure_is_what_the_views_are_chosen_by(
    weave: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = ("--groups", "2", "--levels", "1", "--views", "2", "--shots", "4")
    choice += ("--poolings", "1")
    text = run(monkeypatch, tmp_path, "--data", str(weave), *choice)
    trunk, aucs = load_trunk("efficientnet_lite0"), []
    for seed in (0, 1):
        own = {"limit": 24, "image_size": 192, "levels": 1, "views": 2, "shots": 4, "groups": 2}
        config = preset("density", str(weave), seed=seed, held_out=0.0, **own)
        split = load_split(config)
        kinds = (split.train_normals, [sample.path for sample in split.seen])
        maps = [extract(k, trunk, config.features, Store(), progress=False)[0] for k in kinds]
        normals, seen = map(global_averages, maps)
        whitening = fit_whitening(normals, 2, trunk.parts)
        aucs.append(left_out_auc(config, whitening, normals, seen))
    assert f"| efficientnet_lite0 | 1 | 2 | 2 | 1 | {np.mean(aucs):.4f} |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shots", "0"), "`shots` 1 or more"),
        (("--groups",), "every option needs a value"),
        (("--shots", "50"), "fewer than the 50"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    weave: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        run(monkeypatch, tmp_path, "--data", str(weave), *arguments)
