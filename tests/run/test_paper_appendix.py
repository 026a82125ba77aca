"""The paper's appendix end to end: six subsets and the holistic one."""

from pathlib import Path

import pytest

from ahl_jax import evaluate
from ahl_jax.cli.main import main
from ahl_jax.storage.workdir import Workdir
from tests.runs import history

SMALL = (
    "--detector devnet --shots 4 --limit 24 --image-size 192 --pseudo-per-generator 16 "
    "--references 3 --epochs 4 --steps 4 --batch 12 --passes 2 --history 2"
)
"""The sizes of the debug preset."""


@pytest.mark.slow
def test_the_appendix_trains_seven_base_models(weave: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["train", str(weave), "--workdir", str(run), "--preset", "paper-appendix"]
    main([*words, *SMALL.split()])
    config = Workdir(run).config()
    assert (config.subsets.subsets, config.subsets.holistic) == (6, True)
    assert (config.learning.lr, config.importance.psi_lr) == (0.005, 0.02)
    for row in history(run):
        assert sum(float(row[f"w_{i}"]) for i in range(1, 8)) == pytest.approx(1, abs=1e-5)
        assert "w_8" not in row
    assert all(float(row["r_7"]) > 0 for row in history(run)[2:])
    assert evaluate(run, progress=False)["auc_roc"] > 0.8
