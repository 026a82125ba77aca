"""A trained detector as one file: ``export_model``, ``export_onnx`` and ``ahl export``."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Array, Float, UInt8

from ahl_jax.common.errors import UserError
from ahl_jax.common.files import replace_file, writing
from ahl_jax.common.libraries import library
from ahl_jax.config.presets import with_settings
from ahl_jax.inference.options import PLATFORMS, Export, Platform
from ahl_jax.inference.predictor import Predictor, load
from ahl_jax.inference.threshold import check_cut

ONNX = ".onnx"
"""How the name of an ONNX file ends."""

_OTHERS = (".h5", ".json", ".pb", ".pkl", ".pt", ".pth", ".safetensors", ".tflite", ".txt", ".xml")
"""How the names of files in other formats end."""

_LARGEST = 2**31 - 2**20
"""Bytes of weights that an ONNX file holds: the whole is below 2 GiB."""


def run(command: Export) -> None:
    """Run ``ahl export``.

    Raises:
        UserError: as by ``export_model`` and ``export_onnx``.
    """
    cut = {"fpr": command.fpr, "threshold": command.threshold}
    predictor, file = load(command.workdir), command.file
    if not _is_onnx(file):
        export_model(predictor, file, **cut, platforms=command.platforms)
        where = f"on {', '.join(command.platforms)}"
    elif command.platforms != PLATFORMS:
        raise UserError("`platforms` are those of a file for JAX; leave them out for ONNX")
    else:
        export_onnx(predictor, file, **cut)
        where = "with ONNX Runtime and OpenVINO"
    frame, size = predictor.frame, file.stat().st_size / 2**20
    pixels = f"{frame.width} x {frame.height} pixels"
    print(f"{file} scores RGB images of {pixels} {where} ({size:.0f} MiB).")
    part = f"the crop {' '.join(map(str, frame.crop))}" if frame.crop else "all"
    fit = "within a margin that keeps its aspect" if frame.keep_aspect else "stretched"
    print(f"An image is {part} of a photograph, {fit}; docs/examples/onnx/score.py reads it so.")


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

    ``fun_name`` of what ``deserialize`` gives is JSON: the fields of ``ahl_jax.data.frame.Frame``,
    which say how photographs become such images. ``read`` in docs/examples/onnx/score.py takes
    them. On a CPU the trunk's products are of float32, elsewhere of the run's ``precision``.

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
    file = _checked(file)
    if _is_onnx(file):
        raise UserError(f"{file} would be no ONNX; write that with `export_onnx`")
    if file.suffix.lower() in _OTHERS:
        raise UserError(
            f"{file} would be no {file.suffix} file; a name in {ONNX} gives ONNX, and any other, "
            "such as model.jax, the file for JAX"
        )
    predictor = detector if isinstance(detector, Predictor) else load(detector)
    model, _ = _program(predictor, fpr, threshold)
    # The weights become constants of the program.
    arrays = jax.tree.map(_uneven, predictor.arrays)
    program = functools.partial(model, arrays)
    inputs = _inputs(predictor).values()
    exported = jax_export.export(jax.jit(program), platforms=list(platforms))(*inputs)
    # The one text that the format has a place for.
    exported = dataclasses.replace(exported, fun_name=_framing(predictor))
    with writing(file, "name another file"):
        replace_file(file, bytes(exported.serialize()))
    return exported


def export_onnx(
    detector: Predictor | Path | str,
    file: Path | str,
    *,
    fpr: float | None = None,
    threshold: float | None = None,
) -> None:
    """Write a detector as ONNX with all of its weights inside, for ONNX Runtime and OpenVINO.

    The input ``images`` and the outputs are those of ``export_model``. ``set_threshold`` may be
    left out; it stands in the place of the threshold that is stored. All products are of float32.
    The metadata ``frame`` is what ``fun_name`` is there.

    Args:
        detector: as for ``export_model``.
        file: as for ``export_model``; its name ends in .onnx.
        fpr: as for ``export_model``.
        threshold: as for ``export_model``.

    Raises:
        UserError: as by ``export_model``; if the package onnx is missing, the detector is of more
            than 2 GiB, or it computes what there is no ONNX for here.
    """
    onnx = library("onnx", "writing ONNX", "onnx")
    from ahl_jax.inference.onnx.convert import to_onnx

    check_cut(fpr, threshold)
    file = _checked(file)
    if not _is_onnx(file):
        raise UserError(f"{file} is no name for ONNX; let it end in {ONNX}")
    predictor = detector if isinstance(detector, Predictor) else load(detector)
    precise = with_settings(predictor.config, {"precision": "float32"})
    predictor = dataclasses.replace(predictor, config=precise)
    arrays = jax.tree.map(functools.partial(np.asarray, dtype=np.float32), predictor.arrays)
    if (bytes_ := sum(x.nbytes for x in jax.tree.leaves(arrays))) > _LARGEST:
        raise UserError(
            f"the detector has {bytes_ / 2**30:.1f} GiB of weights, and an ONNX file holds 2 GiB; "
            "export it for JAX, to a name without .onnx, or train with fewer --levels, or --views 8"
        )
    model, stored = _program(predictor, fpr, threshold)
    written = to_onnx(model, arrays, _inputs(predictor), {"set_threshold": np.array(stored)})
    onnx.helper.set_model_props(written, {"frame": _framing(predictor)})
    with writing(file, "name another file"):
        replace_file(file, written.SerializeToString())


def _is_onnx(file: Path) -> bool:
    return file.suffix.lower() == ONNX


def _checked(file: Path | str) -> Path:
    """The path of a file that can be written.

    Raises:
        UserError: if it is a folder, or in none.
    """
    file = Path(file)
    if file.is_dir() or not file.parent.is_dir():
        what = "is a folder" if file.is_dir() else f"cannot be written: {file.parent} is no folder"
        raise UserError(f"{file} {what}; name a file in a folder that there is")
    return file


def _program(
    predictor: Predictor, fpr: float | None, threshold: float | None
) -> tuple[Callable[..., dict[str, Array]], float]:
    """The function of arrays, images and a threshold, and the threshold that is stored."""
    calibration = predictor.calibration
    cut = predictor.cut(fpr, threshold)
    stored = cut.threshold if cut else float("nan")

    def model(
        arrays: dict[str, Any], images: UInt8[Array, "n h w 3"], threshold: Float[Array, ""]
    ) -> dict[str, Array]:
        scores, heads, heat = predictor.apply(jax.tree.map(jnp.asarray, arrays), images)
        used = jnp.where(jnp.isnan(threshold), jnp.float32(stored), threshold)
        # What nothing can be said of is to be looked at.
        found = {"score": scores, "heads": heads, "heat": heat}
        found |= {"threshold": used, "decision": ~(scores <= used)}
        if calibration is not None:
            found["probability"] = calibration.probability(scores, jnp)
        return found

    return model, stored


def _framing(predictor: Predictor) -> str:
    """How photographs become images, in JSON."""
    return json.dumps(dataclasses.asdict(predictor.frame))


def _inputs(predictor: Predictor) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of images, in any number, and of a threshold."""
    frame = predictor.frame
    (n,) = jax_export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((n, frame.height, frame.width, 3), jnp.uint8)
    return {"images": images, "set_threshold": jax.ShapeDtypeStruct((), jnp.float32)}


def _uneven(array: Array) -> np.ndarray:
    """The array; of a matrix whose values are all equal the first is the next float above.

    XLA folds a constant of one value to a scalar, and on CPUs its products with such matrices read
    past that one (jaxlib 0.10.2): any score may come out.
    """
    values = np.asarray(array)
    products = values.ndim > 1 and jnp.issubdtype(values.dtype, jnp.floating)
    if products and values.size and (values == values.flat[0]).all():
        values = values.copy()
        # JAX's, as NumPy has none for bfloat16.
        values.flat[:1] = jax.lax.nextafter(values.flat[:1], values.dtype.type(np.inf))
    return values
