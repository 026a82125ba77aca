"""Open-set anomaly detection from normal images and a handful of labelled defects, in JAX.

Anomaly Heterogeneity Learning (AHL): T base detectors, one per heterogeneous subset of the training
data, train in one compiled step; a sequence model over their scores says how much each counts; one
unified detector learns from all of them.
"""

# ruff: noqa: E402
from ahl_jax.common import stop

stop.before_all_else()

from ahl_jax.common.errors import BadImageError, UserError
from ahl_jax.config.presets import preset
from ahl_jax.config.settings import (
    Config,
    DataConfig,
    DetectorConfig,
    FeatureConfig,
    ImportanceConfig,
    LearningConfig,
    PseudoConfig,
    StageOneConfig,
    SubsetConfig,
)
from ahl_jax.data.types import Sample, Split
from ahl_jax.estimator import AHLDetector
from ahl_jax.features.split import load_split
from ahl_jax.inference.export import export_model, export_onnx
from ahl_jax.inference.heatmaps import heat_scale, overlay
from ahl_jax.inference.predictor import Predictor, load
from ahl_jax.inference.scorer import Outcome
from ahl_jax.inference.threshold import Calibration
from ahl_jax.reports import compare, report
from ahl_jax.run.calibrate import recalibrate
from ahl_jax.run.evaluate import evaluate
from ahl_jax.run.finetune import finetune
from ahl_jax.run.options import RunOptions
from ahl_jax.run.train import train, train_seeds
from ahl_jax.run.update import update
from ahl_jax.sweeps.ablate import ablate
from ahl_jax.sweeps.categories import Categories, train_categories

__all__ = [
    "AHLDetector",
    "BadImageError",
    "Calibration",
    "Categories",
    "Config",
    "DataConfig",
    "DetectorConfig",
    "FeatureConfig",
    "ImportanceConfig",
    "LearningConfig",
    "Outcome",
    "Predictor",
    "PseudoConfig",
    "RunOptions",
    "Sample",
    "Split",
    "StageOneConfig",
    "SubsetConfig",
    "UserError",
    "ablate",
    "compare",
    "evaluate",
    "export_model",
    "export_onnx",
    "finetune",
    "heat_scale",
    "load",
    "load_split",
    "overlay",
    "preset",
    "recalibrate",
    "report",
    "train",
    "train_categories",
    "train_seeds",
    "update",
]
