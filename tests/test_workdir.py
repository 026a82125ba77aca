"""Which runs a folder takes."""

from pathlib import Path

import pytest

from ahl_jax import UserError, preset
from ahl_jax.workdir import Workdir

ONE, OTHER = (preset("debug", "elpv", shots=shots) for shots in (3, 4))


def test_a_run_without_any_epoch_gives_way_to_another(tmp_path: Path) -> None:
    folder = Workdir(tmp_path / "run")
    folder.claim(ONE, overwrite=False)
    folder.bind_data("digest")
    folder.claim(ONE, overwrite=False)
    assert folder.data_digest() == "digest"  # The same run goes on.
    folder.claim(OTHER, overwrite=False)
    assert folder.config() == OTHER
    assert folder.data_digest() is None


@pytest.mark.parametrize("left", ["history.csv", "metrics.json", "checkpoint/epoch_1"])
def test_a_run_with_an_epoch_does_not(tmp_path: Path, left: str) -> None:
    folder = Workdir(tmp_path / "run")
    folder.claim(ONE, overwrite=False)
    (tmp_path / "run" / left).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / left).touch()
    with pytest.raises(UserError, match="already holds a different run"):
        folder.claim(OTHER, overwrite=False)
    assert folder.config() == ONE
    folder.claim(OTHER, overwrite=True)
    assert folder.config() == OTHER
    assert not (tmp_path / "run" / left).exists()
