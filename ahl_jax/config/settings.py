"""Every setting of a run, as frozen dataclasses: one per part, and the only place with defaults.

The defaults are the published hyper-parameters of AHL. A range stands beside its field. Field
docstrings are the text of ``ahl train --help``. A config is saved as JSON beside every checkpoint;
``Config.from_dict`` reads it.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ahl_jax.common.errors import UserError
from ahl_jax.config.checks import Above, AtLeast, Between, MultipleOf, NameIn, check_values

Precision = Literal["float32", "bfloat16"]
Views = Literal[1, 2, 4, 8, "2+8"]


def averaged(views: Views) -> tuple[int, ...]:
    """How many views each mean is over, the most first."""
    return (8, 2) if views == "2+8" else (views,)


SCALES = 2
"""Scales of an image."""


@dataclass(frozen=True)
class DataConfig:
    """Images, and those of them that training sees."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A data set of `ahl data list`, a folder in MVTec or VisA layout or with good and bad images,
    or a CSV file of images."""

    category: str | None = None
    """The category, where the data set has several (in a folder, FOLDER/CATEGORY/train/good). all
    makes a run of each, in a folder of its own (`ahl train`)."""

    joint: bool = False
    """Train one detector for all categories. Each has the labelled anomalies and the test that it
    has alone; a class is called CATEGORY/CLASS."""

    setting: Literal["general", "hard", "full"] = "general"
    """general: the labelled anomalies come from all classes; hard: from one class only, and the
    test has all the others; full: M from each class (fully supervised)."""

    seen_class: str | None = None
    """The one anomaly class that training sees; needed in the hard setting."""

    shots: Annotated[int, AtLeast(0)] = 10
    """M, the number of labelled anomalies in training; in the full setting, of each class. Where
    the data labels some itself, as in train/CLASS, all of those are seen, but with 0 none is."""

    limit: Annotated[int | None, AtLeast(3)] = None
    """Use at most this many training normals, test normals and test images per anomaly class."""

    held_out: Annotated[float, Between(0, 0.5)] = 0.0
    """The share of the training normals kept out of training; they set a threshold on the score."""

    in_turn: bool = False
    """Hold that share out in turn until every normal was, and train on all of them: for the method
    fit without stage one, which fits within seconds. Others hold it out once."""

    keep_copies: bool = False
    """Keep images in the test of which training has the same file, and count copies among the
    normals that set thresholds. They flatter every figure; give it to compare with figures of
    splits that had them."""

    skip_bad_images: bool = False
    """Leave out images that cannot be read, with a warning, instead of stopping."""


@dataclass(frozen=True)
class FeatureConfig:
    """How an image becomes feature maps."""

    trunk: Annotated[str, NameIn("trunks")] = "efficientnet_lite0"
    """The network whose last feature map is used."""

    levels: Annotated[int, AtLeast(1)] = 1
    """How many of the trunk's levels make the feature map: 1 is the last stage alone, 2 adds the
    one before, averaged over the pixels of a location, and so on. Trunks have four."""

    trunk_weights: Path | None = None
    """A state dict (.pth, .safetensors); by default what `ahl weights` keeps."""

    image_size: Annotated[int, AtLeast(192), MultipleOf(64)] = 256
    """Side in pixels of the larger scale; the second scale is half of it."""

    crop: Annotated[tuple[int, int, int, int] | None, AtLeast(0)] = None
    """The part of a photograph to look at: left, top, width and height in its pixels."""

    keep_aspect: bool = False
    """Leave a grey margin around photographs that are not square, instead of stretching them."""

    tiles: Annotated[tuple[int, int], AtLeast(1)] = (1, 1)
    """Rows and columns of tiles that a photograph is cut into, for small defects: each is an image
    of the side `image_size`, and the score is that of the most anomalous one."""

    tile_overlap: Annotated[float, Between(0, 0.5)] = 0.125
    """The share of a tile's side that its neighbour has too."""

    views: Views = 1
    """Copies of an image whose feature maps are turned back and averaged: 2 adds the mirror image,
    4 both of them upside down, 8 all four by a quarter turn. 2+8 has both means, over 8 and over
    2: detectors on whitened features pool each apart, and compare places by the first."""

    whiten: bool = False
    """Whiten the features by the normals' covariance."""

    fine_heat: bool = False
    """Make heat maps of twice the feature map's resolution, by how far each location is from those
    of training normals; without it they are the detector's own."""

    image_batch: Annotated[int, AtLeast(1)] = 16
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

    stage_one_detector: Annotated[str, NameIn("detectors")] = "dra"
    """The detector on top; one that trains on features as they are."""

    stage_one_heads: bool = False
    """Start with that detector as it was trained, not with a new one; `detector` must be the same.
    With `method="fit"` it is tested as it is: the detector trained from images, end to end."""

    stage_one_epochs: Annotated[int, AtLeast(1)] = 30
    """Epochs of stage one; the last one is what counts. The learning rate decays as later on."""

    stage_one_steps: Annotated[int, AtLeast(1)] = 20
    """Batches in one of these epochs."""

    stage_one_batch: Annotated[int, AtLeast(3)] = 48
    """Images per batch: equal thirds of normals, anomalies and new pseudo-anomalies."""

    stage_one_blocks: Annotated[int | None, AtLeast(1)] = None
    """How many of the trunk's blocks are trained, the last ones; all of the trunk by default."""

    stage_one_lr: Annotated[float, Above(0)] = 0.0002
    """Learning rate of trunk and detector (Adam)."""

    weight_decay: Annotated[float, AtLeast(0)] = 1e-5
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

    generators: Annotated[tuple[str, ...], NameIn("generators")] = ("cutmix", "cutpaste", "draem")
    """The generators in use; the support and the query set of a subset take two different ones."""

    pseudo_per_generator: Annotated[int, AtLeast(0)] = 256
    """How many pseudo-anomalies each generator makes."""


