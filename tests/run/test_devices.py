import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ahl_jax.devices import mesh_for

_SCRIPT = """
import dataclasses, json, sys
import jax, jax.numpy as jnp, numpy as np
from ahl_jax.devices import compile_epochs, mesh_for, spread
from ahl_jax.seeds import stack_problems
from tests.core.setting import make_config, make_setting

config = make_config(detector="dra", subsets=4, history=1)
problems = [make_setting(dataclasses.replace(config, seed=seed)) for seed in (0, 1)]
states, data = stack_problems(problems)
mesh = mesh_for(2, 4)
states, data = spread(states, data, mesh)
step = compile_epochs(mesh)
for start in (0, 2):
    states, logs = step(problems[0].learner, states, data, jnp.arange(2) + start)
kernel = states.model.params["residual"]["kernel"]
print(json.dumps({
    "devices": mesh.size,
    "shards": len({s.device for s in kernel.addressable_shards}),
    "retraced": step._cache_size() - 1,
    "weights": np.asarray(logs.weights).tolist(),
    "params": [float(np.abs(x).sum()) for x in jax.tree.leaves(states.model.params)],
}))
"""


def on_devices(count: int) -> dict:
    flags = f"--xla_force_host_platform_device_count={count}"
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_eight_devices_give_the_result_of_one() -> None:
    one, eight = on_devices(1), on_devices(8)
    assert (one["devices"], eight["devices"], eight["shards"]) == (1, 8, 8)
    np.testing.assert_allclose(eight["weights"], one["weights"], rtol=1e-4)
    np.testing.assert_allclose(eight["params"], one["params"], rtol=1e-4)
    assert one["retraced"] == eight["retraced"] == 0


@pytest.mark.parametrize(
    ("seeds", "subsets", "devices", "shape"),
    [(1, 6, 1, (1, 1)), (1, 6, 8, (1, 6)), (3, 6, 8, (3, 2)), (2, 4, 8, (2, 4)), (4, 7, 4, (4, 1)),
     (1, 7, 4, (1, 1)), (3, 4, 12, (3, 4)), (2, 6, 4, (2, 2))],
)  # fmt: skip
def test_seeds_and_subsets_share_out_the_devices_evenly(
    seeds: int, subsets: int, devices: int, shape: tuple[int, int]
) -> None:
    class Fake:
        """Enough of a device to be counted; the mesh itself needs real ones."""

    chosen = {}

    def make_mesh(shape, axes, **options):
        chosen["shape"], chosen["devices"] = shape, len(options["devices"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "make_mesh", make_mesh)
        mesh_for(seeds, subsets, [Fake()] * devices)  # type: ignore[list-item]
    assert chosen["shape"] == shape
    assert chosen["devices"] == shape[0] * shape[1]
