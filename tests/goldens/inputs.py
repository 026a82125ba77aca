"""Inputs that the golden scripts and the tests build alike; needs NumPy and Pillow only."""

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

GOLDENS = Path(__file__).parent
CELLS = ("cell0001.png", "cell1500.png")
SIZES = (256, 128)
RESNET_SIZES = ((64, 64), (128, 96))
"""Height and width; all but ResNet-18 are tried on the first alone."""


def elpv_image(name: str, size: int) -> np.ndarray:
    """An ELPV cell as RGB [1, size, size, 3], float32 in 0..255, resized bilinearly."""
    spec = importlib.util.find_spec("elpv_dataset")
    path = Path(spec.submodule_search_locations[0]) / "data" / "images" / name
    with Image.open(path) as image:
        image = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32)[None]


def random_images(height: int, width: int) -> np.ndarray:
    """Two images of smooth noise [2, height, width, 3], float32 in 0..255."""
    coarse = np.random.RandomState(7).uniform(0, 255, (2, height // 8, width // 8, 3))
    return coarse.repeat(8, 1).repeat(8, 2).astype(np.float32)


TRAINING_NORMS = ("bn1", "layer2.0.downsample.1", "layer4.1.bn2")
"""Batch norms of ResNet-18 whose training is compared."""

RESNETS = {
    "resnet18": ((2, 2, 2, 2), 1, 1),
    "resnet34": ((3, 4, 6, 3), 1, 1),
    "resnet50": ((3, 4, 6, 3), 4, 1),
    "wide_resnet50_2": ((3, 4, 6, 3), 4, 2),
}
"""Blocks of each stage, expansion of a block's channels (above 1: bottlenecks), and its width."""


def resnet_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a torchvision ResNet's state dict, in its order."""
    repeats, expansion, wide = RESNETS[name]
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(convolution: str, norm: str, shape: tuple[int, ...]) -> None:
        shapes[f"{convolution}.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = shape[:1]
        shapes[f"{norm}.num_batches_tracked"] = ()

    layer("conv1", "bn1", (64, 3, 7, 7))
    inputs = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        outputs, inner = width * expansion, width * wide
        for block in range(repeats[stage - 1]):
            name = f"layer{stage}.{block}"
            kernels = [(inner, inputs, 3, 3), (outputs, inner, 3, 3)]
            if expansion > 1:
                kernels = [(inner, inputs, 1, 1), (inner, inner, 3, 3), (outputs, inner, 1, 1)]
            for number, kernel in enumerate(kernels, start=1):
                layer(f"{name}.conv{number}", f"{name}.bn{number}", kernel)
            if inputs != outputs:
                layer(f"{name}.downsample.0", f"{name}.downsample.1", (outputs, inputs, 1, 1))
            inputs = outputs
    return shapes | {"fc.weight": (1000, inputs), "fc.bias": (1000,)}


def resnet_state_dict(resnet: str) -> dict[str, np.ndarray]:
    """Random weights and batch-norm statistics, float32, the same wherever they are made."""
    random = np.random.RandomState(18)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in resnet_shapes(resnet).items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = np.array(1000)
            continue
        if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            values = random.uniform(0.5, 1.5, shape)
        elif len(shape) == 1:
            values = random.normal(0, 0.3, shape)
        else:
            values = random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        tensors[name] = values.astype(np.float32)
    return tensors


TINY_SIZES = {
    "tiny_dino": (56, 112),
    "tiny_dino_reg": (560, 56),
    "tiny_dino3": (64, 112),
    "tiny_convnext": (64, 96),
}
"""Networks of few channels, and the sizes of their images."""

TINY_DINO = (128, 4)
"""Channels and blocks."""

TINY_CONVNEXT = ((8, 1), (16, 1), (24, 2), (32, 1))
"""Channels and blocks of each stage."""


def tiny_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes as transformers has them for DINO, and torchvision for ConvNeXt."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *kernel: int) -> None:
        shapes[f"{name}.weight"] = kernel
        shapes[f"{name}.bias"] = kernel[:1]

    if name == "tiny_convnext":
        before = TINY_CONVNEXT[0][0]
        layer("features.0.0", before, 3, 4, 4)
        layer("features.0.1", before)
        for stage, (width, repeats) in enumerate(TINY_CONVNEXT):
            if stage:
                layer(f"features.{2 * stage}.0", before)
                layer(f"features.{2 * stage}.1", width, before, 2, 2)
            for repeat in range(repeats):
                block = f"features.{2 * stage + 1}.{repeat}"
                shapes[f"{block}.layer_scale"] = (width, 1, 1)
                layer(f"{block}.block.0", width, 1, 7, 7)
                layer(f"{block}.block.2", width)
                layer(f"{block}.block.3", 4 * width, width)
                layer(f"{block}.block.5", width, 4 * width)
            before = width
        layer("classifier.0", before)
        layer("classifier.2", 1000, before)
        return shapes
    width, depth = TINY_DINO
    shapes["embeddings.cls_token"] = 1, 1, width
    if name == "tiny_dino3":
        shapes["embeddings.mask_token"] = 1, 1, width
        shapes["embeddings.register_tokens"] = 1, 4, width
        layer("embeddings.patch_embeddings", width, 3, 16, 16)
        for index in range(depth):
            block = f"layer.{index}"
            for part in ("q", "k", "v", "o"):
                layer(f"{block}.attention.{part}_proj", width, width)
            del shapes[f"{block}.attention.k_proj.bias"]
            for number in (1, 2):
                layer(f"{block}.norm{number}", width)
                shapes[f"{block}.layer_scale{number}.lambda1"] = (width,)
            layer(f"{block}.mlp.up_proj", 4 * width, width)
            layer(f"{block}.mlp.down_proj", width, 4 * width)
        layer("norm", width)
        return shapes
    shapes["embeddings.mask_token"] = 1, width
    shapes["embeddings.position_embeddings"] = 1, 1 + 37**2, width
    if name == "tiny_dino_reg":
        shapes["embeddings.register_tokens"] = 1, 4, width
    layer("embeddings.patch_embeddings.projection", width, 3, 14, 14)
    for index in range(depth):
        block = f"encoder.layer.{index}"
        for norm in ("norm1", "norm2"):
            layer(f"{block}.{norm}", width)
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            layer(f"{block}.attention.{part}", width, width)
        for scale in ("layer_scale1", "layer_scale2"):
            shapes[f"{block}.{scale}.lambda1"] = (width,)
        layer(f"{block}.mlp.fc1", 4 * width, width)
        layer(f"{block}.mlp.fc2", width, 4 * width)
    layer("layernorm", width)
    return shapes


def tiny_state_dict(name: str) -> dict[str, np.ndarray]:
    """Random weights, float32, the same wherever they are made."""
    random = np.random.RandomState(14)
    tensors = {}
    for key, shape in tiny_shapes(name).items():
        if "lambda" in key or "scale" in key or (len(shape) == 1 and key.endswith("weight")):
            values = random.uniform(0.5, 1.5, shape)
        elif key.endswith("bias"):
            values = random.normal(0, 0.3, shape)
        else:
            values = random.normal(0, shape[0] == 1 or np.prod(shape[1:]) ** -0.5, shape)
        tensors[key] = values.astype(np.float32)
    return tensors
