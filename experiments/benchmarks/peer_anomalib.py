"""PatchCore and PaDiM of anomalib, with the weights of our trunk."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from torch import nn

from ahl_jax import Config
from ahl_jax.backbones import TRUNKS, read_torch_weights
from ahl_jax.data.batches import iter_batches
from ahl_jax.data.records import ImageSource
from ahl_jax.features.split import load_split

BACKBONE = "tf_efficientnet_lite0"
"""timm's name of EfficientNet-Lite0."""

LAYERS = {4: "blocks.1", 8: "blocks.2", 16: "blocks.4", 32: "blocks.6"}
"""Stride -> the last block of that stride."""

PATCHCORE_STRIDES = (8, 16)
"""Those of layer2 and layer3 of a ResNet, anomalib's default."""

PADIM_STRIDES = (4, 8, 16)
"""Those of layer1 to layer3 of a ResNet, anomalib's default."""

PADIM_FEATURES = 100
"""Channels that PaDiM draws, anomalib's default for its default trunk."""


def load_weights(network: nn.Module) -> None:
    """Give timm's EfficientNet-Lite0, or its first blocks, the weights of our trunk.

    Both list their parameters in the order in which they are applied, under other names.
    """
    trunk = TRUNKS["efficientnet_lite0"]
    found = {
        name: tensor
        for name, tensor in read_torch_weights(trunk.default_weights()).items()
        if not name.startswith(trunk.unused) and not name.endswith("num_batches_tracked")
    }
    wanted = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    # Without its last blocks the network has fewer; another order would show in the shapes.
    pairs = zip(wanted, found.values(), strict=False)
    network.load_state_dict({name: torch.tensor(x) for name, x in pairs}, strict=False)


def as_tensor(images: np.ndarray) -> torch.Tensor:
    """RGB images 0 to 255 as the weights were trained with, not as anomalib's default trunks."""
    return torch.from_numpy((images.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)


class _Given(nn.Module):
    """In the place of the trunk: what it gave before."""

    def __init__(self, features: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.given = features

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        del images
        return self.given


class Anomalib:
    """A fitted model of anomalib."""

    def __init__(self, model: Any, config: Config) -> None:
        self.model = model
        self.options = config.features
        self.fit_seconds = 0.0
        load_weights(model.feature_extractor.feature_extractor)

    def collect(self, paths: Sequence[ImageSource]) -> None:
        """Pass training images through the trunk; the model keeps its embeddings."""
        self.model.train()
        for images in self._batches(paths):
            self.model(images)
        self.model.eval()

    def fit(self, function: Any, *args: Any) -> None:
        """Call and time what makes the model of the embeddings."""
        start = time.perf_counter()
        with torch.inference_mode():
            function(*args)
        self.fit_seconds = time.perf_counter() - start

    def features(self, images: np.ndarray) -> dict[str, torch.Tensor]:
        """The trunk's maps."""
        with torch.inference_mode():
            return self.model.feature_extractor(as_tensor(images))

    def score(self, features: dict[str, torch.Tensor]) -> np.ndarray:
        """Scores by the trunk's maps."""
        trunk = self.model.feature_extractor
        self.model.feature_extractor = _Given(features)
        size, count = self.options.image_size, len(next(iter(features.values())))
        try:
            return self._scores(torch.empty(count, 3, size, size))
        finally:
            self.model.feature_extractor = trunk

    def score_images(self, images: np.ndarray) -> np.ndarray:
        """Scores of images."""
        return self._scores(as_tensor(images))

    def score_paths(self, paths: Sequence[ImageSource]) -> np.ndarray:
        """Scores of image files."""
        return np.concatenate([self._scores(images) for images in self._batches(paths)])

    def heat_images(self, images: np.ndarray) -> np.ndarray:
        """Anomaly maps, smoothed as anomalib does."""
        with torch.inference_mode():
            return (
                self.model(as_tensor(images))
                .anomaly_map.numpy()
                .reshape(len(images), *images.shape[1:3])
            )

    def _scores(self, images: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return self.model(images).pred_score.numpy().reshape(len(images))

    def _batches(self, paths: Sequence[ImageSource]) -> Iterator[torch.Tensor]:
        options = self.options
        for _, images in iter_batches(paths, options.image_size, options.image_batch):
            yield as_tensor(images)


def patchcore(config: Config, ratio: float, coreset: str, normals: int | None) -> Anomalib:
    """PatchCore.

    Args:
        config: the settings.
        ratio: the share of all locations that stay in the memory.
        coreset: greedy, anomalib's; or random, which only takes away the time that it needs.
        normals: of how many training normals, drawn at random; None for all.
    """
    torch.manual_seed(config.seed)
    np.random.seed(config.seed)  # noqa: NPY002 - anomalib's projection draws from it.
    model = PatchcoreModel([LAYERS[s] for s in PATCHCORE_STRIDES], BACKBONE, pre_trained=False)
    detector = Anomalib(model, config)
    paths = load_split(config).train_normals
    rng = np.random.default_rng(config.seed)
    some = rng.permutation(len(paths))[:normals]
    detector.collect([paths[i] for i in some])

    def random_subset() -> None:
        # One at a time: joined first, they would be in memory twice.
        count = sum(len(part) for part in model.embedding_store)
        chosen = torch.randperm(count)[: int(count * ratio)].sort().values
        model.memory_bank = _rows(model.embedding_store, chosen)
        model.embedding_store.clear()

    if coreset == "random":
        detector.fit(random_subset)
    else:
        detector.fit(model.subsample_embedding, ratio)
    return detector


def _rows(parts: Sequence[torch.Tensor], chosen: torch.Tensor) -> torch.Tensor:
    """Rows of the parts one after the other."""
    found, start = [], 0
    for part in parts:
        within = chosen[(chosen >= start) & (chosen < start + len(part))] - start
        found.append(part[within])
        start += len(part)
    return torch.cat(found)


def padim(config: Config) -> Anomalib:
    """PaDiM."""
    torch.manual_seed(config.seed)
    layers = [LAYERS[s] for s in PADIM_STRIDES]
    model = PadimModel(BACKBONE, layers, pre_trained=False, n_features=PADIM_FEATURES)
    detector = Anomalib(model, config)
    detector.collect(load_split(config).train_normals)
    detector.fit(model.fit)
    return detector
