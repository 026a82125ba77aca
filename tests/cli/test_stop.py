"""Signals ask a command to stop, and it does, wherever it is."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from ahl_jax import train
from ahl_jax.cli.shell import run_command
from ahl_jax.common import stop
from tests.runs import FinishedRun, inference

WORKS = {
    "at a safe point": """
        me()
        stop.check()
        os._exit(99)
    """,
    "at the end": "me()",
    "where an exception is swallowed": """
        gc.callbacks.append(lambda phase, _: phase == "start" and me())
        gc.collect()
        gc.callbacks.clear()
        stop.check()
        os._exit(99)
    """,
    "where nothing is safe": """
        stop._GRACE = 0.5
        me()
        time.sleep(60)
    """,
    "twice": """
        me()
        me()
        time.sleep(60)
    """,
    # As Orbax has one.
    "in an event loop": """
        async def loop():
            me()
        uvloop.new_event_loop().run_until_complete(loop())
        stop.check()
        os._exit(99)
    """,
    # As the compiler does.
    "where no handler runs": """
        stop._GRACE = 0.5
        threading.Timer(0.5, me).start()
        {ctypes.CDLL(None).usleep(300_000) for _ in range(200)}
    """,
}


@pytest.mark.parametrize("work", WORKS)
def test_a_signal_is_never_lost(work: str) -> None:
    code = """
        import ctypes, gc, os, signal, threading, time
        import uvloop
        from ahl_jax.cli.shell import run_command
        from ahl_jax.common import stop
        def me():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
        def work():
    """
    code = textwrap.dedent(code) + textwrap.indent(textwrap.dedent(WORKS[work]), "    ")
    done = subprocess.run(
        [sys.executable, "-c", code + "\nrun_command(work)"],
        capture_output=True,
        text=True,
        env=os.environ,
        timeout=45,
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "ahl: stopped; the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("until_then", [True, False])
def test_what_runs_until_it_is_stopped_has_nothing_to_go_on_with(
    until_then: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        if until_then:
            stop.expected()
        raise KeyboardInterrupt(signal.SIGTERM)

    with pytest.raises(SystemExit, match="143"):
        run_command(work)
    more = "" if until_then else "; the same command goes on from where it was"
    assert capsys.readouterr().err == f"\nahl: stopped{more}\n"


def test_a_training_in_the_background_of_a_script_hears_ctrl_c_too() -> None:
    code = """
        import os, signal, time
        from ahl_jax.cli.shell import run_command
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        run_command(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0.3)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=os.environ)
    assert done.returncode == 128 + signal.SIGINT


def _stopped(run: FinishedRun, workdir: Path, cache: Path, delay: float, how: int) -> bool:
    """Stop a training that nothing is cached for; whether it was not all done before."""
    command = [sys.executable, "-m", "ahl_jax", "train", run.config.data.data, "--shots", "4"]
    command += ["--workdir", str(workdir), "--preset", "debug"]
    cold = {"AHL_CACHE": str(cache), "JAX_COMPILATION_CACHE_DIR": str(cache / "compiled")}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | cold
    )
    time.sleep(delay)
    process.send_signal(how)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    if process.returncode == 0:
        assert (workdir / "metrics.json").exists(), said
        return False
    assert process.returncode == 128 + how, said
    assert time.monotonic() - began < 10
    assert said.endswith("ahl: stopped; the same command goes on from where it was\n")
    assert "Traceback" not in said
    return True


def test_a_training_stops_from_its_first_second(finished: FinishedRun, tmp_path: Path) -> None:
    for delay, how in ((0.5, signal.SIGINT), (2, signal.SIGTERM)):
        assert _stopped(finished, tmp_path / "run", tmp_path / "cache", delay, how)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_training_stops_at_any_moment_of_a_cold_start_and_goes_on(
    finished: FinishedRun, tmp_path: Path
) -> None:
    rng = random.Random(0)
    runs, latest = [tmp_path / "run-0"], 20.0
    for number in range(50):
        delay, how = rng.uniform(0.3, latest), rng.choice((signal.SIGINT, signal.SIGTERM))
        if not _stopped(finished, runs[-1], tmp_path / f"cache-{number}", delay, how):
            latest = delay
            runs.append(tmp_path / f"run-{len(runs)}")
    for run in runs:
        metrics = train(finished.config, run, progress=False)
        assert metrics | {"seconds": 0} == finished.metrics | {"seconds": 0}
        for a, b in zip(inference(finished.workdir), inference(run), strict=True):
            np.testing.assert_array_equal(a, b)
