import signal

import pytest

from ahl_jax.common import stop
from ahl_jax.distributed.processes import together


@pytest.mark.parametrize("before_a_stop", [False, True])
def test_a_part_that_must_not_be_lost_is_done_before_a_stop(
    monkeypatch: pytest.MonkeyPatch, *, before_a_stop: bool
) -> None:
    monkeypatch.setattr(stop._state, "asked", signal.SIGTERM)
    done = []

    def save() -> None:
        with together(before_a_stop=before_a_stop):
            stop.check()
            done.append("saved")

    with pytest.raises(KeyboardInterrupt):
        save()
    assert bool(done) == before_a_stop
