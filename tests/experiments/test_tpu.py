import json
from importlib.util import find_spec

import jax
import pytest

from ahl_jax import UserError
from experiments.benchmarks import tpu
from tests.experiments.test_benchmarks import run

needs_compiler = pytest.mark.skipif(
    not find_spec("libtpu"),
    reason="the TPU's compiler is not installed; run pip install '.[tpu-compile]'",
)


def row(program: str = "devnet-tiny", **fields) -> tpu.Row:
    defaults = {"subsets": 2, "seeds": 1, "data_shards": 1, "precision": "bfloat16"}
    return tpu.Row("v5e:1x1", program, **defaults | fields)


def compiled(tmp_path, *options: str) -> list[dict]:
    run("tpu", "--json", str(tmp_path / "rows.json"), *options)
    return json.loads((tmp_path / "rows.json").read_text())


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tiny_preset_exchanges_as_much_as_it_did(tmp_path):
    rows = compiled(tmp_path, "--quick", "--topologies", "v5e:2x4", "v5e:4x4")
    assert [(r["topology"], r["mesh"], r["collectives"]) for r in rows] == [
        ("v5e:2x4", "1x2x1", {"all-reduce": 2}),
        (
            "v5e:2x4",
            "1x2x4",
            {"all-gather": 15, "all-reduce": 148, "all-to-all": 12, "collective-permute": 52},
        ),
        # Eight copies of each half, which exchange nothing with one another.
        ("v5e:4x4", "1x2x1x8", {"all-reduce": 2}),
        ("v5e:4x4", "1x2x8", {"all-gather": 16, "all-reduce": 135, "collective-permute": 132}),
    ]
    for one in rows:
        assert one["result"] == "compiles"
        assert list(one) == list(tpu.COLUMNS)
        assert one["estimated_ms"] > 0
        assert 0 < one["fraction_of_peak"] < 1
        assert 0 < one["mib_per_chip"] < 100


@needs_compiler
@pytest.mark.slow
def test_slices_exchange_scores_and_gradients_of_subsets_or_nothing(tmp_path):
    rows = compiled(
        tmp_path, "--slices", "2", "--topologies", "v5e:2x4", "--programs", "devnet-tiny"
    )
    assert [(r["topology"], r["mesh"], r["between_slices"]) for r in rows] == [
        # Either slice does the same.
        ("2 x v5e:2x4", "1x2x1x8", {}),
        # Each has one of the two subsets, and the whole bank.
        ("2 x v5e:2x4", "1x2x8", {"all-reduce": 2}),
    ]


@needs_compiler
@pytest.mark.slow
def test_two_runs_give_equal_figures(tmp_path):
    options = ("--topologies", "v5e:1x1", "--programs", "devnet-tiny", "--operations", "3")
    first, second = (compiled(tmp_path, *options) for _ in range(2))
    for (one,) in (first, second):
        assert one.pop("compile_seconds") > 0
        *largest, last = one["operations"]
        assert len(largest) > 3
        assert last["operation"] == "all that run as often"
    assert first == second


@needs_compiler
@pytest.mark.slow
def test_what_the_compiler_refuses_is_said(tmp_path):
    # As many images as no chip of 16 GiB holds.
    options = ("--topologies", "v5e:1x1", "--programs", "extraction-resnet18")
    (one,) = compiled(tmp_path, *options, "--image-batch", "100000")
    assert one["estimated_ms"] is None
    assert "RESOURCE_EXHAUSTED" in one["result"]


def test_an_epoch_is_lowered_from_shapes_alone():
    lowered = tpu.lowered_epoch(row(), jax.devices()[:1])
    assert dict(lowered.mesh.shape) == {"seed": 1, "subset": 1, "data": 1}
    text = lowered.program.as_text()
    assert "tensor<2x" in text
    assert "bf16" in text


