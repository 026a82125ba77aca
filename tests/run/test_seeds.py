from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ahl_jax import Config, evaluate, train, train_seeds
from ahl_jax.config.presets import with_settings
from ahl_jax.learning.seeds import scan_epochs, stack_problems
from tests.problems import make_config, make_setting
from tests.runs import FinishedRun, history, inference, stopped_in_epoch


@pytest.fixture(
    scope="module",
    params=[
        {"detector": "devnet", "importance": "accuracy"},
        pytest.param({}, marks=pytest.mark.slow),
    ],
    ids=["devnet", "dra"],
)
def alone(
    config: Config, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> FinishedRun:
    config = with_settings(config, request.param)
    workdir = tmp_path_factory.mktemp("alone")
    return FinishedRun(config, workdir, train(config, workdir, progress=False))


@pytest.fixture(scope="module")
def folder(alone: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seeds")
    metrics = train_seeds(alone.config, path, (0, 1), checkpoint_every=2, progress=False)
    assert [m["seed"] for m in metrics] == [0, 1]
    return path


def test_every_seed_gets_what_it_gets_alone(folder: Path, alone: FinishedRun) -> None:
    # Rounding of differently batched products, after 4 epochs of Adam.
    for a, b in zip(inference(alone.workdir), inference(folder / "seed-0"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    for row, expected in zip(history(folder / "seed-0"), history(alone.workdir), strict=True):
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            if value:
                assert float(row[name]) == pytest.approx(float(value), rel=2e-3), name
    other = inference(folder / "seed-1")
    assert not np.allclose(other[-1], inference(folder / "seed-0")[-1], rtol=1e-2)


def test_a_seeds_folder_is_a_run_like_any_other(folder: Path) -> None:
    assert evaluate(folder / "seed-1", progress=False)["seed"] == 1


@pytest.mark.slow
def test_stopped_seeds_go_on_from_their_last_common_epoch(
    alone: FinishedRun, folder: Path, tmp_path: Path
) -> None:
    config = alone.config
    with stopped_in_epoch(4, "seed-1"), pytest.raises(KeyboardInterrupt):
        train_seeds(config, tmp_path, (0, 1), checkpoint_every=2, progress=False)
    train_seeds(config, tmp_path, (0, 1), checkpoint_every=2, progress=False)
    for seed in ("seed-0", "seed-1"):
        for a, b in zip(inference(folder / seed), inference(tmp_path / seed), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
        rows = [row["epoch"] for row in history(tmp_path / seed)]
        assert rows == ["1", "2", "3", "4"]


@pytest.mark.slow
def test_a_seed_added_later_leaves_the_finished_ones_alone(
    alone: FinishedRun, folder: Path
) -> None:
    before = inference(folder / "seed-0")
    metrics = train_seeds(alone.config, folder, (0, 2), progress=False)
    assert [m["seed"] for m in metrics] == [0, 2]
    for a, b in zip(before, inference(folder / "seed-0"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("importance", ["accuracy", pytest.param("psi", marks=pytest.mark.slow)])
def test_chunks_do_not_retrace_and_move_nothing_to_the_host(importance: str) -> None:
    config = make_config(detector="devnet", importance=importance)
    problems = [make_setting(with_settings(config, {"seed": seed})) for seed in (0, 1)]
    # Each problem has a bank of its own here, with the same images in the same places.
    states, data = stack_problems(problems)
    learner = problems[0].learner
    traces = 0

    def counted(states, data, numbers):
        nonlocal traces
        traces += 1
        return scan_epochs(learner, states, data, numbers)

    step = jax.jit(counted, donate_argnums=0)
    numbers = [jnp.arange(2) + start for start in (0, 2, 4)]
    with jax.transfer_guard("disallow"):
        for chunk in numbers:
            states, logs = step(states, data, chunk)
    assert traces == 1
    assert step._cache_size() == 1
    assert logs.weights.shape == (2, 2, 3)