@dataclass(frozen=True)
class SubsetConfig:
    """Heterogeneous anomaly distribution generation (HADG)."""

    subsets: Annotated[int, AtLeast(1)] = 6
    """T, the number of heterogeneous subsets, each with a base model of its own."""

    clusters: Annotated[int, AtLeast(2)] = 3
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

    detector: Annotated[str, NameIn("detectors")] = "dra"
    """The base detector. One that trains nothing and sees no anomaly needs the method fit."""

    top_k: Annotated[float, Above(0, 1)] = 0.1
    """The fraction of locations, at least one, whose scores a head averages."""

    references: Annotated[int, AtLeast(1)] = 5
    """Random normal images that the latent residual head compares with."""

    hidden: Annotated[int, AtLeast(1)] = 256
    """Units of the hidden layer: of DRA's normality head, and of flos, mlep and saoe."""

    margin: Annotated[float, Above(0)] = 5.0
    """m, the margin of the deviation loss."""

    groups: Annotated[int, AtLeast(1)] = 1
    """k-means groups of similar normals; density compares an image with those of its group."""

    poolings: Literal["auto", 1, 2, 3] = 1
    """How a detector on whitened features sums up an image's locations: 1 by their mean, 2 by their
    standard deviation too, 3 by their maximum too. auto takes 3, unless 1 tells labelled anomalies
    that are left out from the training normals better, with four fifths of the error."""

    local_head: bool = False
    """Add to the score by how far the few locations of an image that stand out most are from those
    of normal images, and how near to those of labelled anomalies; density finds small defects so,
    the other detectors ignore it.
    """

    coreset: Annotated[int, AtLeast(1)] = 5000
    """Locations of normal images that patchcore compares with."""


@dataclass(frozen=True)
class LearningConfig:
    """Collaborative differentiable learning (CDL), and plain training of the detector alone."""

    method: Literal["ahl", "base", "ensemble", "fit"] = "ahl"
    """ahl: the whole method; base: the detector alone, on all training images at once; ensemble: T
    of those that start from different weights and draw different batches, by their mean score;
    fit: what training would start from, in one epoch that changes nothing."""

    epochs: Annotated[int, AtLeast(1)] = 30
    """Epochs; the last one is what counts."""

    steps: Annotated[int, AtLeast(1)] = 20
    """Batches that an epoch draws from each support set, and from each query set."""

    batch: Annotated[int, AtLeast(3)] = 48
    """Images per batch: equal thirds of normals, anomalies and pseudo-anomalies."""

    passes: Annotated[int, AtLeast(1)] = 3
    """Inner passes over the support batches."""

    updates_per_epoch: Annotated[int, AtLeast(1)] = 1
    """How often an epoch updates the unified model. 1 is the paper's: all inner steps, then one
    update on all query batches. N splits the same batches into N rounds with an update each."""

    gradient: Literal["first_order", "exact"] = "first_order"
    """Gradient of the query loss: exact differentiates through the inner steps, first_order takes
    their Jacobian as the identity."""

    inner_optimizer: Literal["adam", "sgd"] = "adam"
    """The optimiser of the base models' inner steps."""

    lr_base: Annotated[float, Above(0)] = 0.0002
    """Learning rate of the base models, and of a detector trained alone."""

    lr: Annotated[float, Above(0)] = 0.002
    """Learning rate of the unified model (Adam)."""

    clip: Annotated[float, Above(0)] = 1.0
    """Gradients are clipped to this global norm."""

    decay_every: Annotated[int, AtLeast(1)] = 10
    """Epochs between two decays of the learning rates."""

    decay: Annotated[float, Above(0, 1)] = 0.1
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

    history: Annotated[int, AtLeast(1)] = 5
    """K, how many past epochs of scores psi sees; until then w_i = 1/T."""

    psi_lr: Annotated[float, Above(0)] = 0.002
    """Learning rate of psi (Adam)."""


