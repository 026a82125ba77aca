import dataclasses
import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ahl_jax import UserError
from ahl_jax.backbones import load_trunk
from experiments.benchmarks import common, extract, gpu, operations, vs_loop

ROOT = Path(__file__).parents[2]
OUTCOME = ("share_agreeing", "largest_difference", "gradient_difference", "decisions_changed")


def run(module: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"experiments.benchmarks.{module}", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def rows(tmp_path: Path, module: str, *args: str) -> list[dict]:
    done = run(module, "--quick", "--json", str(tmp_path / "rows.json"), *args)
    measured = json.loads((tmp_path / "rows.json").read_text())
    # The table on stdout has a header, a rule and as many rows.
    assert len(done.stdout.splitlines()) == 2 + len(measured)
    for row in measured:
        assert row["device"]
        numbers = {k: v for k, v in row.items() if isinstance(v, float) and k not in OUTCOME}
        assert numbers
        assert all(np.isfinite(v) and v > 0 for v in numbers.values()), row
    return measured


@pytest.mark.slow
def test_epoch(tmp_path):
    (row,) = rows(tmp_path, "epoch", "--detectors", "devnet")
    assert {"detector", "size", "subsets", "seconds_per_epoch", "fraction_of_peak"} <= row.keys()
    assert row["detector"] == "devnet"


@pytest.mark.slow
def test_runtimes(tmp_path, finished):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    ours, theirs, *_ = rows(tmp_path, "runtimes", str(finished.workdir), "--test")
    assert (ours["runtime"], theirs["runtime"]) == ("jax", "onnxruntime")
    assert ours["ratio_to_jax"] == 1
    assert theirs["auc_roc"] == ours["auc_roc"] > 0.5
    assert theirs["decisions_changed"] == 0


@pytest.mark.slow
def test_scale(tmp_path):
    found = {row["command"]: row for row in rows(tmp_path, "scale")}
    assert {*found} == {"make", "data show", "train", "evaluate", "report", "predict 100"}
    assert {row["images"] for row in found.values()} == {400}
    assert 0 < found["report"]["mib"] < 20


@pytest.mark.slow
def test_operations(tmp_path):
    options = ["--detector", "devnet", "--size", "demo", "--subsets", "2", "--normals", "96"]
    run("operations", *options, "--top", "5", "--json", str(tmp_path / "rows.json"))
    *largest, others, outside = json.loads((tmp_path / "rows.json").read_text())
    assert len(largest) == 5
    assert all(row["shape"] and row["of"] and row["seconds"] > 0 for row in largest)
    assert sorted(largest, key=lambda row: -row["seconds"]) == largest
    assert [row["operation"] for row in (others, outside)] == [
        "all other operations", "outside of operations",
    ]  # fmt: skip


def test_of_a_gpu_the_profile_counts_what_ran_on_its_streams(tmp_path, monkeypatch):
    def named(pid, name, tid=None):
        kind = "process_name" if tid is None else "thread_name"
        return {"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": {"name": name}}

    def span(pid, tid, name, microseconds, **args):
        return {"ph": "X", "pid": pid, "tid": tid, "name": name, "dur": microseconds, "args": args}

    events = [
        named(1, "/device:GPU:0"), named(1, "Stream #7(Compute)", 7), named(1, "XLA Ops", 8),
        named(2, "/host:CPU"), named(2, "python", 7),
        span(1, 7, "gemm_kernel", 2e6, hlo_op="dot.1", tf_op="jit(f)/a/dot_general"),
        span(1, 7, "gemm_kernel", 1e6, hlo_op="dot.1"),
        span(1, 7, "loop_add_fusion_3", 5e5),
        span(1, 8, "dot.1", 3e6),
        span(2, 7, "dot.1", 9e6),
    ]  # fmt: skip
    with gzip.open(tmp_path / "x.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    trace = operations.traced(tmp_path)
    assert trace.seconds == {"dot.1": 3.0, "loop_add_fusion_3": 0.5}
    assert trace.sources == {"dot.1": "a/dot_general"}
    with gzip.open(tmp_path / "x.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events[3:5] + events[-1:]}, file)
    with pytest.raises(UserError, match="its lines are: /host:CPU, python"):
        operations.traced(tmp_path)


@pytest.mark.slow
def test_extract(tmp_path):
    measured = rows(tmp_path, "extract")
    assert [row["trunk"] for row in measured] == ["efficientnet_lite0", "resnet18"]
    for row in measured:
        assert {
            "image_size",
            "images_per_second_trunk",
            "images_per_second_decode",
            "images_per_second_extract",
        } <= row.keys()


@pytest.mark.slow
def test_stage_one(tmp_path):
    (row,) = rows(tmp_path, "stage_one", "--trunks", "resnet18", "--batch-norm", "trained")
    assert row["batch_norm"] == "trained"
    # Both scales of 192 pixels: 1.8 billion multiplications and additions each at 224.
    assert row["gflop_per_image"] == pytest.approx(3.6 * (192 / 224) ** 2 * 1.25, rel=0.1)
    assert row["images_per_second_infer"] > row["images_per_second_train"]
    for part in ("train", "infer"):
        assert row[f"fraction_of_peak_{part}"] < 1.2


@pytest.mark.slow
def test_vs_loop(tmp_path):
    pytest.importorskip("torch")
    measured = rows(tmp_path, "vs_loop")
    assert [row["detector"] for row in measured] == ["dra", "devnet"]
    for row in measured:
        assert {"subsets", "seconds_ours", "seconds_loop", "ratio", "size"} <= row.keys()
        assert row["ratio"] == pytest.approx(row["seconds_loop"] / row["seconds_ours"])
        assert row["share_agreeing"] > 0.99
        assert row["gradient_difference"] < 1e-3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_that_a_gpu_needs_in_one_call(tmp_path, monkeypatch):
    # A PyTorch that cannot be imported: what fails leaves the rest.
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('made to fail')\n")
    monkeypatch.setenv("PYTHONPATH", f"{broken}{os.pathsep}{ROOT}")
    run("gpu", "--quick", "--minutes", "14", "--out", str(tmp_path))
    whole = json.loads((tmp_path / "gpu.json").read_text())
    assert whole["machine"]["jax"]
    assert whole["machine"]["device"]
    assert [part["part"] for part in whole["parts"]] == list(gpu.PARTS)
    text = (tmp_path / "gpu.md").read_text()
    for part in whole["parts"]:
        assert f"## {part['title']}" in text
        if part["part"].startswith("vs_loop"):
            assert part["error"] == "2 of 2 rows failed"
            assert any("made to fail" in line for line in part["said"])
            continue
        assert part["error"] == "", part["said"]
        for row in part["rows"]:
            shown = [row[key] for key in gpu.PARTS[part["part"]].columns]
            numbers = [value for value in shown if isinstance(value, float)]
            assert numbers
            assert all(np.isfinite(value) for value in numbers), row
    assert "made to fail" in text


def test_a_part_without_time_is_listed(tmp_path, monkeypatch, capsys):
    options = ["--quick", "--minutes", "0.1", "--parts", "run", "extract"]
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path), *options])
    gpu.main()
    whole = json.loads((tmp_path / "gpu.json").read_text())
    assert [(p["part"], p["error"]) for p in whole["parts"]] == [
        ("run", "out of time"), ("extract", "out of time"),
    ]  # fmt: skip
    assert capsys.readouterr().out.count("Not measured: out of time") == 2


