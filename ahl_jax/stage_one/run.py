"""Stage one at its edges: images in, epochs with checkpoints and progress, a trained trunk out.

What was trained is kept in the cache folder under a key of all that decides it, so that runs which
agree in that share it.
"""

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from ahl_jax.backbones import Trunk, trunk_from_params
from ahl_jax.common.errors import UserError
from ahl_jax.common.files import alone, holder, remove, writing
from ahl_jax.common.text import pace
from ahl_jax.config.settings import Config
from ahl_jax.data.batches import iter_batches, left_out
from ahl_jax.data.records import ImageSource
from ahl_jax.data.types import Split
from ahl_jax.detectors import Model, make_detector
from ahl_jax.distributed.mesh import everywhere, mesh_for, on_this_process, put_everywhere
from ahl_jax.distributed.processes import arrays_of_primary, is_primary, on_primary, together
from ahl_jax.features.images import VERSION
from ahl_jax.features.maps import trunk_dtype
from ahl_jax.features.store import entry_key
from ahl_jax.features.tiles import frame_of, framing
from ahl_jax.stage_one.model import StageOne, State, detector_config, start
from ahl_jax.storage.checkpoints import Checkpoints

log = logging.getLogger(__name__)

_READ = 64
"""Images read at a time."""

# To be raised by whoever changes what a given trunk and given images train to.
_STAGE_ONE_VERSION = 1


def trained_trunk(
    config: Config,
    split: Split,
    digest: str,
    trunk: Trunk,
    cache_dir: Path,
    own: Checkpoints | None = None,
    *,
    progress: bool,
) -> tuple[Trunk, Model | None]:
    """Trunk and detector after stage one; one that was stopped goes on from its last epoch.

    All processes call it; process 0 alone reads and writes ``cache_dir``. Of several runs that need
    the same trunk at once, one trains it and the others wait.

    Args:
        config: the run's settings.
        split: its images; those that cannot be read are left out or refused as elsewhere.
        digest: the split's, see ``ahl_jax.features.split.split_digest``.
        trunk: the one to start from.
        cache_dir: the folder that keeps features too; here its subfolder ``stage_one``.
        own: the run's checkpoints, on process 0; if they have a trunk already, it is that one.
        progress: whether to report on each epoch.

    Returns:
        The trunk, and the detector on top: None where an earlier version kept the trunk alone, and
        the settings ask for no more.

    Raises:
        UserError: for a bad image, unless the config skips them, or if none is left.
    """
    folder = cache_dir / "stage_one" / stage_one_key(config, digest, trunk)
    found: list[tuple[Any, Any]] = []

    def read(checkpoints: Checkpoints) -> bool:
        if checkpoints.has_trunk() and (
            checkpoints.has_detector() or not config.stage_one.stage_one_heads
        ):
            detector = checkpoints.load_detector() if checkpoints.has_detector() else None
            found.append((checkpoints.load_trunk()[1], detector))
        return bool(found)

    with contextlib.ExitStack() as stack:

        def look() -> bool:
            if own is not None and read(own):
                return True
            stack.enter_context(_alone(folder, progress=progress))
            if read(Checkpoints(folder, read_only=True)):
                with contextlib.suppress(OSError):
                    remove(folder / "training")  # by a kill at the end
            return bool(found)

        if on_primary(look):
            params = arrays_of_primary(found[0][0] if found else trunk.params)
            model = None
            if on_primary(lambda: found[0][1] is not None):
                # Made for its structure alone.
                _, fresh = make_detector(detector_config(config), trunk.channels, jax.random.key(0))
                model = Model.from_arrays(found[0][1]) if found else fresh
                model = arrays_of_primary(jax.tree.map(jnp.asarray, model))
            return trunk_from_params(trunk.name, params, trunk.levels), model
        trained, model = _train_trunk(config, split, trunk, folder / "training", progress=progress)

        def keep() -> None:
            with Checkpoints(folder) as kept:
                kept.save_trunk(trained.name, trained.params, model.arrays())
            remove(folder / "training")

        on_primary(keep)
        return trained, model


def stage_one_key(config: Config, digest: str, trunk: Trunk) -> str:
    """The name of everything that decides what stage one gives; see ``trained_trunk``."""
    learning = config.learning
    one = dataclasses.asdict(config.stage_one)
    del one["stage_one_heads"]  # decides what becomes of it
    read = {
        "seed": config.seed,
        "skip_bad_images": config.data.skip_bad_images,
        "image_size": config.features.image_size,
        "stage_one": one,
        # Those of detectors that are not trained from images do not count.
        "detector": dataclasses.asdict(detector_config(config)) | {"groups": 0, "coreset": 0},
        "generators": config.pseudo.generators,
        "learning": [learning.clip, learning.decay, learning.decay_every],
        **framing(config.features),
    }
    return entry_key(
        version=_STAGE_ONE_VERSION,
        images_version=VERSION,
        images=digest,
        trunk=trunk.digest,
        dtype=str(trunk_dtype(config.features.precision, jax.default_backend())),
        settings=json.dumps(read, sort_keys=True),
    )


