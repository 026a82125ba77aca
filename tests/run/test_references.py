"""The references of the tables, which train nothing."""

import csv
import json

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from experiments.tables import references
from experiments.tables.references import gaussian, patchcore
from tests.run.test_tables import Script, script  # noqa: F401 (a fixture)


def maps(rng: np.random.Generator, count: int) -> tuple[np.ndarray, ...]:
    return tuple(rng.normal(size=(count, s, s, 3)).astype(np.float32) for s in (4, 2))


def test_the_gaussian_is_the_mahalanobis_distance_of_the_averages() -> None:
    rng = np.random.default_rng(0)
    # So many that there is next to nothing to shrink.
    normals, images = maps(rng, 20000), maps(rng, 5)
    normals, images = ((a * [1, 5, 30], b) for a, b in (normals, images))
    a, b = (np.concatenate([m.mean((1, 2)) for m in part], axis=1) for part in (normals, images))
    wanted = cdist(b, a.mean(0, keepdims=True), "mahalanobis", VI=np.linalg.inv(np.cov(a.T)))[:, 0]
    found = gaussian(normals)(images)
    np.testing.assert_allclose(found / found[0], wanted / wanted[0], rtol=0.02)


def test_patchcore_finds_the_location_that_is_farthest_from_every_normal_one() -> None:
    rng = np.random.default_rng(1)
    normals = maps(rng, 6)
    # A normal image is in memory, location by location.
    np.testing.assert_allclose(patchcore(normals)(normals), 0, atol=1e-2)
    odd = tuple(scale[:2].copy() for scale in normals)
    odd[0][1, 1, 2] += [90, 0, 0]
    same, far = patchcore(normals)(odd)
    assert same == pytest.approx(0, abs=1e-2)
    # The ninth part of it is in each neighbourhood that has the location.
    assert far == pytest.approx(10, abs=2)


def test_scales_lie_one_above_the_other() -> None:
    large, small = np.zeros((1, 4, 4, 3), np.float32), np.zeros((1, 2, 2, 3), np.float32)
    small[0, 0, 0] = 9
    found = references._locations((large, small))
    assert found.shape == (1, 4, 4, 6)
    assert found[0, 0, 0, 3] > found[0, 3, 3, 3] > 0
    assert (found[..., :3] == 0).all()


def test_a_reference_is_a_row_of_the_table_and_scored_once(
    script: Script,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ("--methods", "PatchCore", "Gaussian")
    rows, text = script("table4_supervision", *arguments)
    assert [row["method"] for row in rows] == ["PatchCore"] * 2 + ["Gaussian"] * 2
    assert all(float(row["auc_roc"]) > 0.6 for row in rows)
    assert "## weave: general setting" in text
    runs = sorted((script.tmp_path / "runs").rglob("metrics.json"))
    found = [json.loads(path.read_text()) for path in runs]
    # 9 normals and the 14 anomalies less 4 labelled ones, which no reference sees.
    assert [(m["n_seen"], m["n_test"]) for m in found] == [(0, 19)] * 4
    monkeypatch.setattr(references, "load_trunk", None)
    assert script("table4_supervision", *arguments) == (rows, text)


def test_the_fully_supervised_rows_see_every_class(script: Script) -> None:  # noqa: F811
    script("table4_supervision", "--methods", "FS-DRA", "--seeds", "0")
    (run,) = (script.tmp_path / "runs").rglob("metrics.json")
    metrics = json.loads(run.read_text())
    assert metrics["n_seen"] == 8
    assert {name: one["n"] for name, one in metrics["per_class"].items()} == {
        "scratch": 3,
        "spot": 3,
    }
    with (script.tmp_path / "results/table4_supervision_quick.csv").open(newline="") as file:
        assert [row["setting"] for row in csv.DictReader(file)] == ["general"]
