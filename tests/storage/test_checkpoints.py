import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ahl_jax.common.errors import UserError
from ahl_jax.storage.checkpoints import Checkpoints


class Pair(NamedTuple):
    left: jax.Array
    right: tuple[jax.Array, int]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Node:
    weight: jax.Array
    children: dict


def make_state(seed: int = 0) -> dict:
    key = jax.random.key(seed)
    params = {
        "dense/0": {"w": jax.random.normal(key, (5, 3)), "b": jnp.zeros(3)},
        "half": jax.random.normal(key, (7,), jnp.bfloat16),
    }
    return {
        "params": params,
        "optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init(params),
        "key": key,
        "keys": jax.random.split(jax.random.key(seed + 1, impl="rbg"), 4),
        "raw_key": jax.random.PRNGKey(seed),
        "special": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-42]),
        "pair": Pair(jnp.arange(4), (jnp.array(True), 12)),
        "node": Node(jnp.ones((1, 1)), {"none": None, "empty": (), "history": jnp.zeros((0, 6))}),
        "host": np.array([2**40, -1]),
        "rate": 0.1,
    }


INFERENCE = {
    "g": {"head": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.float32(0.1)},
    "references": np.array([1, 2**32 - 1], np.uint32),
}


def assert_identical(left, right):
    left_leaves, left_def = jax.tree.flatten(left)
    right_leaves, right_def = jax.tree.flatten(right)
    assert left_def == right_def
    for a, b in zip(left_leaves, right_leaves, strict=True):
        if isinstance(a, jax.Array) and jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert a.dtype == b.dtype
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def save_epochs(workdir: Path, *epochs: int) -> None:
    with Checkpoints(workdir) as checkpoints:
        for epoch in epochs:
            checkpoints.save(
                epoch, inference=INFERENCE, state=make_state(epoch), metadata={"epoch": epoch}
            )


def test_state_comes_back_bit_for_bit(tmp_path):
    state = make_state()
    save_epochs(tmp_path, 0)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_state(make_state(7))
    assert_identical(restored, state)
    assert isinstance(restored["pair"], Pair)
    assert type(restored["pair"].right[1]) is int
    assert isinstance(restored["host"], np.ndarray)


def test_state_restores_from_shapes_alone(tmp_path):
    save_epochs(tmp_path, 0)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored = checkpoints.restore_state(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype)
                         if isinstance(x, jax.Array) else x, make_state(3))
        )  # fmt: skip
    assert_identical(restored, make_state())


def test_restored_training_continues_like_the_original(tmp_path):
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, key):
        key, used = jax.random.split(key)
        updates, state = optimizer.update(jax.random.normal(used, params.shape), state, params)
        return optax.apply_updates(params, updates), state, key

    run = (jnp.ones(4), optimizer.init(jnp.ones(4)), jax.random.key(1))
    run = step(*run)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, inference=INFERENCE, state=run, metadata={})
        restored = checkpoints.restore_state(run)
    assert_identical(step(*restored), step(*run))


def test_a_save_survives_donation_of_what_it_saves(tmp_path):
    double = jax.jit(lambda x: x * 2, donate_argnums=0)
    state = jnp.arange(1_000_000, dtype=jnp.float32)
    expected = np.array(state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, inference=INFERENCE, state=state, metadata={})
        for _ in range(5):
            state = double(state)
        np.testing.assert_array_equal(checkpoints.restore_state(state), expected)


def test_inference_needs_neither_template_nor_state(tmp_path):
    save_epochs(tmp_path / "run", 3)
    shutil.rmtree(tmp_path / "run/checkpoint/epoch_3/state")
    (tmp_path / "run").rename(tmp_path / "moved")
    with Checkpoints(tmp_path / "moved", read_only=True) as checkpoints:
        inference, metadata = checkpoints.restore_inference()
    assert_identical(inference, jax.tree.map(np.asarray, INFERENCE))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(inference))
    assert metadata == {"epoch": 3}


def test_bfloat16_inference_keeps_its_bits(tmp_path):
    half = {"w": jax.random.normal(jax.random.key(0), (33,), jnp.bfloat16)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, inference=half, state=INFERENCE, metadata={})
        assert_identical(checkpoints.restore_inference()[0], jax.tree.map(np.asarray, half))


