import dataclasses
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from ahl_jax import UserError
from ahl_jax.distributed.mesh import AXES, mesh_for, own_part
from ahl_jax.distributed.part import Part

_EXCHANGE = re.compile(
    r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)

_SCRIPT = """
import dataclasses, json, sys
import jax, jax.numpy as jnp, numpy as np
from ahl_jax import UserError
from ahl_jax.distributed.mesh import mesh_for
from ahl_jax.learning.seeds import compile_epochs, spread, stack_problems
from tests.problems import as_float64, make_config, make_setting

# In float32 Adam makes steps of the rounding of a gradient that is next to nothing.
jax.config.update("jax_enable_x64", True)
seeds, shards, detector = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
# Psi is the same on all devices, and takes most of the compilation; DRA has it all the same.
importance = "psi" if detector == "dra" else "accuracy"
config = make_config(detector=detector, subsets=4, history=1, batch=24, importance=importance)
problems = [make_setting(dataclasses.replace(config, seed=seed)) for seed in range(seeds)]
learner = problems[0].learner

def train(shards, devices):
    mesh = mesh_for(seeds, 4, shards, devices)
    states, data = spread(*as_float64(stack_problems(problems)), mesh)
    step = compile_epochs(mesh)
    program = ""
    if "-p" in sys.argv:
        compiled = step.lower(learner, states, data, jnp.arange(2)).compile()
        program, step = compiled.as_text(), lambda _, *arguments: compiled(*arguments)
    for start in (0, 2):
        states, logs = step(learner, states, data, jnp.arange(2) + start)
    bank = jax.tree.leaves(data.inputs)[0]
    return {
        "mesh": list(mesh.shape.values()),
        "bank": len({s.device for s in bank.addressable_shards if s.data.shape == bank.shape}),
        "rows": [len(bank), len(bank.addressable_shards[0].data)],
        "program": program,
        "retraced": None if program else step._cache_size() - 1,
        "weights": np.asarray(logs.weights).tolist(),
        "params": [float(np.abs(x).sum()) for x in jax.tree.leaves(states.model.params)],
    }

all_devices = jax.devices()
found = train(shards, all_devices)
if "-1" in sys.argv:
    found["one"] = train(1, all_devices[:1])
print(json.dumps(found))
"""


_FROM_THE_HOST = """
import json
import jax, numpy as np
from ahl_jax.distributed.part import Part
from ahl_jax.features.pooling import global_averages
from ahl_jax.learning.bank import HostBank, shared_bank
from ahl_jax.distributed.mesh import mesh_for
from ahl_jax.learning.problem import problem_on
from ahl_jax.learning.seeds import inference_references, spread, stack_problems
from tests.problems import make_config, setting_maps

normals, anomalies, pseudo, *made = setting_maps()
config = make_config(detector="devnet", subsets=4)
(bank,) = shared_bank([(normals, anomalies, pseudo)], part=Part(shards=4))
whole = bank.inputs.on_device()
images = bank.inputs.images
features = [np.array(leaf)[:images] for leaf in jax.tree.leaves(whole)]
del whole
largest, arranged = [], []

def look():
    largest.append(max(
        [shard.data.shape[0] for array in jax.live_arrays() for shard in array.addressable_shards
         if shard.data.shape[1:] in {leaf.shape[1:] for leaf in features}], default=0))

rows = HostBank.rows
def watched(self, index):
    look()
    arranged.append(len(index))
    return rows(self, index)
HostBank.rows = watched

problem = problem_on(config, bank, global_averages(normals), *made)
mesh = mesh_for(1, 4, 4)
states, data = stack_problems([problem])
states, data = spread(states, data, mesh)
look()
reference = inference_references(data, mesh)
look()
chosen = np.asarray(problem.data.reference)
print(json.dumps({
    "mesh": list(mesh.shape.values()),
    "images": images,
    "largest": largest,
    "arranged": arranged,
    "devices": len(data.inputs.patches.sharding.device_set),
    "same": [bool((np.asarray(there)[:images] == here).all())
             for there, here in zip(jax.tree.leaves(data.inputs), features)],
    "reference": max(float(abs(np.asarray(there)[0] - here[chosen].mean(0)).max())
                     for there, here in zip(jax.tree.leaves(reference), features)),
}))
"""