@dataclass(frozen=True)
class Config:
    """Everything that decides the outcome of a run."""

    data: DataConfig
    seed: Annotated[int, Between(0, 2**31 - 1)] = 0
    """Seed of everything random: the labelled anomalies, the subsets, the weights, the batches."""

    features: FeatureConfig = field(default_factory=FeatureConfig)
    stage_one: StageOneConfig = field(default_factory=StageOneConfig)
    pseudo: PseudoConfig = field(default_factory=PseudoConfig)
    subsets: SubsetConfig = field(default_factory=SubsetConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    importance: ImportanceConfig = field(default_factory=ImportanceConfig)
    start: Annotated[str | None, tyro.conf.Suppress] = None
    """The run that a fine-tuned one starts from, see ``ahl_jax.run.start.Start.digest``."""

    def __post_init__(self) -> None:
        check_values(self)
        _check_together(self)

    @property
    def in_turn(self) -> bool:
        """Whether the run holds its normals out in turn."""
        repeats = self.learning.method == "fit" and not self.stage_one.stage_one
        return repeats and self.data.in_turn and self.data.held_out > 0

    @property
    def held_out_once(self) -> float:
        """The share of the training normals that no fit sees."""
        return 0.0 if self.in_turn else self.data.held_out

    @property
    def split_data(self) -> DataConfig:
        """``data`` as it is split: nothing is held out where that is done in turn."""
        return dataclasses.replace(self.data, held_out=self.held_out_once)

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON types (tuples become lists, paths strings)."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """The inverse of ``to_dict``.

        Raises:
            UserError: if ``values`` is not a config of this version, or of an earlier one.
        """
        try:
            # A setting that an earlier version did not know is at its default there.
            parts: dict[str, Any] = {
                f.name: f.type(**_untupled(f.type, _without_retired(values.get(f.name, {}))))
                for f in dataclasses.fields(cls)
                if dataclasses.is_dataclass(f.type) and isinstance(f.type, type)
            }
            start = values.get("start", values.get("source"))
            return cls(seed=values["seed"], start=start, **parts)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"the saved settings do not fit this version of ahl_jax ({error}); "
                "use the version that wrote them"
            ) from error


_RETIRED = {"psi_passes": 1, "psi_batch": 48}
"""Settings of earlier versions, and the value that they always have now."""


def _without_retired(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a part without settings that are none any more.

    Raises:
        UserError: if one of those had another value than the one that is left.
    """
    for name in values.keys() & _RETIRED.keys():
        if values[name] != _RETIRED[name]:
            raise UserError(
                f"the saved settings have {name} = {values[name]}, which is always "
                f"{_RETIRED[name]} in this version of ahl_jax; use the version that wrote them"
            )
    return {name: value for name, value in values.items() if name not in _RETIRED}


def _untupled(part: type, values: dict[str, Any]) -> dict[str, Any]:
    """JSON lists back to tuples, and the path fields back to paths."""
    paths = {f.name for f in dataclasses.fields(part) if f.type == Path | None}
    return {
        key: tuple(value)
        if isinstance(value, list)
        else (Path(value) if key in paths and value is not None else value)
        for key, value in values.items()
    }


def data_name(config: Config) -> str:
    """The data set's name, without its folder."""
    return " ".join(filter(None, [Path(config.data.data).name, config.data.category]))


def flat(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every setting of ``Config.to_dict`` under its own name."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value)
        else:
            yield name, value


def _check_together(config: Config) -> None:
    """Refuse values that are in range each, but do not go together.

    Names are looked up in their registries later, by ``ahl_jax.run.checks``.

    Raises:
        UserError: for the first ones.
    """
    data, learning = config.data, config.learning
    # Fine-tuning, and training that changes nothing, may have normals alone.
    if not config.start and learning.method != "fit":
        if not data.shots:
            raise UserError(
                "`shots` is 0; it must be 1 or more, or train nothing: "
                '`method="fit", detector="patchcore"`'
            )
        if not config.pseudo.pseudo_per_generator:
            raise UserError("`pseudo_per_generator` is 0; it must be 1 or more")
    names = config.pseudo.generators
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(
            "`generators` needs two or more different generators, because the support and the "
            "query set of a subset never share one"
        )
    if config.stage_one.stage_one and config.features.tiles != (1, 1):
        raise UserError("stage one trains on whole photographs; leave out `tiles`, or `stage_one`")
    if config.features.crop and not all(config.features.crop[2:]):
        raise UserError(f"`crop` is {config.features.crop}; its width and height must be above 0")
    if learning.steps % learning.updates_per_epoch:
        raise UserError(
            f"`updates_per_epoch` is {learning.updates_per_epoch}; it must divide `steps` "
            f"({learning.steps})"
        )
    if not data.shots and data.setting != "general":
        raise UserError(
            f'no anomaly is drawn from normals only; leave out `setting="{data.setting}"`'
        )
    if data.setting == "hard" and data.joint:
        raise UserError(
            "the hard setting sees a class of one category, and `joint` trains on all of them; "
            "leave out one of the two"
        )
    if data.setting == "hard" and data.seen_class is None:
        raise UserError("the hard setting needs `seen_class`, the anomaly class seen in training")
    if data.setting != "hard" and data.seen_class is not None:
        raise UserError('`seen_class` belongs to the hard setting; add `setting="hard"`')
