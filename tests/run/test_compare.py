import csv
from pathlib import Path

import pytest

from experiments import compare


def test_the_table_holds_every_run_and_a_second_call_only_reads(
    weave: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "--data", str(weave), "--shots", "4", "--quick", "--seeds", "0", "1"]
    arguments += ["--methods", "DevNet", "--workdir", str(tmp_path / "runs")]
    arguments += ["--out", str(tmp_path / "results")]
    monkeypatch.setattr("sys.argv", arguments)
    compare.main()
    (table,) = (tmp_path / "results").glob("*.md")
    with table.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["seed"]) for row in rows] == [("DevNet", "0"), ("DevNet", "1")]
    mean = (float(rows[0]["auc_roc"]) + float(rows[1]["auc_roc"])) / 2
    assert f"| DevNet | {mean:.3f} ± " in table.read_text()
    assert f"{mean:.3f}" in capsys.readouterr().out
    before = table.read_text()
    monkeypatch.setattr("ahl_jax.loop.mesh_for", None)
    compare.main()
    assert table.read_text() == before
