"""A trained detector in use: images in, scores and heat maps out."""

import dataclasses
import functools
import logging
import math
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from ahl_jax.backbones import Trunk, trunk_from_params
from ahl_jax.common.errors import InputError, UserError
from ahl_jax.common.files import reason
from ahl_jax.config.settings import Config, FeatureConfig
from ahl_jax.data.batches import iter_batches
from ahl_jax.data.frame import Frame, Seen
from ahl_jax.data.images import (
    Picture,
    as_image,
    image_list,
    path_or_array,
    read_display,
    seen_size,
)
from ahl_jax.data.records import ImageSource, InMemory
from ahl_jax.detectors import Functional, blocks_of, make_inputs
from ahl_jax.detectors.inputs import to_maps
from ahl_jax.detectors.local_head import local_scores
from ahl_jax.detectors.localizer import heat_of
from ahl_jax.features import FeatureMaps
from ahl_jax.features.maps import (
    by_platform,
    map_shapes,
    maps_on_all_cores,
    padded,
    tiled_maps,
    trunk_dtype,
)
from ahl_jax.features.tiles import Tiles, frame_of
from ahl_jax.inference.heatmaps import beside, heat_scale, upsampled
from ahl_jax.inference.scorer import Outcome, Scorer, detect, scorer_from_arrays
from ahl_jax.inference.threshold import (
    FPR,
    Calibration,
    Cut,
    cut_of,
    read_calibration,
    why_no_threshold,
)
from ahl_jax.storage.checkpoints import Checkpoints
from ahl_jax.storage.workdir import Workdir

log = logging.getLogger(__name__)

_PIXELS = 2**31
"""Of a batch of images, at most."""

