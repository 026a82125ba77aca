"""The options of `ahl predict` and `ahl export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ahl_jax.config.checks import ANYWHERE

Platform = Literal["cpu", "cuda", "rocm", "tpu"]

PLATFORMS: tuple[Platform, ...] = ("cpu", "cuda", "tpu")
"""Platforms of a file unless the user names others."""


@dataclass(frozen=True)
class Predict:
    """Score images with a trained detector; write scores.csv and a heat map for each.

    The same command goes on with one that was stopped: images that scores.csv has, by path and
    content, are left out, unless a file that `save` names is missing. With another threshold it
    decides anew by the scores that are there.
    """

    workdir: Annotated[Path, ANYWHERE, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder that was given to the training."""

    images: Annotated[
        tuple[Path, ...], ANYWHERE, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")
    ]
    """Image files, and folders with images at any depth."""

    out: Annotated[Path, ANYWHERE]
    """The folder for scores.csv and what `save` names."""

    fpr: float | None = None
    """The rate of false positives among normal images that the threshold is set for; 0.01 by
    default."""

    threshold: float | None = None
    """The score above which an image is an anomaly, in the place of `fpr`."""

    save: tuple[Literal["overlay", "mask", "boxes", "raw"], ...] = ("overlay",)
    """What to write for each image: heat_maps/ with the heat map drawn over it,
    defect_masks/ with white where it is outlined there, defect_boxes/ with a rectangle around each
    outline as JSON, heat_values/ with the score of each pixel as TIFF of 32 bits."""

    heat_maps: bool = True
    """Whether to write what `save` names."""

    json: bool = False
    """Print each result as a line of JSON on stdout, too."""

    watch: bool = False
    """Go on with the images that come into the folders, until stopped."""

    overwrite: bool = False
    """Score and draw all images anew, in the place of the results that `out` holds, also where
    they are of another detector."""


@dataclass(frozen=True)
class Export:
    """Write a run's detector, trunk and threshold as one file, for JAX alone or as ONNX."""

    workdir: Annotated[Path, ANYWHERE, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder that was given to the training."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The file to write: ONNX where it ends in .onnx, else for JAX."""

    fpr: float | None = None
    """The rate of false positives among normal images that the threshold is set for; 0.01 by
    default."""

    threshold: float | None = None
    """The score above which an image is an anomaly, in the place of `fpr`."""

    platforms: tuple[Platform, ...] = PLATFORMS
    """Where the file is to run, if it is for JAX."""
