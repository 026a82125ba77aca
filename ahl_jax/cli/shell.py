"""The edge of every command of this project: logging, compiled programs, exit codes."""

import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

from ahl_jax.cli.mentions import with_options
from ahl_jax.cli.options import names_of
from ahl_jax.common import remote, stop
from ahl_jax.common.errors import IncompleteError, UserError
from ahl_jax.common.files import default_folder
from ahl_jax.common.text import printable

log = logging.getLogger("ahl_jax")


def run_command(command: Callable[[], None], *kinds: type) -> None:
    """Run a command; say what goes wrong in one sentence, and exit with a code that tells.

    1 for data that is not clean, 2 for bad input, 3 for input that is bad in part, 130 for Ctrl-C,
    141 for a closed pipe, 143 for SIGTERM.

    Progress and warnings of the package go to stderr.

    Args:
        command: what to run.
        kinds: dataclasses whose fields are the options that messages name.
    """
    names = names_of(kinds)
    _set_up_logging(names)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names of files may be no text of the terminal's encoding.
            stream.reconfigure(errors="backslashreplace")
    with stop.heard():
        try:
            command()
            stop.check()
        except UserError as error:
            print("ahl:", _shown(str(error), names), file=sys.stderr)
            sys.exit(2)
        except IncompleteError as error:
            print("ahl:", _shown(str(error), names), file=sys.stderr)
            sys.exit(3)
        except BrokenPipeError:
            # Who read our output has enough of it; Python would complain again when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            _exit(stop.asked() or signal.SIGPIPE)
        except Exception as error:
            if not remote.is_failure(error):
                raise
            print("ahl:", remote.failure("object storage", error), file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt as end:
            print(f"\n{stop.in_words()}", file=sys.stderr)
            _exit(end.args[0] if end.args else signal.SIGINT)


def keep_compiled_programs(cache_dir: Path | None = None) -> None:
    """Let later processes skip compilation, unless the user has set JAX's own cache.

    Args:
        cache_dir: the folder that keeps features too; see ``ahl_jax.features.default_folder``.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        import jax

        folder = (remote.any_path(cache_dir) if cache_dir else default_folder()) / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))


class _Formatter(logging.Formatter):
    """Messages alone, with options in them."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__("%(message)s")
        self._names = names

    def format(self, record: logging.LogRecord) -> str:
        return _shown(super().format(record), self._names)


class _Once(logging.Filter):
    """Lets a sentence about data through once, as a command may read the same data again."""

    def __init__(self) -> None:
        super().__init__("ahl_jax.data")
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if not super().filter(record):
            return True
        text = record.getMessage()
        new = text not in self._said
        self._said.add(text)
        return new


def _shown(text: str, names: Collection[str]) -> str:
    """A message with options in it, in which names of strangers steer no terminal."""
    return "\n".join(map(printable, with_options(text, names).split("\n")))


def _set_up_logging(names: Collection[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(names))
    handler.addFilter(_Once())
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    sys.unraisablehook = _unraisable
    # Pillow's own limit is lower than ours, which the message of a refusal names.
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")
    warnings.showwarning = lambda message, *_, **__: log.warning("warning: %s", message)


def _unraisable(what: Any) -> None:
    """Say nothing of what a save still tells an event loop that its failure has closed."""
    if str(what.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(what)


def _exit(number: int) -> NoReturn:
    if stop.asked():
        stop.leave(number)
    sys.exit(128 + number)
