"""``ahl doctor``: what this machine has for a run, and what a run would use."""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

from ahl_jax.common.errors import UserError
from ahl_jax.common.files import default_folder, reason
from ahl_jax.common.remote import any_path, url_of
from ahl_jax.common.text import counted
from ahl_jax.config.checks import ANYWHERE

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")
_PLUGINS = {
    "gpu": ("jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin"),
    "tpu": ("libtpu",),
}


@dataclass(frozen=True)
class Doctor:
    """Show devices, versions, memory, cache and weights, and what a run would use."""

    cache_dir: Annotated[Path | None, ANYWHERE] = None
    """The folder that keeps features and weights; by default $AHL_CACHE, else
    ~/.cache/ahl_jax."""


def run(command: Doctor) -> None:
    """Run ``ahl doctor``."""
    rows = [*_versions(), *_devices(), *_memory(), *_cache(command.cache_dir)]
    width = max(len(title) for title, _ in rows)
    for title, text in rows:
        print(f"{title:<{width}}  {text}")


def _versions() -> Iterator[tuple[str, str]]:
    yield "ahl_jax", f"{metadata.version('ahl_jax')}, Python {platform.python_version()}"
    found = (_version(name) for name in (*_LIBRARIES, *sum(_PLUGINS.values(), ())))
    yield "libraries", ", ".join(filter(None, found))


def _version(name: str) -> str | None:
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[tuple[str, str]]:
    import jax

    from ahl_jax.features.maps import trunk_dtype

    devices, backend = jax.devices(), jax.default_backend()
    yield "devices", f"{counted(len(devices), backend.upper())}: {devices[0].device_kind}"
    if jax.process_count() > 1:
        yield "hosts", str(jax.process_count())
    if backend == "cpu":
        if asked := os.environ.get("JAX_PLATFORMS"):
            why = f"JAX_PLATFORMS is {asked}"
        elif there := [kind for kind, names in _PLUGINS.items() if any(map(_version, names))]:
            why = f"jax finds no {' or '.join(kind.upper() for kind in there)}"
        else:
            why = "no plugin for a GPU or TPU is installed: pip install '.[cuda]' or '.[tpu]'"
        yield "why the CPU", why
    yield (
        "precision",
        f"the trunk multiplies in {trunk_dtype('float32', backend)}, with --precision bfloat16 in "
        f"{trunk_dtype('bfloat16', backend)}",
    )


def _memory() -> Iterator[tuple[str, str]]:
    from ahl_jax.distributed.cores import cores
    from ahl_jax.distributed.memory import on_device, on_host

    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield "memory", f"{gib:.0f} GiB, {counted(cores(), 'CPU core')}"
    yield (
        "for features",
        f"{on_host(None) / 2**30:.0f} GiB in memory and {on_device(None) / 2**30:.0f} GiB on each "
        "device (--feature-memory); more stays on disk and is streamed",
    )


def _cache(given: Path | None) -> Iterator[tuple[str, str]]:
    import jax

    from ahl_jax.backbones import TRUNKS

    folder = default_folder() if given is None else any_path(given)
    yield "cache", f"{folder}: {_content(folder)}"
    programs = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    yield "programs", f"{programs}: {_content(any_path(programs))}"
    ready = [name for name in sorted(TRUNKS) if _has_weights(name, folder)]
    yield "weights", f"{', '.join(ready) or 'none'} (`ahl weights list` names the others)"


def _has_weights(trunk: str, folder: Path) -> bool:
    from ahl_jax.backbones import weights_files

    try:
        return all(file.is_file() for file in weights_files(trunk, folder).values())
    except UserError:
        return False


def _content(folder: Path) -> str:
    """How much a folder holds, or why nothing can be kept in it."""
    if url_of(folder):
        return "in object storage"
    size = files = 0
    try:
        for path, _, names in os.walk(folder):
            files += len(names)
            size += sum(os.lstat(os.path.join(path, name)).st_size for name in names)
        first = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        free = os.statvfs(first)
    except OSError as error:
        return f"cannot be read ({reason(error)})"
    writable = "" if os.access(first, os.W_OK) else ", and you may not write there"
    gib = free.f_bavail * free.f_frsize / 2**30
    return f"{counted(files, 'file')}, {size / 2**30:.1f} GiB; {gib:.0f} GiB are free{writable}"
