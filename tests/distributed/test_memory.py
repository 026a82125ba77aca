"""The memory that features may take by default."""

from pathlib import Path

import pytest

from ahl_jax.distributed import memory


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({"memory.max": "2147483648\n"}, [2**31]),
        ({"memory.max": "max\n"}, []),
        ({"memory/memory.limit_in_bytes": "1073741824\n"}, [2**30]),
        ({}, []),
    ],
)
def test_a_container_has_its_limit(tmp_path: Path, files: dict, limits: list[int]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory.container_limits(tmp_path) == limits


def test_features_may_take_less_where_the_container_is_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = memory.on_host(None)
    monkeypatch.setattr(memory, "container_limits", lambda: [2**20])
    assert memory.on_host(None) == 0.4 * 2**20 < whole
    assert memory.on_host(1) == 2**30