def on_devices(
    count: int,
    detector: str = "dra",
    *,
    seeds: int,
    shards: int = 1,
    program: bool = False,
    beside_one: bool = False,
    script: str = _SCRIPT,
) -> dict:
    options = ["-p"] * program + ["-1"] * beside_one
    flags = f"--xla_force_host_platform_device_count={count}"
    done = subprocess.run(
        [sys.executable, "-c", script, str(seeds), str(shards), detector, *options],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_as_one(found: dict) -> None:
    """The result of several devices is that of one."""
    # Sums over subsets and images add up in another order.
    for name in ("weights", "params"):
        np.testing.assert_allclose(found[name], found["one"][name], rtol=1e-6)


@pytest.mark.parametrize(
    ("detector", "shards", "mesh"),
    [
        pytest.param("dra", 1, [2, 4, 1], marks=pytest.mark.slow),
        pytest.param("dra", 2, [2, 2, 2], marks=pytest.mark.slow),
        ("devnet", 2, [2, 2, 2]),
    ],
)
def test_eight_devices_give_the_result_of_one(detector: str, shards: int, mesh: list[int]) -> None:
    eight = on_devices(8, detector, seeds=2, shards=shards, beside_one=True)
    one = eight["one"]
    assert (eight["mesh"], one["mesh"]) == (mesh, [1, 1, 1])
    assert_as_one(eight)
    assert eight["retraced"] == one["retraced"] == 0
    rows, own = eight["rows"]
    assert own * shards == rows


@pytest.mark.slow
def test_subsets_exchange_their_scores_and_their_gradients_alone() -> None:
    program = on_devices(4, seeds=1, program=True)["program"]
    exchanges = _EXCHANGE.findall(program)
    # XLA makes one sum of those of all parameters; the logs are gathered at the end.
    assert exchanges.count("all-gather") == 1
    assert set(exchanges) == {"all-gather", "all-reduce"}
    assert exchanges.count("all-reduce") <= 2


@pytest.mark.slow
def test_along_the_data_axis_the_images_are_really_divided() -> None:
    found = on_devices(8, seeds=1, shards=4, program=True, beside_one=True)
    assert found["mesh"] == [1, 2, 4]
    np.testing.assert_allclose(found["weights"], found["one"]["weights"], rtol=1e-6)
    assert found["bank"] == 0
    # 15 normals, 5 anomalies, 18 pseudo-anomalies, and padding.
    assert found["rows"] == [40, 10]
    # No device ever has the whole bank (40 images of 2 patches, 9 locations times 4 channels).
    assert "[10,2,36]" in found["program"]
    assert "[40,2,36]" not in found["program"]
    # A device multiplies the features of its own part of a batch with the weights of its own
    # subsets: of 4 subsets 2, of 17 support images (filled up to 20) 5 and of 16 query images 4,
    # with 11 locations each that lie in no patch, for 2 outputs.
    dots = set(re.findall(r"= f64(\[[0-9,]+\])\S* dot\(", found["program"]))
    assert {"[2,55,2]", "[2,44,2]"} <= dots
    whole = {f"[{t},{images * 11},2]" for t in (2, 4) for images in (16, 17, 20)}
    assert not whole & dots


@pytest.mark.slow
def test_devices_of_the_data_axis_share_out_the_subsets_where_they_can() -> None:
    found = on_devices(4, seeds=1, shards=2, program=True, beside_one=True)
    assert found["mesh"] == [1, 2, 2]
    assert_as_one(found)
    assert found["rows"] == [38, 19]
    assert "[38,2,36]" not in found["program"]
    # Whole batches of one subset, 17 support and 16 query images of 11 locations.
    dots = set(re.findall(r"= f64(\[[0-9,]+\])\S* dot\(", found["program"]))
    assert {"[187,2]", "[176,2]"} <= dots
    # Of images each gets those of its own batch; no gradients are exchanged in a step.
    scattered = re.findall(r"= f64\[([0-9,]+)\]\S* reduce-scatter\(", found["program"])
    assert {"17,11,4", "16,11,4"} <= set(scattered)
    assert all(len(shape.split(",")) == 3 for shape in scattered)


@pytest.mark.slow
def test_where_the_data_axis_alone_shares_out_the_subsets_psi_is_not_divided() -> None:
    found = on_devices(4, seeds=1, shards=4, program=True, beside_one=True)
    assert found["mesh"] == [1, 1, 4]
    assert_as_one(found)
    exchanges = Counter(_EXCHANGE.findall(found["program"]))
    assert set(exchanges) == {"all-gather", "all-reduce", "reduce-scatter"}
    # Images of support, query and scores, their positions, and the scores: 15. They were 1,353
    # where the compiler divided psi's images.
    assert exchanges.total() <= 20


def test_no_device_ever_holds_the_whole_bank() -> None:
    found = on_devices(8, seeds=1, shards=4, script=_FROM_THE_HOST)
    assert found["mesh"] == [1, 2, 4]
    assert found["images"] == 15 + 5 + 18
    # Arranged for one device after the other, for both subset halves at once.
    assert found["arranged"] == [10] * 4
    assert found["largest"] == [0, *[10] * 5]
    assert found["devices"] == 8
    assert found["same"] == [True] * 3
    assert found["reference"] < 1e-6


@dataclasses.dataclass(frozen=True)
class Fake:
    """Enough of a device to be counted; a real mesh needs real ones."""

    process_index: int
    number: int
    platform: str = "cpu"
    slice_index: int = 0


def fakes(processes: int, each: int, platform: str = "cpu", slices: int = 1) -> list[Fake]:
    """Devices whose processes take turns among the slices, so that their order helps nobody."""
    return [Fake(p, i, platform, p % slices) for p in range(processes) for i in range(each)]


def meshed(seeds: int, subsets: int, shards: int, devices: list[Fake]) -> np.ndarray:
    """The devices of the mesh, each once, as many of every process."""
    chosen: dict = {}

    def make_mesh(shape, axes, *, axis_types, devices):
        chosen["devices"] = np.array(devices, object).reshape(shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "make_mesh", make_mesh)
        patch.setattr("ahl_jax.distributed.mesh.Mesh", lambda d, *_, **__: chosen.update(devices=d))
        mesh_for(seeds, subsets, shards, devices)  # type: ignore[arg-type]
    mesh = chosen["devices"]
    used = [device.process_index for device in mesh.ravel()]
    processes = {device.process_index for device in devices}
    assert len(set(mesh.ravel())) == mesh.size
    assert {used.count(p) for p in processes} == {mesh.size // len(processes)}
    return mesh


def shared_out(
    seeds: int, subsets: int, shards: int, processes: int, each: int, platform: str = "cpu"
) -> list[list]:
    """The mesh's shape, and the process of each of its devices along the data axis."""
    mesh = meshed(seeds, subsets, shards, fakes(processes, each, platform))
    return [list(mesh.shape), [sorted({d.process_index for d in part.ravel()})
                               for part in np.moveaxis(mesh, 2, 0)]]  # fmt: skip


@pytest.mark.parametrize(
    ("seeds", "subsets", "devices", "shape"),
    [(1, 6, 1, [1, 1]), (1, 6, 8, [1, 6]), (3, 6, 8, [3, 2]), (2, 4, 8, [2, 4]), (4, 7, 4, [4, 1]),
     (1, 7, 4, [1, 1]), (3, 4, 12, [3, 4]), (2, 6, 4, [2, 2])],
)  # fmt: skip
def test_seeds_and_subsets_share_out_the_devices_evenly(
    seeds: int, subsets: int, devices: int, shape: list[int]
) -> None:
    assert shared_out(seeds, subsets, 1, 1, devices)[0] == [*shape, 1]


@pytest.mark.parametrize(
    ("seeds", "subsets", "shards", "processes", "each", "shape", "of_part"),
    [
        (1, 6, 1, 2, 4, [1, 6, 1], [[0, 1]]),
        (1, 6, 2, 2, 4, [1, 3, 2], [[0], [1]]),
        (3, 6, 4, 2, 4, [1, 2, 4], [[0], [0], [1], [1]]),
        (1, 6, 1, 4, 4, [1, 1, 1], None),
        (1, 7, 4, 2, 4, [1, 1, 4], [[0], [0], [1], [1]]),
        (1, 6, 2, 4, 1, [1, 2, 2], [[0, 2], [1, 3]]),
    ],
)
def test_processes_give_equally_many_devices_and_have_their_own_part_of_the_data(
    seeds: int, subsets: int, shards: int, processes: int, each: int, shape: list[int], of_part
) -> None:
    if of_part is None:
        with pytest.raises(UserError, match="4 processes with 4 devices each cannot share out"):
            shared_out(seeds, subsets, shards, processes, each)
        return
    assert shared_out(seeds, subsets, shards, processes, each) == [shape, of_part]


@pytest.mark.parametrize(
    ("seeds", "subsets", "shards", "processes", "each", "shape", "of_part"),
    [
        # Of one process's chips, a part whose number divides that of all.
        (1, 6, 1, 1, 8, [1, 2, 1], [[0]]),
        (1, 6, 4, 1, 8, [1, 2, 4], [[0]] * 4),
        (3, 6, 1, 1, 8, [1, 2, 1], [[0]]),
        (2, 6, 1, 1, 8, [2, 2, 1], [[0]]),
        (1, 8, 1, 1, 8, [1, 8, 1], [[0]]),
        (1, 7, 1, 1, 8, [1, 1, 1], [[0]]),
        # Of several, all.
        (1, 6, 1, 2, 4, [1, 2, 1, 4], [[0, 1]]),
        (1, 8, 1, 2, 4, [1, 8, 1], [[0, 1]]),
        (1, 7, 1, 4, 4, [1, 1, 1, 16], [[0, 1, 2, 3]]),
        (1, 6, 2, 2, 4, [1, 2, 2, 2], [[0], [1]]),
        (1, 6, 4, 2, 8, [1, 2, 4, 2], [[0], [0], [1], [1]]),
        (1, 2, 2, 4, 4, [1, 2, 2, 4], [[0, 1, 2, 3]] * 2),
        (8, 8, 1, 64, 4, [8, 8, 1, 4], [list(range(64))]),
    ],
)
def test_the_mesh_is_one_that_the_compiler_for_tpus_takes(
    seeds: int, subsets: int, shards: int, processes: int, each: int, shape: list[int], of_part
) -> None:
    assert shared_out(seeds, subsets, shards, processes, each, "tpu") == [shape, of_part]


@pytest.mark.parametrize(
    ("seeds", "subsets", "shards", "slices", "processes", "each", "shape", "crossed"),
    [
        # Where there are chips that do the same, whole slices do.
        (1, 8, 1, 2, 2, 8, [1, 8, 1, 2], "copy"),
        (1, 6, 1, 2, 4, 4, [1, 2, 1, 8], "copy"),
        (1, 2, 4, 2, 4, 4, [1, 2, 4, 2], "copy"),
        (1, 2, 4, 2, 2, 8, [1, 2, 4, 2], "copy"),
        (8, 8, 1, 2, 2, 8, [8, 2, 1], "seed"),
        (2, 4, 4, 4, 8, 4, [2, 4, 4], "seed subset"),
        (2, 8, 4, 2, 4, 4, [2, 2, 4], "seed"),
        (1, 16, 1, 2, 2, 8, [1, 16, 1], "subset"),
        (1, 8, 4, 2, 4, 4, [1, 4, 4], "subset"),
        (1, 8, 4, 1, 4, 4, [1, 4, 4], ""),
        # No slice has so many chips.
        (1, 8, 16, 2, 4, 4, [1, 1, 16], "data"),
    ],
)
def test_what_exchanges_least_goes_across_slices(
    seeds: int, subsets: int, shards: int, slices: int, processes: int, each: int,
    shape: list[int], crossed: str, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    mesh = meshed(seeds, subsets, shards, fakes(processes, each, "tpu", slices))
    slice_of = np.vectorize(lambda device: device.slice_index)(mesh)
    along = [
        name
        for axis, name in enumerate((*AXES, "copy")[: mesh.ndim])
        if (slice_of != slice_of.take([0], axis)).any()
    ]
    assert (list(mesh.shape), " ".join(along)) == (shape, crossed)
    said = "16 data shards do not divide the 8 chips of a slice" in caplog.text
    assert said == (crossed == "data")


@pytest.mark.parametrize(
    ("slices", "platform", "part"),
    [
        (1, "tpu", Part(1, 2, 2)),
        # Each slice has all data shards.
        (2, "tpu", Part(0, 1, 4)),
        # GPUs tell a number of their slice too, but two hosts of theirs divide the images.
        (2, "gpu", Part(1, 2, 2)),
    ],
)
def test_a_process_keeps_the_images_that_its_devices_have(
    slices: int, platform: str, part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = fakes(2, 4, platform, slices)
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert own_part(4) == part
    mesh = meshed(1, 2, 4, devices)
    shards = [n for n in range(4) if any(d.process_index == 1 for d in mesh[:, :, n].ravel())]
    assert shards == list(range(4))[-part.shards :]


def test_data_shards_that_do_not_divide_the_devices_are_refused() -> None:
    with pytest.raises(
        UserError, match="`data_shards` is 3, and 8 devices cannot be divided by it"
    ):
        shared_out(1, 6, 3, 1, 8)