def test_each_topology_has_the_rows_that_it_has_chips_for(monkeypatch):
    chips = {"v5e:1x1": 1, "v5e:2x4": 8, "v5e:16x16": 256, "v6e:2x4": 8}
    monkeypatch.setattr(tpu, "devices_of", lambda name, slices: [None] * chips[name] * slices)
    programs = ("dra-paper", "stage_one-resnet18", "scorer-resnet18")
    rows = tpu.rows_of(tpu.Tpu(topologies=tuple(chips), programs=programs))
    assert [(r.topology, r.program, r.seeds, r.data_shards) for r in rows] == [
        ("v5e:1x1", "dra-paper", 1, 1), ("v5e:1x1", "dra-paper", 8, 1),
        ("v5e:1x1", "stage_one-resnet18", 1, 1), ("v5e:1x1", "scorer-resnet18", 1, 1),
        ("v5e:2x4", "dra-paper", 1, 1), ("v5e:2x4", "dra-paper", 1, 4),
        ("v5e:2x4", "dra-paper", 8, 1), ("v5e:2x4", "stage_one-resnet18", 1, 1),
        ("v5e:16x16", "dra-paper", 1, 1), ("v5e:16x16", "dra-paper", 1, 32),
        ("v5e:16x16", "dra-paper", 8, 1), ("v5e:16x16", "stage_one-resnet18", 1, 1),
        ("v6e:2x4", "dra-paper", 1, 1), ("v6e:2x4", "dra-paper", 1, 4),
        ("v6e:2x4", "dra-paper", 8, 1), ("v6e:2x4", "stage_one-resnet18", 1, 1),
        ("v6e:2x4", "scorer-resnet18", 1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:", "v5e:2", "v5e:2x4x1x1", "v5e:2x4 "])
def test_an_unknown_topology_is_refused(name):
    with pytest.raises(UserError, match="unknown; write v5e:2x4, for one, with a kind of v5e, v5p"):
        tpu.devices_of(name)


@needs_compiler
def test_a_topology_that_the_compiler_does_not_know_is_refused():
    with pytest.raises(UserError, match=r"there is no topology 'v5e:3x5': .* is not divisible"):
        tpu.devices_of("v5e:3x5")


def test_two_slices_have_twice_the_chips(monkeypatch):
    monkeypatch.setattr(tpu, "devices_of", lambda name, slices: [None] * 8 * slices)
    args = tpu.Tpu(topologies=("v5e:2x4",), programs=("dra-paper",), subsets=2, slices=2)
    rows = tpu.rows_of(args)
    assert [(r.where, r.slices, r.data_shards) for r in rows] == [
        ("2 x v5e:2x4", 2, 1), ("2 x v5e:2x4", 2, 8), ("2 x v5e:2x4", 2, 1),
    ]  # fmt: skip


def test_an_unknown_program_is_refused():
    with pytest.raises(UserError, match="there is no program 'dra'; choose from dra-paper, "):
        tpu.rows_of(tpu.Tpu(programs=("dra",)))


def test_without_the_compiler_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr(tpu, "find_spec", lambda _: None)
    monkeypatch.setattr("sys.argv", ["tpu"])
    with pytest.raises(UserError, match=r"is missing; run pip install '\.\[tpu-compile\]'"):
        tpu.main()


def test_a_compiler_that_dies_leaves_the_other_rows(tmp_path, monkeypatch):
    dies = tmp_path / "python"
    said = "F1126 22:56 emitter.cc:1459] Check failed: shape"
    dies.write_text(f"#!/bin/sh\necho '{said}' >&2\necho 'dumping core' >&2\nkill -6 $$\n")
    dies.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(dies))
    found = tpu.measured(row("dra-paper", operations=1), 1)
    assert list(found) == [*tpu.COLUMNS, "operations"]
    assert found["result"] == f"the compiler ended with signal 6: {said}"
    assert (found["program"], found["subsets"], found["mesh"]) == ("dra-paper", 2, None)


def test_a_row_that_takes_too_long_is_stopped(tmp_path, monkeypatch):
    hangs = tmp_path / "python"
    hangs.write_text("#!/bin/sh\nexec sleep 600\n")
    hangs.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(hangs))
    assert tpu.measured(row(), 0.001)["result"] == "stopped after 0.001 minutes"


def test_a_row_that_cannot_be_lowered_says_why():
    assert "the topology 'v9:1x1' is unknown" in tpu.measure(
        tpu.Row("v9:1x1", "dra-tiny", 2, 1, 1, "float32")
    )["result"]  # fmt: skip
