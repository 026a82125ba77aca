"""Every setting of a run, as frozen dataclasses: one per room, and the only place with defaults.

The defaults are the published hyper-parameters of AHL. Field docstrings are what ``ahl train
--help`` prints. A config is saved as JSON beside every checkpoint; ``Config.from_dict`` reads it.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ahl_jax.common.errors import UserError
from ahl_jax.config.checks import check, check_types

Precision = Literal["float32", "bfloat16"]

SCALES = 2
"""Scales of an image."""


@dataclass(frozen=True)
class DataConfig:
    """Images, and those of them that training sees."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A data set of `ahl data list`, a folder in MVTec or VisA layout, or a CSV file of images."""

    category: str | None = None
    """The category, where the data set has several (in a folder, FOLDER/CATEGORY/train/good)."""

    setting: Literal["general", "hard", "full"] = "general"
    """general: the labelled anomalies come from all classes; hard: from one class only, and the
    test has all the others; full: M from each class (fully supervised)."""

    seen_class: str | None = None
    """The one anomaly class that training sees; needed in the hard setting."""

    shots: int = 10
    """M, the number of labelled anomalies in training; in the full setting, of each class."""

    limit: int | None = None
    """Use at most this many training normals, test normals and test images per anomaly class."""

    held_out: float = 0.0
    """The share of the training normals kept out of training; they set a threshold on the score."""

    skip_bad_images: bool = False
    """Leave out images that cannot be read, with a warning, instead of stopping."""


@dataclass(frozen=True)
class FeatureConfig:
    """How an image becomes feature maps."""

    trunk: str = "efficientnet_lite0"
    """The network whose last feature map is used: efficientnet_lite0, efficientnet_lite1,
    efficientnet_lite2, resnet18, resnet34, resnet50 or wide_resnet50_2."""

    trunk_weights: Path | None = None
    """A torchvision state dict (.pth, .safetensors); by default what `ahl weights import` kept."""

    image_size: int = 256
    """Side in pixels of the larger scale; the second scale is half of it."""

    views: Literal[1, 2, 4, 8] = 1
    """Copies of an image whose feature maps are turned back and averaged: 2 adds the mirror image,
    4 both of them upside down, 8 all four by a quarter turn."""

    whiten: bool = False
    """Whether to whiten the features by the normals' covariance; --whiten where the preset does
    not, --no-whiten where it does."""

    image_batch: int = 16
    """Images in one pass through the trunk."""

    precision: Precision = "float32"
    """dtype of the features and of their products, and on a GPU or TPU of the trunk's products too;
    sums, the detector's weights, and the features on disk are float32 in any case."""


@dataclass(frozen=True)
class StageOneConfig:
    """Training the trunk on the data, before its features are taken."""

    stage_one: bool = False
    """Train the trunk first, with a detector on top, on the images of training. It then replaces
    the ImageNet one in everything that follows."""

    stage_one_detector: str = "dra"
    """The detector on top: devnet, dra, flos, mlep or saoe."""

    stage_one_heads: bool = False
    """Start with that detector as it was trained, not with a new one; it has to be --detector. With
    --method fit it is tested as it is: the detector trained from images, end to end."""

    stage_one_epochs: int = 30
    """Epochs of stage one; the last one is what counts. The learning rate decays as later on."""

    stage_one_steps: int = 20
    """Batches in one of these epochs."""

    stage_one_batch: int = 48
    """Images per batch: equal thirds of normals, anomalies and new pseudo-anomalies."""

    stage_one_lr: float = 0.0002
    """Learning rate of trunk and detector (Adam)."""

    weight_decay: float = 1e-5
    """Decay of their weights, as part of the gradient."""

    augment: Literal["none", "mirrored", "turned"] = "mirrored"
    """Random changes of an image: mirrored, both ways; turned, by quarter turns too."""

    batch_norm: Literal["frozen", "trained"] = "frozen"
    """The trunk's: frozen, as ImageNet training left it; trained, by the batches as in PyTorch."""

    remat: bool = False
    """Compute the trunk's activations again for the gradient, to save memory."""


@dataclass(frozen=True)
class PseudoConfig:
    """The pseudo-anomalies made from training normals."""

    generators: tuple[str, ...] = ("cutmix", "cutpaste", "draem")
    """The generators in use; the support and the query set of a subset take two different ones."""

    pseudo_per_generator: int = 256
    """How many pseudo-anomalies each generator makes."""


@dataclass(frozen=True)
class SubsetConfig:
    """Heterogeneous anomaly distribution generation (HADG)."""

    subsets: int = 6
    """T, the number of heterogeneous subsets, each with a base model of its own."""

    clusters: int = 3
    """C, the number of k-means clusters of the normal features."""

    grouping: Literal["kmeans", "random"] = "kmeans"
    """Maker of the C groups of normals: k-means; or chance, in equal sizes (CDL without HADG)."""

    holistic: bool = False
    """Add one more subset of all normals, split at random in two halves."""

    share_anomalies: bool = False
    """Let the support anomalies of a subset appear in its query set too."""