def test_only_the_newest_two_epochs_stay(tmp_path):
    save_epochs(tmp_path, 1, 2, 3, 4)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_epoch() == 4
        assert checkpoints.restore_inference(3)[1] == {"epoch": 3}
        with pytest.raises(UserError, match="no checkpoint of epoch 2 in"):
            checkpoints.restore_inference(2)
    assert sorted(p.name for p in (tmp_path / "checkpoint").glob("epoch*")) == [
        "epoch_3",
        "epoch_4",
    ]


def test_saving_an_epoch_again_keeps_the_first(tmp_path):
    save_epochs(tmp_path, 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, inference=INFERENCE, state=make_state(9), metadata={"epoch": 9})
        assert checkpoints.restore_inference()[1] == {"epoch": 1}


def test_trunk_is_saved_once_and_replaced_when_it_differs(tmp_path):
    trunk = {"stem": {"w": jnp.arange(4.0)}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_trunk("tiny", trunk)
        folder = tmp_path / "checkpoint" / "trunk"
        first = folder.stat().st_ino
        checkpoints.save_trunk("tiny", trunk)
        assert folder.stat().st_ino == first
        checkpoints.save(0, inference=INFERENCE, state=INFERENCE, metadata={})
        checkpoints.save_trunk("tiny", {"stem": {"w": jnp.arange(4.0) + 1}})
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest_epoch() == 0
        name, params = checkpoints.load_trunk()
    assert name == "tiny"
    np.testing.assert_array_equal(params["stem"]["w"], [1, 2, 3, 4])


def test_a_detector_is_added_to_the_trunk_that_was_saved_without(tmp_path):
    trunk, detector = {"w": jnp.arange(4.0)}, {"params": {"k": jnp.ones(2)}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_trunk("tiny", trunk)
        assert not checkpoints.has_detector()
        checkpoints.save_trunk("tiny", trunk, detector)
        checkpoints.save_trunk("tiny", trunk)
        np.testing.assert_array_equal(checkpoints.load_detector()["params"]["k"], [1, 1])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s | {"special": jnp.zeros(5)}, "special"),
        (lambda s: s | {"special": jnp.zeros(4, jnp.bfloat16)}, "special"),
        (lambda s: s | {"more": jnp.zeros(1)}, "more"),
        (lambda s: {k: v for k, v in s.items() if k != "raw_key"}, "raw_key"),
    ],
)
def test_state_of_other_settings_is_refused(tmp_path, change, named):
    save_epochs(tmp_path, 0)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(
            UserError,
            match=f"epoch_0 was saved with other settings, or by another version.*{named}",
        ),
    ):
        checkpoints.restore_state(change(make_state()))


def test_reading_where_nothing_is_makes_nothing(tmp_path):
    with Checkpoints(tmp_path / "none", read_only=True) as checkpoints:
        assert checkpoints.latest_epoch() is None
        for read in (checkpoints.restore_inference, checkpoints.load_trunk):
            with pytest.raises(UserError, match=f"no checkpoint in {tmp_path / 'none'}"):
                read()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("item", ["inference", "metadata", "state"])
def test_damage_is_named(tmp_path, item):
    save_epochs(tmp_path, 0)
    folder = tmp_path / "checkpoint" / "epoch_0"
    for path in (folder / item).rglob("*"):
        if path.is_file():
            path.write_bytes(b"\x00" + path.read_bytes()[: path.stat().st_size // 2])
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        read = (
            (lambda: checkpoints.restore_state(make_state()))
            if item == "state"
            else checkpoints.restore_inference
        )
        with pytest.raises(UserError, match=f"{folder} is damaged"):
            read()


@pytest.mark.parametrize("content", [b"", b"{}", None])
def test_damage_to_the_list_of_arrays_is_named(tmp_path, content):
    save_epochs(tmp_path, 0)
    listed = tmp_path / "checkpoint/epoch_0/inference/_METADATA"
    text = listed.read_bytes()
    listed.write_bytes(text.replace(b"key_type", b"key_tyqe") if content is None else content)
    with (
        Checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(UserError, match=r"epoch_0 is damaged \(inference/_METADATA, or what it"),
    ):
        checkpoints.restore_inference()


def test_a_changed_setting_in_a_checkpoint_is_noticed(tmp_path):
    save_epochs(tmp_path, 0)
    (metadata,) = (tmp_path / "checkpoint/epoch_0/metadata").glob("metadata")
    about = json.loads(metadata.read_text())
    about["metadata"]["image_size"] = 449
    metadata.write_text(json.dumps(about))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="its metadata"):
        checkpoints.restore_inference()
    del about["sha256"]["metadata"]  # As earlier versions had it.
    metadata.write_text(json.dumps(about))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_inference()[1]["image_size"] == 449


def test_a_flipped_bit_is_noticed(tmp_path):
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, inference={"w": values}, state=INFERENCE, metadata={})
    largest = max(
        (p for p in (tmp_path / "checkpoint/epoch_0/inference").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="damaged"):
        checkpoints.restore_inference()


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"cannot write checkpoints to {tmp_path / 'file'}"):
        Checkpoints(tmp_path / "file")


