"""One trunk for all runs that agree in what decides it."""

import fcntl
import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ahl_jax import Config, UserError, evaluate, train
from ahl_jax.backbones import load_trunk
from ahl_jax.config.presets import with_settings
from ahl_jax.features.split import load_split
from ahl_jax.stage_one import run
from ahl_jax.storage.checkpoints import Checkpoints
from tests.runs import stopped_in_epoch
from tests.stage_one.tiny import Tiny, loaded, run_stage_one

QUICK = {"method": "base", "detector": "devnet", "stage_one_epochs": 1}


def trunk_of(workdir: Path) -> Any:
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.load_trunk()[1]["first"]["kernel"]


def key(config: Config, digest: str = "images") -> str:
    return run.stage_one_key(config, digest, loaded(config))


def test_the_key_has_all_that_decides_the_trunk_and_nothing_else(config: Config) -> None:
    decide: list[dict[str, Any]] = [
        {"stage_one_epochs": 9}, {"stage_one_lr": 0.5}, {"stage_one_detector": "dra"},
        {"batch_norm": "trained"}, {"augment": "turned"}, {"weight_decay": 0.0},
        {"references": 2}, {"top_k": 0.5}, {"margin": 2.0}, {"clip": 0.1}, {"decay_every": 3},
        {"generators": ("cutmix", "draem")}, {"image_size": 256}, {"skip_bad_images": True},
    ]  # fmt: skip
    keys = [key(with_settings(config, one)) for one in decide]
    keys += [key(config), key(with_settings(config, {"seed": 1})), key(config, "others")]
    assert len(set(keys)) == len(keys)
    for one in ({"detector": "mlep"}, {"method": "base", "epochs": 7}, {"subsets": 3, "lr": 1.0},
                {"views": 8, "whiten": True}, {"pseudo_per_generator": 4},
                {"groups": 4, "coreset": 7}, {"stage_one_heads": True}):  # fmt: skip
        assert key(with_settings(config, one)) == key(config)


@pytest.mark.slow
def test_runs_that_agree_share_a_trunk_and_only_the_trunk_is_kept(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    base = with_settings(config, {"method": "base", "epochs": 1, "detector": "devnet"})
    train(base, tmp_path / "base", cache_dir=cache, progress=False)
    (folder,) = (cache / "stage_one").iterdir()
    assert {path.name for path in folder.iterdir()} == {".lock", "checkpoint"}
    assert [path.name for path in (folder / "checkpoint").iterdir()] == ["trunk"]
    # What a kill at the very end leaves.
    (folder / "training").mkdir()
    monkeypatch.setattr(run, "start", None)
    fit = with_settings(base, {"method": "fit", "detector": "patchcore", "coreset": 20})
    train(fit, tmp_path / "fit", cache_dir=cache, progress=False)
    np.testing.assert_array_equal(trunk_of(tmp_path / "base"), trunk_of(tmp_path / "fit"))
    assert not (folder / "training").exists()


def test_two_at_once_train_it_once(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split, trunk = load_split(config), loaded(config)
    folder = tmp_path / "stage_one" / key(config)
    folder.mkdir(parents=True)
    with (
        caplog.at_level(logging.INFO, "ahl_jax"),
        ThreadPoolExecutor(1) as pool,
        (folder / ".lock").open("w") as other,
    ):
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = pool.submit(
            run.trained_trunk, config, split, "images", trunk, tmp_path, progress=True
        )
        end = time.monotonic() + 60
        while "waiting for it" not in caplog.text and time.monotonic() < end:
            time.sleep(0.01)
        assert "another process trains this trunk" in caplog.text
        assert [path.name for path in folder.iterdir()] == [".lock"]
        # The other one is done.
        with Checkpoints(folder) as checkpoints:
            checkpoints.save_trunk(trunk.name, trunk.params)
        fcntl.flock(other, fcntl.LOCK_UN)
        assert waiting.result(timeout=60)[0].digest == trunk.digest


def test_a_folder_that_cannot_be_written_to_is_named(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write to .*file/stage_one.*`cache_dir`"):
        run_stage_one(config, tmp_path / "file")


@pytest.mark.parametrize("stage_one", [False, True])
def test_a_run_does_not_go_on_with_other_weights(
    config: Config, tmp_path: Path, stage_one: bool
) -> None:
    config = with_settings(config, QUICK | {"stage_one": stage_one})
    with stopped_in_epoch(2), pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
    kernel = trunk_of(tmp_path / "run")
    tensors = load_file(Tiny.weights)
    other = tmp_path / "other.safetensors"
    save_file(tensors | {"first_norm.bias": tensors["first_norm.bias"] + 1}, other)
    before, Tiny.weights = Tiny.weights, other
    with pytest.raises(UserError, match="weights of the trunk changed since the run in"):
        train(config, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
    np.testing.assert_array_equal(trunk_of(tmp_path / "run"), kernel)
    Tiny.weights = before
    train(config, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
    np.testing.assert_array_equal(trunk_of(tmp_path / "run"), kernel)


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_trunk_where_the_cache_is_gone(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_settings(config, QUICK)
    with stopped_in_epoch(2), pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
    kernel = trunk_of(tmp_path / "run")
    assert (kernel != load_trunk("tiny").params["first"]["kernel"]).any()
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(run, "start", None)
    metrics = train(config, tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
    np.testing.assert_array_equal(trunk_of(tmp_path / "run"), kernel)
    shutil.rmtree(tmp_path / "cache")
    found = evaluate(tmp_path / "run", cache_dir=tmp_path / "cache", progress=False)
    assert found == metrics