@dataclass(frozen=True)
class DetectorConfig:
    """The base detector."""

    detector: str = "dra"
    """The base detector: density (with --whiten), devnet, dra, flos, mlep or saoe; or, with
    --method fit, one that trains nothing and sees no anomaly: gaussian (with --whiten), patchcore.
    """

    top_k: float = 0.1
    """The fraction of locations, at least one, whose scores a head averages."""

    references: int = 5
    """Random normal images that the latent residual head compares with."""

    hidden: int = 256
    """Units of the hidden layer: of DRA's normality head, and of flos, mlep and saoe."""

    margin: float = 5.0
    """m, the margin of the deviation loss."""

    groups: int = 1
    """k-means groups of similar normals; density compares an image with those of its group."""

    coreset: int = 5000
    """Locations of normal images that patchcore compares with."""


@dataclass(frozen=True)
class LearningConfig:
    """Collaborative differentiable learning (CDL), and plain training of the detector alone."""

    method: Literal["ahl", "base", "ensemble", "fit"] = "ahl"
    """ahl: the whole method; base: the detector alone, on all training images at once; ensemble: T
    of those that start from different weights and draw different batches, by their mean score;
    fit: what training would start from, in one epoch that changes nothing."""

    epochs: int = 30
    """Epochs; the last one is what counts."""

    steps: int = 20
    """Batches that an epoch draws from each support set, and from each query set."""

    batch: int = 48
    """Images per batch: equal thirds of normals, anomalies and pseudo-anomalies."""

    passes: int = 3
    """Inner passes over the support batches."""

    updates_per_epoch: int = 1
    """How often an epoch updates the unified model. 1 is the paper's: all inner steps, then one
    update on all query batches. N splits the same batches into N rounds with an update each."""

    gradient: Literal["first_order", "exact"] = "first_order"
    """Gradient of the query loss: exact differentiates through the inner steps, first_order takes
    their Jacobian as the identity."""

    inner_optimizer: Literal["adam", "sgd"] = "adam"
    """The optimiser of the base models' inner steps."""

    lr_base: float = 0.0002
    """Learning rate of the base models, and of a detector trained alone."""

    lr: float = 0.002
    """Learning rate of the unified model (Adam)."""

    clip: float = 1.0
    """Gradients are clipped to this global norm."""

    decay_every: int = 10
    """Epochs between two decays of the learning rates."""

    decay: float = 0.1
    """Factor of one decay."""

    @property
    def planned_epochs(self) -> int:
        """Epochs that a run has."""
        return 1 if self.method == "fit" else self.epochs


@dataclass(frozen=True)
class ImportanceConfig:
    """The sequence model psi that estimates each subset's generalisation error."""

    importance: Literal["psi", "uniform", "accuracy"] = "psi"
    """psi: importance scores w_i from the sequence model; uniform: always w_i = 1/T; accuracy: from
    each base model's error rate on the training images outside of its support set."""

    history: int = 5
    """K, how many past epochs of scores psi sees; until then w_i = 1/T."""

    psi_lr: float = 0.002
    """Learning rate of psi (Adam)."""

    psi_passes: int = 1
    """Passes over the training images that psi trains for in each epoch."""

    psi_batch: int = 48
    """Images per psi batch."""


@dataclass(frozen=True)
class Config:
    """Everything that decides the outcome of a run."""

    data: DataConfig
    seed: int = 0
    """Seed of everything random: the labelled anomalies, the subsets, the weights, the batches."""

    features: FeatureConfig = field(default_factory=FeatureConfig)
    stage_one: StageOneConfig = field(default_factory=StageOneConfig)
    pseudo: PseudoConfig = field(default_factory=PseudoConfig)
    subsets: SubsetConfig = field(default_factory=SubsetConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    importance: ImportanceConfig = field(default_factory=ImportanceConfig)
    source: Annotated[str | None, tyro.conf.Suppress] = None
    """What a fine-tuned run starts from, see ``ahl_jax.run.start.Source.digest``."""

    def __post_init__(self) -> None:
        check_types(self)
        check(self)

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON types (tuples become lists, paths strings)."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """The inverse of ``to_dict``.

        Raises:
            UserError: if ``values`` is not a config of this version.
        """
        try:
            rooms: dict[str, Any] = {
                # What an earlier version did not know is at its default there.
                f.name: f.type(**_untupled(f.type, values.get(f.name, {})))
                for f in dataclasses.fields(cls)
                if dataclasses.is_dataclass(f.type) and isinstance(f.type, type)
            }
            return cls(seed=values["seed"], source=values.get("source"), **rooms)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"the saved settings do not fit this version of ahl_jax ({error}); "
                "use the version that wrote them"
            ) from error


def _untupled(room: type, values: dict[str, Any]) -> dict[str, Any]:
    """JSON lists back to tuples, and the path fields back to paths."""
    paths = {f.name for f in dataclasses.fields(room) if f.type == Path | None}
    return {
        key: tuple(value)
        if isinstance(value, list)
        else (Path(value) if key in paths and value is not None else value)
        for key, value in values.items()
    }


def data_name(config: Config) -> str:
    """The data set's name, without its folder."""
    return " ".join(filter(None, [Path(config.data.data).name, config.data.category]))
