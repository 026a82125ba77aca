"""Several processes that train one run together: what one of them says or suffers, all learn.

Every process runs the same program. What only process 0 may do (write files, report), it does in
``on_primary``; what any of them may fail at, they do in ``together``. Both end with an exchange of
verdicts: one failure is everyone's, so that no process waits in a computation that another never
joins. With one process all of this costs nothing.

Words travel through JAX's coordination service, which needs no devices and waits as long as it
takes; arrays travel through the devices. A process that dies without a word is noticed by the
service's heartbeats, and ends the others.
"""

import contextlib
import itertools
import json
import logging
import math
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped
from orbax.checkpoint import multihost

from ahl_jax.common import stop
from ahl_jax.common.errors import UserError
from ahl_jax.common.text import first_line
from ahl_jax.distributed.host_arrays import from_host, to_host
from ahl_jax.distributed.part import Part

T = TypeVar("T")

log = logging.getLogger(__name__)

_START_SECONDS = 300
_POLL_MS = 1000
_numbers = itertools.count()


def initialize(coordinator: str | None, process_id: int | None, processes: int | None) -> None:
    """Join the other processes; call it before anything else of JAX.

    Args:
        coordinator: HOST:PORT of process 0; as the other two, None where JAX finds it out (TPU,
            Slurm, Open MPI).
        process_id: this process's number, from 0.
        processes: how many there are.

    Raises:
        UserError: if the arguments are not understood, or process 0 cannot be reached.
    """
    given = (coordinator, process_id, processes)
    if None in given and given != (None, None, None):
        raise UserError("`coordinator`, `process_id` and `processes` go together; give all three")
    if coordinator is not None and process_id is not None and processes is not None:
        host, colon, port = coordinator.rpartition(":")
        if not (host and colon and port.isdigit() and 0 < int(port) < 2**16):
            raise UserError(f"`coordinator` is '{coordinator}'; it must be HOST:PORT")
        if not 0 <= process_id < processes:
            raise UserError(
                f"`process_id` is {process_id}; it must be from 0 to {processes - 1}, as "
                f"`processes` is {processes}"
            )
        if process_id:
            _await_port(host.strip("[]"), int(port))
    # JAX would take SIGTERM for itself otherwise.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator, processes, process_id, initialization_timeout=_START_SECONDS
        )
    except (RuntimeError, ValueError, OSError) as error:
        advice = (
            "check `coordinator`"
            if coordinator
            else "on machines other than TPU slices and Slurm or MPI clusters, give `coordinator`, "
            "`process_id` and `processes`"
        )
        reason = first_line(error).rstrip(".")
        raise UserError(f"cannot join the other processes ({reason}); {advice}") from error
    stop.share()


