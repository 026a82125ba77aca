"""Stage one at its edges: images in, epochs with checkpoints and progress, a trained trunk out."""

import functools
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from ahl_jax.backbones import Trunk, trunk_from_params
from ahl_jax.checkpoints import Checkpoints
from ahl_jax.config import Config
from ahl_jax.data.images import iter_batches
from ahl_jax.data.records import ImageSource
from ahl_jax.data.samples import Split
from ahl_jax.detectors import DETECTORS
from ahl_jax.devices import everywhere, mesh_for, on_this_process, put_everywhere
from ahl_jax.errors import UserError
from ahl_jax.processes import arrays_of_primary, is_primary, on_primary, together
from ahl_jax.stage_one.model import StageOne, State, start

log = logging.getLogger(__name__)

_READ = 64
"""Images read at a time."""


def check_stage_one(config: Config) -> None:
    """Find out before any work whether the detector can be trained from images.

    Raises:
        UserError: if there is none of that name, or it needs whitened features.
    """
    name = config.stage_one.stage_one_detector
    fit = [known for known, kind in DETECTORS.items() if not kind.whitened]
    if config.stage_one.stage_one and name not in fit:
        raise UserError(
            f"--stage-one-detector has no '{name}'; choose from {', '.join(sorted(fit))}"
        )


def trained_trunk(
    config: Config, split: Split, trunk: Trunk, workdir: Path, *, progress: bool
) -> Trunk:
    """The trunk after stage one; a training that was stopped goes on from its last epoch.

    All processes call it; process 0 alone reads and writes ``workdir``.

    Args:
        config: the run's settings.
        split: its images; those that cannot be read are left out or refused as elsewhere.
        trunk: the one to start from.
        workdir: the run's folder; checkpoints go to its subfolder ``stage_one``.
        progress: whether to report on each epoch.

    Raises:
        UserError: for a bad image, unless the config skips them, or if none is left.
    """
    learner, state = start(config, trunk)
    epochs = config.stage_one.stage_one_epochs
    mesh = _mesh(config.stage_one.stage_one_batch)
    with together():
        saved = Checkpoints(workdir / "stage_one") if is_primary() else None
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
    return trunk_from_params(trunk.name, jax.tree.map(np.asarray, state.trunk))


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
        state = on_this_process(current, mesh)
        with together():
            if saved:
                _save(saved, number + 1, learner.config, state, losses)
        if progress:
            left = round(seconds * (total - number - 1))
            log.info(
                "stage one: epoch %d/%d  loss %.3f  %.1f s  %d:%02d left",
                number + 1, total, losses.sum(), seconds, left // 60, left % 60,
            )  # fmt: skip
    return state


def compile_epoch(learner: StageOne, mesh: Mesh) -> jax.stages.Wrapped:
    """``StageOne.epoch`` for the mesh, whose devices share the images of a batch."""

    def epoch(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return learner.epoch(*arguments)

    return jax.jit(epoch, donate_argnums=0, out_shardings=everywhere(mesh))


def _mesh(batch: int) -> Mesh:
    """As many devices as can share a batch evenly."""
    return mesh_for(1, 1, math.gcd(batch, jax.device_count()))


def _read(config: Config, paths: Sequence[ImageSource]) -> UInt8[np.ndarray, "n size size 3"]:
    """All images that can be read."""
    size = config.features.image_size
    warn = functools.partial(log.warning, "%s is left out: %s")
    skip = config.data.skip_bad_images
    batches = [b for _, b in iter_batches(paths, size, _READ, skip_bad=skip, on_bad=warn)]
    if not batches:
        raise UserError(f"no image of {config.data.data} can be read; replace the images")
    return np.concatenate(batches)


def _save(
    saved: Checkpoints, epoch: int, config: Config, state: State, losses: Float[np.ndarray, " h"]
) -> None:
    metadata = {"config": config.to_dict(), "losses": [float(loss) for loss in losses]}
    saved.save(epoch, inference={"trunk": state.trunk}, state=state, metadata=metadata)