_preparing = threading.Lock()
"""So that threads share the arrays on the device and the programs."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """A trained detector, from images to scores.

    It may be called from several threads at once. A program is compiled for each power of two up to
    the setting ``image_batch``, as calls with so many images come.
    """

    config: Config
    trunk: Trunk
    scorer: Scorer
    metadata: dict[str, Any]
    """Of the checkpoint: epochs, n_train_normal, n_seen, seconds."""

    calibration: Calibration | None
    """None where no normals were held out, or the training is not finished."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the detector's heads."""
        return self.scorer.functional.kind.heads

    @property
    def frame(self) -> Frame:
        """How photographs are read."""
        return frame_of(self.config.features)

    def score(self, images: Sequence[Picture]) -> Float[np.ndarray, " n"]:
        """Anomaly scores of n images, float32, higher for more anomalous.

        Args:
            images: paths, PIL images, or arrays as ``ahl_jax.data.images.as_image`` takes them, in
                what ``ahl_jax.data.images.image_list`` takes.

        Raises:
            BadImageError: if one cannot be read.
            UserError: if it is one image instead of several.
        """
        return self.outcome(images).scores

    def probability(self, images: Sequence[Picture]) -> Float[np.ndarray, " n"]:
        """The share of normal images that score lower than each of n images.

        Raises:
            BadImageError: if one cannot be read.
            UserError: if no normals were held out.
        """
        return self.calibrated().probability(self.score(images))

    def predict(
        self,
        images: Sequence[Picture],
        *,
        fpr: float | None = None,
        threshold: float | None = None,
    ) -> np.ndarray:
        """Whether each of n images is an anomaly, bool [n].

        Warns where the held-out normals are too few for ``fpr``.

        Args:
            images: as for ``score``.
            fpr: the rate of false positives among normal images that the threshold is set for, by
                default 0.01.
            threshold: the score above which an image is an anomaly, in the place of ``fpr``.

        Raises:
            BadImageError: if one cannot be read.
            UserError: if there is neither a threshold nor held-out normals to set one, or it or the
                rate is none.
        """
        calibration = self.calibrated() if threshold is None else None
        cut = cut_of(calibration, fpr, threshold)
        assert cut is not None
        if calibration and (shortfall := calibration.shortfall(fpr or FPR)):
            warnings.warn(shortfall, stacklevel=2)
        return self.score(images) > cut.threshold

    def outcome(self, images: Sequence[Picture]) -> Outcome:
        """Scores, head scores and heat maps of n images.

        Raises:
            BadImageError: if one cannot be read.
            UserError: if it is one image instead of several.
        """
        images = image_list(images)
        frame, batch = self.frame, self.config.features.image_batch
        parts = [
            self.of_arrays(np.stack([as_image(one, frame) for one in images[i : i + batch]]))
            for i in range(0, len(images), batch)
        ]
        if not parts:
            none = self.of_arrays(np.zeros((1, frame.height, frame.width, 3), np.uint8))
            return Outcome(*(x[:0] for x in none))
        return Outcome(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def heat_map(self, image: Picture) -> Float[np.ndarray, "h w"]:
        """How anomalous each pixel of an image is, float32, at the size that it is seen.

        Compare with ``Calibration.contour``, which 0.1 % of the surface of good parts are above.

        Raises:
            BadImageError: if it cannot be read.
            InputError: if it is a list of images.
        """
        if isinstance(image, list | tuple) and any(
            isinstance(x, str | Path | Image.Image | np.ndarray) for x in image
        ):
            raise InputError("heat_map takes one image at a time; give it without the list")
        heat = self.outcome([image]).heat[0]
        source = path_or_array(image, "the image")
        photograph = source if isinstance(source, Path) else InMemory("the image", source)
        width, height = seen_size(photograph)[0]
        return upsampled(heat, height, width, self.frame.seen(width, height))

    def outcome_of(self, maps: FeatureMaps, images: Sequence[ImageSource]) -> Outcome:
        """``outcome`` of n images of a data set whose feature maps are at hand, at least one.

        Where heat maps are not made of these, the images go through the trunk once more.

        Args:
            maps: as for ``Scorer.score``.
            images: the same images, and those that were left out as they cannot be read.

        Raises:
            BadImageError: if one has to be read and cannot be, unless the run leaves them out.
        """
        found = self.scorer.outcome(maps)
        if self.scorer.localizer is None:
            return found
        return found._replace(heat=self.heat_maps(images))

    def heat_maps(self, images: Sequence[ImageSource]) -> Float[np.ndarray, "n h w"]:
        """The heat maps of n images of a data set, at least one; see ``Outcome``.

        Raises:
            BadImageError: if one cannot be read, unless the run leaves them out.
        """
        frame, batch = self.frame, self.config.features.image_batch
        skip = self.config.data.skip_bad_images
        batches = iter_batches(images, frame, batch, skip_bad=skip, on_bad=lambda *_: None)
        return np.concatenate([self.of_arrays(x, bucket=batch).heat for _, x in batches])

    def heat_scale(self, heat: Float[np.ndarray, "*n h w"]) -> tuple[float, float]:
        """The scale to draw heat maps on, see ``ahl_jax.inference.heatmaps.heat_scale``."""
        return heat_scale(self.calibration.locations if self.calibration else None, heat)

    @property
    def contour(self) -> float | None:
        """The score of locations that are outlined; None without a calibration."""
        return self.calibration.contour if self.calibration else None

    def picture(
        self, image: ImageSource, heat: Float[np.ndarray, "h w"]
    ) -> UInt8[np.ndarray, "h2 w2 3"]:
        """An image beside its heat map, and a legend; see ``ahl_jax.inference.heatmaps.beside``.

        Raises:
            BadImageError: if it cannot be read.
        """
        scale, seen = self.heat_scale(heat), self.seen(image)
        return beside(read_display(image), heat, scale, seen, self.contour)

    def seen(self, image: ImageSource) -> Seen:
        """The part of an image that the heat map is of.

        Raises:
            BadImageError: if it cannot be read.
        """
        return self.frame.seen(*seen_size(image)[0])

    def of_arrays(
        self, images: UInt8[np.ndarray, "b h w 3"], *, bucket: int | None = None
    ) -> Outcome:
        """``outcome`` of 1 to ``image_batch`` RGB images of the size of ``frame_of``, as arrays.

        Args:
            images: the images.
            bucket: how many the program is compiled for, by default the next power of two. Results
                of different programs may differ in the last bits.
        """
        bucket = bucket or 1 << (len(images) - 1).bit_length()
        features = self.config.features
        dtype = trunk_dtype(features.precision, jax.default_backend())
        with _preparing:
            arrays = self.arrays
        maps = maps_on_all_cores(self.trunk, padded(images, bucket), features, dtype)
        found = _outcome_of(self.scorer.functional, self.scorer.tiles, arrays, maps)
        return Outcome(*(np.asarray(x)[: len(images)] for x in found))

    def cut(
        self, fpr: float | None = None, threshold: float | None = None, *, name: str = ""
    ) -> Cut | None:
        """Where decisions are made; says so where that is nowhere, or not as asked for.

        Args:
            fpr: as for ``cut_of``.
            threshold: as for ``cut_of``.
            name: of the detector, where there are others.

        Raises:
            UserError: as by ``cut_of``.
        """
        cut, said = cut_of(self.calibration, fpr, threshold), None
        if cut is None:
            said = f"scores alone, no decisions: {why_no_threshold(self.config)}"
        elif self.calibration and threshold is None:
            said = self.calibration.shortfall(fpr or FPR)
        if said:
            log.warning("%s%s", f"{name}: " if name else "", said)
        return cut

    def calibrated(self) -> Calibration:
        """The calibration.

        Raises:
            UserError: if there is none, saying why.
        """
        if self.calibration is not None:
            return self.calibration
        raise UserError(f"this run has no threshold: {why_no_threshold(self.config)}")

    @functools.cached_property
    def arrays(self) -> dict[str, Any]:
        """All that ``apply`` computes with, beside the images."""
        model = self.scorer.functional.inferring(self.scorer.model)
        return jax.device_put(self._parts | {"model": model})

    @property
    def _parts(self) -> dict[str, Any]:
        scorer = self.scorer
        parts = {"model": scorer.model, "reference": scorer.reference}
        parts |= {"whitening": scorer.whitening, "localizer": scorer.localizer}
        parts |= {"local_head": scorer.local_head}
        return parts | {"trunk": self.trunk.params}

    def apply(
        self,
        arrays: dict[str, Any],
        images: UInt8[Array, "b h w 3"],
        platform: str | None = None,
    ) -> tuple[Float[Array, " b"], Float[Array, "b heads"], Float[Array, "b h w"]]:
        """The fields of ``Outcome``; pure, so it can be jitted, sharded and exported.

        Args:
            arrays: ``self.arrays``.
            images: RGB, of the size of ``frame_of`` the settings.
            platform: as for ``by_platform``.
        """
        features = self.config.features

        def maps_on(kind: str) -> Any:
            dtype, apply = trunk_dtype(features.precision, kind), self.trunk.apply_with_fine
            return lambda params, images: tiled_maps(
                apply, features, dtype, params, images, platform
            )

        return outcome_of_maps(
            self.scorer.functional,
            self.scorer.tiles,
            arrays,
            by_platform(
                platform, arrays["trunk"], images, cpu=maps_on("cpu"), default=maps_on("others")
            ),
        )

    def check(self) -> None:
        """Find out whether the trunk, the detector and the settings fit, without computing.

        Raises:
            Exception: nearly any, if they do not.
        """
        features, scorer = self.config.features, self.scorer
        count, means = scorer.tiles.count, blocks_of(self.config).means
        shapes = [(h // count, w, c // means) for h, w, c in map_shapes(self.trunk, features)]
        if [each.shape for each in jax.eval_shape(to_maps, scorer.reference)] != shapes:
            raise ValueError("its reference is of images of another size")
        images = jax.ShapeDtypeStruct((1, self.frame.height, self.frame.width, 3), np.uint8)
        apply = functools.partial(self.apply, platform=jax.default_backend())
        jax.eval_shape(apply, self._parts, images)

    def __getstate__(self) -> dict[str, Any]:
        # Compiled programs cannot be pickled, and are made again when they are needed.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def outcome_of_maps(
    functional: Functional,
    tiles: Tiles,
    arrays: dict[str, Any],
    found: tuple[Float[Array, "b h w c"], ...],
) -> tuple[Float[Array, " b"], Float[Array, "b heads"], Float[Array, "b h w"]]:
    """The fields of ``Outcome``, of that which ``tiled_maps`` gives."""
    *maps, fine = found
    reference = arrays["reference"]
    apart = list(map(tiles.apart, maps))
    inputs = make_inputs(apart, reference.patches.dtype, arrays["whitening"])
    local = local_scores(arrays["local_head"], apart[0], inputs.channels)
    scores, heads, heat = detect(functional, tiles, arrays["model"], reference, inputs, local)
    if arrays["localizer"] is not None:
        heat = tiles.stitched(tiles.apart(heat_of(arrays["localizer"], fine)))
    return scores, heads, heat


# Unused arguments, such as the trunk's arrays, do not reach the program.
_outcome_of = jax.jit(outcome_of_maps, static_argnums=(0, 1))


def load(workdir: Path | str) -> Predictor:
    """The detector in a run's folder, as its newest checkpoint has it.

    Args:
        workdir: the folder that ``train`` was given.

    Raises:
        UserError: if the folder holds no checkpoint, or a damaged one, or what is no detector.
    """
    run = Workdir(workdir)
    run.config()  # Says what is wrong with a folder that holds no run.
    with Checkpoints(run.path, read_only=True) as checkpoints:
        try:
            name, params = checkpoints.load_trunk()
            arrays, metadata = checkpoints.restore_inference()
            config = Config.from_dict(metadata["config"])
            _check_work(config.features)
            trunk = trunk_from_params(name, params, config.features.levels)
            scorer = scorer_from_arrays(config, arrays)
            _check_figures(metadata)
            predictor = Predictor(config, trunk, scorer, metadata, None)
            predictor.check()
        except UserError:
            raise
        except Exception as error:  # the arrays and settings of strangers fail nearly anywhere
            raise UserError(
                f"the checkpoint in {checkpoints.folder} is of no detector ({reason(error)}); "
                "train again, or name the folder of another run"
            ) from error
        calibration = read_calibration(checkpoints.folder)
    if metadata["epochs"] < (planned := config.learning.planned_epochs):
        log.warning("%s is not finished: epoch %d of %d", workdir, metadata["epochs"], planned)
    return dataclasses.replace(predictor, calibration=calibration)


def _check_work(features: FeatureConfig) -> None:
    """Refuse settings, as of a stranger's run, by which a batch takes all memory."""
    pixels = math.prod(features.tiles) * features.image_size**2 * features.image_batch
    if pixels > _PIXELS:
        raise ValueError(f"its batches have {pixels:,} pixels")


def _check_figures(metadata: dict[str, Any]) -> None:
    counts = [metadata[name] for name in ("epochs", "n_train_normal", "n_seen")]
    whole = all(isinstance(count, int) for count in counts)
    if not whole or not isinstance(metadata["seconds"], float | int):
        raise ValueError("its figures are no numbers")
