"""Builders of prepared data sets, for TensorFlow Datasets' conventions but without TensorFlow.

Each reads a source as it is downloaded and writes ArrayRecord files.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ahl_jax.data.builders.base import AnomalyBuilder

NAMES = (
    "mvtec_ad",
    "elpv",
    "aitex",
    "sdd",
    "optical",
    "mastcam",
    "brainmri",
    "headct",
    "hyper_kvasir",
)
"""The data sets that there is a builder for."""


def builder_class(name: str) -> type["AnomalyBuilder"]:
    """The builder of a data set; importing it takes a second."""
    module = f"ahl_jax.data.builders.{name}.{name}_dataset_builder"
    return importlib.import_module(module).Builder