def test_a_part_that_hangs_is_stopped_and_keeps_its_rows(tmp_path, monkeypatch):
    # It stands for Python, and for a part that prints a row and then waits in a child.
    hangs = tmp_path / "python"
    hangs.write_text('#!/bin/sh\necho \'{"detector": "dra", "x": NaN}\'\nsleep 600\n')
    hangs.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(hangs))
    result = gpu.measured_part("epoch", True, 1.0, tmp_path)
    assert result["rows"] == [{"detector": "dra", "x": None}]
    assert result["error"] == "stopped after 1 seconds"
    assert result["seconds"] < 30
    gpu.written(tmp_path, {}, [result])
    assert "Not measured in full: stopped after 1 seconds" in (tmp_path / "gpu.md").read_text()


def test_an_unknown_part_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path), "--parts", "epochs"])
    with pytest.raises(UserError, match="there is no part 'epochs'; choose from epoch, vs_loop"):
        gpu.main()


@pytest.mark.slow
def test_ablate(tmp_path):
    measured = rows(tmp_path, "ablate")
    programs = [(row["compiled_programs"], row["value"]) for row in measured]
    assert programs == [(kept, v) for kept in ("none", "kept") for v in ("1", "2", "all")]
    for row in measured:
        assert row["overhead_ratio"] == pytest.approx(
            row["wall_seconds"] / row["epochs"] / row["epoch_seconds"]
        )
        assert row["overhead_ratio"] > 1
    cold, warm = measured[2], measured[5]
    assert cold["wall_seconds"] > sum(row["wall_seconds"] for row in measured[:2])
    assert cold["padded_ratio"] > 1
    assert warm["wall_seconds"] < cold["wall_seconds"]


def test_the_loop_needs_torch(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *more: None if name == "torch" else find(name, *more),
    )
    monkeypatch.setattr("sys.argv", ["vs_loop", "--quick"])
    with pytest.raises(UserError, match="PyTorch, which is not installed; run: pip install torch"):
        vs_loop.main()


def test_an_unknown_trunk_is_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["extract", "--quick", "--trunks", "vgg"])
    with pytest.raises(UserError, match="there is no trunk 'vgg'"):
        extract.main()


def test_random_weights_keep_the_scale_of_features(tmp_path):
    extract.random_weights("resnet18", tmp_path / "random.safetensors")
    trunk = load_trunk("resnet18", tmp_path / "random.safetensors")
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    features = np.asarray(trunk(images))
    assert features.shape == (2, 2, 2, 512)
    # Neither dead nor growing without bound, so speed is that of ordinary numbers.
    assert 0.1 < features.std() < 100
    assert (features > 0).mean() > 0.2


def test_images_of_the_benchmark_differ():
    paths = extract.distinct_images(40)
    assert len({path.read_bytes() for path in paths}) == 40


def test_a_file_that_cannot_be_written_is_known_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclasses.dataclass(frozen=True)
    class Options:
        json: Path | None = None

    for path in (tmp_path / "no/rows.json", tmp_path):
        monkeypatch.setattr("sys.argv", ["benchmark", "--json", str(path)])
        with pytest.raises(UserError, match="name a file in an existing folder"):
            common.parse(Options, None)
    monkeypatch.setattr("sys.argv", ["benchmark", "--json", str(tmp_path / "rows.json")])
    assert common.parse(Options, None).json == tmp_path / "rows.json"


@pytest.mark.slow
def test_serve(tmp_path, finished):
    measured = rows(tmp_path, "serve", str(finished.workdir), "--clients", "1", "8")
    assert [(row["clients"], row["requests"], row["refused"]) for row in measured] == [
        (1, 40, 0), (8, 40, 0),
    ]  # fmt: skip
    assert all(row["p50_ms"] <= row["p99_ms"] for row in measured)