def is_primary() -> bool:
    """Whether this is process 0, the one that writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together(*, before_a_stop: bool = False) -> Iterator[None]:
    """A part of the program that fails on all processes if it fails on one; never nested.

    The others raise what the first one to fail raised, if it was a UserError or a
    KeyboardInterrupt, and a RuntimeError otherwise.

    Args:
        before_a_stop: do this part whole, even if a stop was asked for earlier.
    """
    with _round([], before_a_stop=before_a_stop):
        yield


def on_primary(work: Callable[[], T]) -> T:
    """Runs ``work`` on process 0 and returns its result on every process; never nested.

    Args:
        work: called on process 0 alone; gives JSON types.

    Raises:
        UserError: whatever ``work`` raises on process 0, on every process; see ``together``.
    """
    return on_each(lambda: work() if is_primary() else None)[0]  # type: ignore[return-value]


def on_each(work: Callable[[], T]) -> list[T]:
    """Runs ``work`` on each process and returns all results on every process; never nested.

    Args:
        work: called on every process; gives JSON types.

    Raises:
        UserError: whatever ``work`` raises on any process, on every process; see ``together``.
    """
    results: list[Any] = []
    with _round(results):
        results.append(work())
    return results


def same_everywhere(value: str) -> bool:
    """Whether all processes call this with the same value."""
    if jax.process_count() == 1:
        return True
    return len(set(_exchange(value))) == 1


def rows_of_all(array: Shaped[np.ndarray, "n ..."], part: Part) -> Shaped[np.ndarray, "m ..."]:
    """The rows of all parts, in their order, on every process.

    Args:
        array: those of this process's part; parts may differ in their numbers of rows.
        part: which one that is; where it is all, every process has the rows.
    """
    if part.of == 1:
        return array
    counts = on_each(lambda: len(array))
    filled = np.zeros((max(counts), *array.shape[1:]), array.dtype)
    filled[: len(array)] = array
    # As bytes, since JAX would make float32 of float64.
    gathered = np.asarray(multihost_utils.process_allgather(filled.view(np.uint8)))
    rows = [one[:n].view(array.dtype) for one, n in zip(gathered, counts, strict=True)]
    return np.concatenate(rows)


def arrays_of_primary(tree: Any) -> Any:
    """Process 0's arrays, on every process.

    Args:
        tree: a pytree of arrays, keys and Python numbers. Its structure must be the same on every
            process; shapes may differ.

    Returns:
        The tree, with leaves of the types that they had, on this process's devices.
    """
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    host = [to_host(leaf) for leaf in leaves] if is_primary() else []
    told = on_primary(lambda: [[str(array.dtype), *array.shape] for array in host])
    kinds = [(np.dtype(str(dtype)), shape) for dtype, *shape in told]
    ends = np.cumsum([0, *(dtype.itemsize * math.prod(shape) for dtype, shape in kinds)])
    content = np.zeros(ends[-1], np.uint8)
    for array, start in zip(host, ends, strict=False):
        content[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
    content = np.asarray(multihost_utils.broadcast_one_to_all(content))
    values = [
        content[start:end].view(dtype).reshape(shape)
        for (dtype, shape), start, end in zip(kinds, ends, ends[1:], strict=False)
    ]
    restored = [from_host(value, leaf) for value, leaf in zip(values, leaves, strict=True)]
    return jax.tree.unflatten(structure, restored)


@contextlib.contextmanager
def _round(results: list[Any], *, before_a_stop: bool = False) -> Iterator[None]:
    """Run the body, then exchange what came of it; ``results`` becomes that of all processes."""
    if jax.process_count() == 1:
        with _stoppable(before_a_stop=before_a_stop):
            yield
        return
    failure: BaseException | None = None
    try:
        with _stoppable(before_a_stop=before_a_stop):
            yield
    except BaseException as error:
        failure = error
    finally:
        stop.allow(here=False)
    told = _exchange(json.dumps({"failure": _in_words(failure), "results": results}))
    if failure is not None:
        raise failure
    verdicts = [json.loads(each) for each in told]
    for process, verdict in enumerate(verdicts):
        if verdict["failure"] is not None:
            _raise(process, *verdict["failure"])
    results[:] = [result for verdict in verdicts for result in verdict["results"]]


@contextlib.contextmanager
def _stoppable(*, before_a_stop: bool) -> Iterator[None]:
    stop.allow(here=not before_a_stop)
    stop.check()
    try:
        yield
    finally:
        stop.allow(here=True)
    if before_a_stop:
        stop.check()


def _in_words(failure: BaseException | None) -> tuple[str, Any] | None:
    if failure is None:
        return None
    if isinstance(failure, UserError):
        return "user", str(failure)
    if isinstance(failure, KeyboardInterrupt):
        return "stop", failure.args[0] if failure.args else int(signal.SIGINT)
    return "bug", f"{type(failure).__name__}: {failure}"


def _raise(process: int, kind: str, what: Any) -> None:
    if kind == "user":
        raise UserError(what)
    if kind == "stop":
        raise KeyboardInterrupt(what)
    raise RuntimeError(f"process {process} failed, its own log says where ({what})")


def _exchange(value: str) -> list[str]:
    """Every process's value, on every process. All must call this in the same order."""
    client = multihost.get_jax_distributed_client()
    number, me = next(_numbers), jax.process_index()
    folder = f"ahl_jax/{number}"
    if me == 0:
        others = [_get(client, f"{folder}/{p}") for p in range(1, jax.process_count())]
        client.key_value_set(f"{folder}/all", json.dumps([value, *others]))
        # Who has spoken in this round has heard all of the last one.
        client.key_value_delete(f"ahl_jax/{number - 1}")
    else:
        client.key_value_set(f"{folder}/{me}", value)
    return json.loads(_get(client, f"{folder}/all"))


def _get(client: Any, key: str) -> str:
    """Wait for a value in small portions, so that signals are heard."""
    while True:
        try:
            return client.blocking_key_value_get(key, _POLL_MS)
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("DEADLINE_EXCEEDED"):
                raise


def _await_port(host: str, port: int) -> None:
    """Wait for process 0 to listen; JAX itself would end in a stack trace if it never does."""
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=10).close()
            return
        except OSError as error:
            if time.monotonic() > end or isinstance(error, socket.gaierror):
                raise UserError(
                    f"process 0 cannot be reached at {host}:{port} "
                    f"({(error.strerror or str(error)).lower()}); check `coordinator`, and that "
                    "process 0 runs there"
                ) from error
            time.sleep(0.2)