KILLED = """
    import sys
    from pathlib import Path
    import numpy as np
    from ahl_jax.storage.checkpoints import Checkpoints

    with Checkpoints(Path(sys.argv[1])) as checkpoints:
        for epoch in range(10_000):
            arrays = {str(i): np.full((200, 200), epoch, np.float32) for i in range(20)}
            checkpoints.save(epoch, inference=arrays, state=arrays, metadata={"epoch": epoch})
            print(epoch, flush=True)
"""


@pytest.mark.slow
def test_killed_while_saving_leaves_a_whole_checkpoint(tmp_path):
    # Several kills, at different moments of a save; each run finds what the last one left.
    for delay in (0.0, 0.03):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        started = [process.stdout.readline().strip() for _ in range(4)]
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert started == ["0", "1", "2", "3"], errors
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            latest = checkpoints.latest_epoch()
            assert latest >= 2
            inference, metadata = checkpoints.restore_inference()
            state = checkpoints.restore_state(inference)
        assert metadata == {"epoch": latest}
        for tree in (inference, state):
            assert all((leaf == latest).all() for leaf in tree.values())
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.latest_epoch() == latest
            checkpoints.save(latest + 1, inference=inference, state=state, metadata={})
        left = [p.name for p in (tmp_path / "checkpoint").iterdir()]
        assert all(name.removeprefix("epoch_").isdigit() for name in left), left
        shutil.rmtree(tmp_path / "checkpoint")


RESTORE_ELSEWHERE = """
    import json, sys
    from pathlib import Path
    import jax
    import jax.numpy as jnp
    from ahl_jax.storage.checkpoints import Checkpoints

    assert jax.device_count() == 4
    mesh = jax.make_mesh((4,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    with Checkpoints(Path(sys.argv[1]), read_only=True) as checkpoints:
        one = checkpoints.restore_state(jax.ShapeDtypeStruct((8,), jnp.float32))
        many = checkpoints.restore_state(
            jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)
        )
    with Checkpoints(Path(sys.argv[2])) as checkpoints:
        checkpoints.save(0, inference={"w": many}, state=many, metadata={})
    print(json.dumps([one.tolist(), many.tolist(), len(many.sharding.device_set)]))
"""


def test_devices_may_change_between_save_and_restore(tmp_path):
    with Checkpoints(tmp_path / "a") as checkpoints:
        checkpoints.save(0, inference=INFERENCE, state=jnp.arange(8.0), metadata={})
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RESTORE_ELSEWHERE), tmp_path / "a", tmp_path / "b"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    expected = list(range(8))
    assert json.loads(output) == [expected, expected, 4]
    with Checkpoints(tmp_path / "b", read_only=True) as checkpoints:
        np.testing.assert_array_equal(checkpoints.restore_state(jnp.zeros(8)), expected)
        np.testing.assert_array_equal(checkpoints.restore_inference()[0]["w"], expected)


@pytest.mark.parametrize("trunk", [True, False])
def test_a_full_disk_leaves_nothing_unfinished(tmp_path, trunk):
    # As much as one file may have stands for a disk: nobody but root can mount a small one.
    code = """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from ahl_jax import UserError
        from ahl_jax.storage.checkpoints import Checkpoints
        arrays = {str(i): np.random.default_rng(i).normal(size=50_000) for i in range(4)}
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            with Checkpoints(Path(sys.argv[1])) as checkpoints:
                if sys.argv[2] == "True":
                    checkpoints.save_trunk("tiny", arrays)
                else:
                    checkpoints.save(0, state=arrays, metadata={})
        except UserError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), str(trunk)],
        capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.stdout.startswith(f"cannot write checkpoints to {tmp_path}"), done.stderr[-2000:]
    assert list((tmp_path / "checkpoint").iterdir()) == []
