"""Images per second through a trunk: in stage one, which trains it, and at inference.

    python -m experiments.benchmarks.stage_one [--trunks resnet18] [--batch 48] [--image-size 448]

- train: a step of stage one with DRA on top, both scales: a batch is made, augmented, and its loss
  goes back through the whole trunk. Images of the batch per second; the references come on top.
- infer: the compiled pass of the extraction, both scales, over images that are on the device.

Random images and weights, because speed depends on neither. Compilation comes before the clock
starts. The fraction of the peak takes the trunk's operations as XLA counts them, three times for a
step (forward, and the gradients of activations and kernels), for its batch and its references; the
best matrix product of the same process, in the same dtype, is the peak.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ahl_jax.backbones import Trunk
from ahl_jax.backbones.convolution import PRECISION
from ahl_jax.cli.shell import run_command
from ahl_jax.config.settings import (
    Config,
    DataConfig,
    FeatureConfig,
    Precision,
    StageOneConfig,
)
from ahl_jax.distributed.mesh import put_everywhere
from ahl_jax.features.maps import trunk_dtype, trunk_maps
from ahl_jax.stage_one.model import start
from ahl_jax.stage_one.run import compile_epoch, mesh_of
from experiments.benchmarks import common
from experiments.benchmarks.extract import benchmark_trunk

NORMALS, ANOMALIES = 64, 10


@dataclass(frozen=True)
class Options:
    """Images per second, trunk by trunk."""

    trunks: tuple[str, ...] = ("resnet18", "efficientnet_lite0")
    """Trunks."""

    batch: int = 12
    """Images of a batch, at inference too; 48 is the published one."""

    image_size: int = 256
    """Side in pixels of the larger scale; 448 is the published one."""

    steps: int = 2
    """Steps in one call of the compiled epoch."""

    repeats: int = 3
    """Calls; the best one counts."""

    precision: Precision = "float32"
    """dtype of the trunk's products; on a CPU it is float32 in any case."""

    batch_norm: Literal["frozen", "trained"] = "frozen"
    """See `ahl train --help-all`."""

    remat: bool = False
    """See `ahl train --help-all`."""

    quick: bool = False
    """The smallest sizes that there are, once."""

    json: Path | None = None
    """Write the rows here as JSON too."""


def config_of(options: Options, trunk: str) -> Config:
    """The settings that the options stand for."""
    small = options.quick
    return Config(
        DataConfig("synthetic"),
        features=FeatureConfig(
            trunk=trunk,
            image_size=192 if small else options.image_size,
            image_batch=3 if small else options.batch,
            precision=options.precision,
        ),
        stage_one=StageOneConfig(
            stage_one=True,
            stage_one_batch=3 if small else options.batch,
            stage_one_steps=1 if small else options.steps,
            batch_norm=options.batch_norm,
            remat=options.remat,
        ),
    )


def gflop_per_image(trunk: Trunk, size: int) -> float:
    """10^9 operations of a forward pass over both scales of an image, as XLA counts them."""
    total = 0.0
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), trunk.params)
    for side in (size, size // 2):
        shape = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        # The compilers of other devices count only what they have compiled.
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            counted = jax.jit(trunk.apply).lower(params, shape).cost_analysis()
        total += counted["flops"]
    return total / 1e9


def training_gflop(config: Config, gflop: float) -> float:
    """10^9 operations of a training step for each image of its batch; see the module's docstring.

    Args:
        config: the settings.
        gflop: those of a forward pass.
    """
    references = config.detector.references / config.stage_one.stage_one_batch
    return 3 * gflop * (1 + references)


def compiled_training(config: Config, trunk: Trunk) -> Callable[[], Any]:
    """An epoch of stage one, compiled: each call trains on. Uses up the trunk."""
    one = config.stage_one
    learner, state = start(config, trunk)
    mesh = mesh_of(one.stage_one_batch)
    shape = (config.features.image_size, config.features.image_size, 3)
    rng = np.random.default_rng(0)
    normals, anomalies = (
        rng.integers(0, 256, (count, *shape), dtype=np.uint8) for count in (NORMALS, ANOMALIES)
    )
    current, *images = put_everywhere((state, normals, anomalies), mesh)
    program = compile_epoch(learner, mesh).lower(current, *images, np.int32(0)).compile()

    def epoch() -> Any:
        nonlocal current
        current, losses = program(current, *images, np.int32(0))
        return losses

    return epoch


def train_rate(config: Config, epoch: Callable[[], Any], repeats: int) -> float:
    """Images per second of ``compiled_training``; the best of ``repeats`` epochs."""
    one = config.stage_one
    jax.block_until_ready(epoch())
    return one.stage_one_steps * one.stage_one_batch / min(common.seconds(epoch, repeats))


def infer_rate(config: Config, trunk: Trunk, repeats: int, dtype: np.dtype) -> float:
    """Images per second of the extraction's pass; the best of ``repeats`` rounds."""
    features = config.features
    shape = (features.image_batch, features.image_size, features.image_size, 3)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))

    def batches() -> Any:
        steps = range(config.stage_one.stage_one_steps)
        return [trunk_maps(trunk, images, features, dtype) for _ in steps]

    jax.block_until_ready(batches())
    count = config.stage_one.stage_one_steps * features.image_batch
    return count / min(common.seconds(batches, repeats))


def measure(options: Options, name: str, peak: float) -> dict[str, Any]:
    """The row of a trunk; ``peak`` is the machine's in GFLOP/s."""
    config = config_of(options, name)
    one, dtype = config.stage_one, trunk_dtype(config.features.precision, jax.default_backend())
    repeats = 1 if options.quick else options.repeats
    trunk = benchmark_trunk(name, apart=one.batch_norm == "trained")
    gflop = gflop_per_image(trunk, config.features.image_size)
    infer = infer_rate(config, trunk, repeats, dtype)
    train = train_rate(config, compiled_training(config, trunk), repeats)
    return {
        "trunk": name,
        "image_size": config.features.image_size,
        "batch": one.stage_one_batch,
        "batch_norm": one.batch_norm,
        "dtype": str(dtype),
        "images_per_second_train": train,
        "images_per_second_infer": infer,
        "gflop_per_image": gflop,
        "fraction_of_peak_train": training_gflop(config, gflop) * train / peak,
        "fraction_of_peak_infer": gflop * infer / peak,
        "peak_gflops": peak,
        "peak_mib": common.peak_mib(),
        "device": common.device_name(),
    }


def main() -> None:
    """Measure trunk by trunk and print the table."""
    options = common.parse(Options, __doc__)
    dtype = trunk_dtype(options.precision, jax.default_backend())
    # The precision of the trunk's own products; on some GPUs the default is less than float32.
    peak = common.matmul_peak(dtype, precision=PRECISION) * len(jax.devices())
    common.report([measure(options, name, peak) for name in options.trunks], options.json)


if __name__ == "__main__":
    run_command(main, Options)