@contextlib.contextmanager
def _alone(folder: Path, *, progress: bool) -> Iterator[None]:
    """Keep other runs that need the same trunk waiting."""

    def busy() -> None:
        if progress:
            log.info(
                "stage one: another process trains this trunk in %s%s; waiting for it",
                folder,
                holder(folder),
            )

    with contextlib.ExitStack() as stack:
        with writing(folder, "name another folder with `cache_dir`, or set AHL_CACHE to one"):
            stack.enter_context(alone(folder, busy))
        yield


def _train_trunk(
    config: Config, split: Split, trunk: Trunk, folder: Path, *, progress: bool
) -> tuple[Trunk, Model]:
    """Trunk and detector after all epochs, whose checkpoints go to ``folder``."""
    learner, state = start(config, trunk)
    epochs = config.stage_one.stage_one_epochs
    mesh = mesh_of(config.stage_one.stage_one_batch)
    with together():
        saved = Checkpoints(folder) if is_primary() else None
    try:
        done = on_primary(lambda: (saved.latest_epoch() or 0) if saved else 0)
        with together():
            if saved and done:
                state = saved.restore_state(state, done)
        state = arrays_of_primary(state)
        if done < epochs:
            with together():
                normals = _read(config, split.train_normals)
                anomalies = _read(config, [sample.path for sample in split.seen])
            state = _train(
                learner, state, (normals, anomalies), range(done, epochs), mesh, saved, progress
            )
    finally:
        if saved:
            saved.close()
    return learner.inference(state), state.model


def _train(
    learner: StageOne,
    state: State,
    images: tuple[UInt8[np.ndarray, "n size size 3"], UInt8[np.ndarray, "m size size 3"]],
    epochs: range,
    mesh: Mesh,
    saved: Checkpoints | None,
    progress: bool,
) -> State:
    """The state after these epochs, readable by this process."""
    total = epochs.stop
    placed = put_everywhere(images, mesh)
    current = put_everywhere(state, mesh)
    if progress:
        log.info(
            "stage one: %d normals and %d labelled anomalies, %.0f MiB on each device; compiling",
            *map(len, images),
            sum(one.nbytes for one in images) / 2**20,
        )
    program = compile_epoch(learner, mesh).lower(current, *placed, np.int32(0)).compile()
    for number in epochs:
        began = time.perf_counter()
        current, losses = program(current, *placed, np.int32(number))
        losses = np.asarray(jax.device_get(losses))
        seconds = time.perf_counter() - began
        if not np.isfinite(losses).all():
            raise UserError(
                f"stage one diverged in epoch {number + 1}: its loss is no number any more; give a "
                "smaller `stage_one_lr`"
            )
        state = on_this_process(current, mesh)
        with together():
            if saved:
                about = {"config": learner.config.to_dict(), "losses": losses.tolist()}
                saved.save(number + 1, state=state, metadata=about)
        if progress:
            left = pace(seconds, total - number - 1)
            log.info("stage one: epoch %d/%d  loss %.3f  %s", number + 1, total, losses.sum(), left)
    return state


def compile_epoch(learner: StageOne, mesh: Mesh) -> jax.stages.Wrapped:
    """``StageOne.epoch`` for the mesh, whose devices share the images of a batch."""

    def epoch(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return learner.epoch(*arguments)

    return jax.jit(epoch, donate_argnums=0, out_shardings=everywhere(mesh))


def mesh_of(batch: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """As many devices as can share a batch evenly; by default of those of all processes."""
    devices = jax.devices() if devices is None else devices
    return mesh_for(1, 1, math.gcd(batch, len(devices)), devices)


def _read(config: Config, paths: Sequence[ImageSource]) -> UInt8[np.ndarray, "n size size 3"]:
    """All images that can be read."""
    frame = frame_of(config.features)
    skip = config.data.skip_bad_images
    batches = [b for _, b in iter_batches(paths, frame, _READ, skip_bad=skip, on_bad=left_out)]
    if not batches:
        raise UserError(f"no image of {config.data.data} can be read; replace the images")
    return np.concatenate(batches)
