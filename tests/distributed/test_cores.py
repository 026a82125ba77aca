"""A batch on all cores of a CPU: the parts, their order, and what they raise."""

import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ahl_jax.distributed import cores
from ahl_jax.distributed.cores import on_all_cores


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores, whatever the machine has."""
    monkeypatch.setattr(cores, "cores", lambda: 4)
    cores._threads.cache_clear()


def test_the_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    affinity = getattr(os, "sched_getaffinity", None)
    most = len(affinity(0)) if affinity else os.cpu_count() or 1
    assert 1 <= cores.cores.__wrapped__() <= most
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert cores.cores.__wrapped__() == 1


@pytest.mark.parametrize(
    ("images", "expected"), [(1, 1), (2, 2), (3, 3), (6, 3), (7, 1), (16, 4), (20, 4)]
)
@pytest.mark.usefixtures("four_cores")
def test_parts_are_equal_and_no_more_than_the_cores(images: int, expected: int) -> None:
    assert cores.parts(images) == expected


@pytest.mark.usefixtures("four_cores")
def test_a_batch_in_parts_has_the_results_of_the_whole_in_its_order() -> None:
    seen: list[tuple[int, str]] = []

    def program(images: np.ndarray) -> dict[str, jax.Array]:
        seen.append((len(images), threading.current_thread().name))
        return {"twice": 2 * jnp.asarray(images), "sums": jnp.asarray(images).sum(1)}

    images = np.arange(24, dtype=np.float32).reshape(8, 3)
    found = on_all_cores(program, images)
    np.testing.assert_array_equal(found["twice"], 2 * images)
    np.testing.assert_array_equal(found["sums"], images.sum(1))
    assert [size for size, _ in seen] == [2] * 4
    assert all(name.startswith("image") for _, name in seen)


@pytest.mark.usefixtures("four_cores")
def test_another_platform_gets_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    sizes: list[int] = []
    on_all_cores(lambda images: sizes.append(len(images)), np.zeros((8, 2)))
    assert sizes == [8]


@pytest.mark.usefixtures("four_cores")
def test_what_a_part_raises_is_raised() -> None:
    def program(images: np.ndarray) -> np.ndarray:
        if images[0] == 3:
            raise ValueError("the third")
        return images

    with pytest.raises(ValueError, match="the third"):
        on_all_cores(program, np.arange(4))
