"""A trained detector as one file that JAX alone runs: ``export_model`` and ``ahl export``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import export as jax_export
from jaxtyping import Array, Float, UInt8

from ahl_jax.common.errors import UserError
from ahl_jax.common.files import replace_file, writing
from ahl_jax.features.tiles import frame_of
from ahl_jax.inference.predictor import Predictor, load
from ahl_jax.inference.threshold import check_cut, cut_of

Platform = Literal["cpu", "cuda", "rocm", "tpu"]

PLATFORMS: tuple[Platform, ...] = ("cpu", "cuda", "tpu")
"""Platforms of a file unless the user names others."""


@dataclass(frozen=True)
class Export:
    """Write a run's detector, with its trunk and threshold, as one file that JAX alone runs."""

    workdir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder that was given to the training."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The file to write."""

    fpr: float | None = None
    """The rate of false positives among normal images that the threshold is set for; 0.01 by
    default."""

    threshold: float | None = None
    """The score above which an image is an anomaly, in the place of `fpr`."""

    platforms: tuple[Platform, ...] = PLATFORMS
    """Where the file is to run."""


def run(command: Export) -> None:
    """Run ``ahl export``.

    Raises:
        UserError: as by ``export_model``.
    """
    exported = export_model(
        command.workdir,
        command.file,
        fpr=command.fpr,
        threshold=command.threshold,
        platforms=command.platforms,
    )
    size = command.file.stat().st_size / 2**20
    height, width = exported.in_avals[0].shape[1:3]
    print(
        f"{command.file} scores RGB images of {width} x {height} pixels on "
        f"{', '.join(exported.platforms)} ({size:.0f} MiB)."
    )


def export_model(
    detector: Predictor | Path | str,
    file: Path | str,
    *,
    fpr: float | None = None,
    threshold: float | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> jax_export.Exported:
    """Write a detector as a ``jax.export`` artifact (StableHLO) with all of its weights inside.

    ``jax.export.deserialize(bytearray(FILE.read_bytes())).call(images, threshold)`` takes uint8
    images [n, height, width, 3] for any n >= 1, RGB, and a float32 threshold [], which is NaN for
    the one that is stored. It gives a dict of

    - ``score``: float32 [n], higher for more anomalous,
    - ``heads``: float32 [n, heads], the score of each head,
    - ``heat``: float32 [n, h, w], the score of each location,
    - ``threshold``: float32 [], the one in use; NaN where neither is there,
    - ``decision``: bool [n], whether the score is above it; without a threshold true,

    and where the run has a calibration

    - ``probability``: float32 [n], the share of normal images that score lower.

    ``height`` and ``width`` are in ``in_avals[0].shape`` of what ``deserialize`` gives. Where the
    run has a crop, a margin or tiles, ``ahl_jax.data.images.read_image`` with the run's
    ``ahl_jax.features.tiles.frame_of`` reads images as they have to be. On a CPU the trunk's
    products are of float32, elsewhere of the run's ``precision``.

    Args:
        detector: a run's folder, or what ``load`` gave.
        file: where to write it; replaced in one step if it is there.
        fpr: the rate of false positives among normal images that the threshold is set for, by
            default 0.01.
        threshold: the score above which an image is an anomaly, in the place of ``fpr``. What
            either gives is stored.
        platforms: of cpu, cuda, rocm and tpu, where it is to run.

    Raises:
        UserError: if the folder holds no trained detector, the file cannot be written, or the
            options do not fit.
    """
    check_cut(fpr, threshold)
    unknown = set(platforms) - {*get_args(Platform)}
    if unknown or not platforms:
        raise UserError(
            f"`platforms` are {', '.join(platforms) or 'none'}; choose from "
            f"{', '.join(get_args(Platform))}"
        )
    file = Path(file)
    if file.is_dir() or not file.parent.is_dir():
        what = "is a folder" if file.is_dir() else f"cannot be written, as {file.parent} is none"
        raise UserError(f"{file} {what}; name a file in a folder that there is")
    predictor = detector if isinstance(detector, Predictor) else load(detector)
    calibration = predictor.calibration
    cut = cut_of(calibration, fpr, threshold)
    stored = cut.threshold if cut else np.nan
    # The weights become constants of the program.
    arrays = jax.tree.map(_uneven, predictor.arrays)

    def model(
        images: UInt8[Array, "n height width 3"], threshold: Float[Array, ""]
    ) -> dict[str, Any]:
        scores, heads, heat = predictor.apply(jax.tree.map(jnp.asarray, arrays), images)
        used = jnp.where(jnp.isnan(threshold), jnp.float32(stored), threshold)
        # What nothing can be said of is to be looked at.
        found: dict[str, Any] = {"score": scores, "heads": heads, "heat": heat}
        found |= {"threshold": used, "decision": ~(scores <= used)}
        if calibration is not None:
            found["probability"] = calibration.probability(scores, jnp)
        return found

    frame = frame_of(predictor.config.features)
    (n,) = jax_export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((n, frame.height, frame.width, 3), jnp.uint8)
    given = images, jax.ShapeDtypeStruct((), jnp.float32)
    exported = jax_export.export(jax.jit(model), platforms=list(platforms))(*given)
    with writing(file, "name another file"):
        replace_file(file, bytes(exported.serialize()))
    return exported


def _uneven(array: Array) -> np.ndarray:
    """The array; of a matrix whose values are all equal the first is the next float above.

    XLA folds a constant of one value to a scalar, and on CPUs its products with such matrices read
    past that one (jaxlib 0.10.2): any score may come out. A metric that is not trained is zeros.
    """
    values = np.asarray(array)
    products = values.ndim > 1 and jnp.issubdtype(values.dtype, jnp.floating)
    if products and values.size and (values == values.flat[0]).all():
        values = values.copy()
        values.flat[0] = np.nextafter(values.flat[0], np.inf, dtype=values.dtype)
    return values
