"""The names of the package, which are imported when they are first used."""

from .common.errors import BadImageError, InputError, UserError
from .config.presets import preset
from .config.settings import (
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
from .data.types import Sample, Split
from .estimator import AHLDetector
from .features.split import load_split
from .inference.export import export_model, export_onnx
from .inference.heatmaps import heat_scale, overlay
from .inference.predictor import Predictor, load
from .inference.scorer import Outcome
from .inference.threshold import Calibration
from .reports import compare, report
from .run.calibrate import recalibrate
from .run.evaluate import evaluate
from .run.finetune import finetune
from .run.options import RunOptions
from .run.train import train, train_seeds
from .run.update import update
from .sweeps.ablate import ablate
from .sweeps.categories import Categories, train_categories

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
    "InputError",
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
