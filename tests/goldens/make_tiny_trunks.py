"""Writes tiny_trunks.npz: the maps of all levels, as PyTorch computes them.

Needs torch, torchvision and transformers (4.56 or later, below 5): run
`python -m tests.goldens.make_tiny_trunks` in the repository's root.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from tests.goldens.inputs import (
    GOLDENS,
    TINY_CONVNEXT,
    TINY_DINO,
    TINY_SIZES,
    random_images,
    tiny_state_dict,
)


def _filled(model: nn.Module, name: str) -> Any:
    model.load_state_dict({k: torch.from_numpy(v) for k, v in tiny_state_dict(name).items()})
    return model.eval()


def _dino(name: str, images: torch.Tensor) -> list[torch.Tensor]:
    """The maps after each block, [n, h, w, c]."""
    width, depth = TINY_DINO
    registers = name.endswith("reg")
    kinds: Any = (
        (Dinov2WithRegistersConfig, Dinov2WithRegistersModel)
        if registers
        else (Dinov2Config, Dinov2Model)
    )
    config = kinds[0](
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=width // 64,
        image_size=518, patch_size=14, layer_norm_eps=1e-6,
    )  # fmt: skip
    model = _filled(kinds[1](config), name)
    if not registers:
        # transformers resizes to a size; the official code by a factor that is a little larger.
        def positions(_: torch.Tensor, height: int, width: int) -> torch.Tensor:
            table = model.embeddings.position_embeddings
            grid = table[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
            factor = (height // 14 + 0.1) / 37, (width // 14 + 0.1) / 37
            grid = nn.functional.interpolate(grid, scale_factor=factor, mode="bicubic")
            return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)

        model.embeddings.interpolate_pos_encoding = positions
    states = model(images, output_hidden_states=True).hidden_states[1:]
    rows, columns = (side // 14 for side in images.shape[2:])
    patches = [model.layernorm(x)[:, 5 if registers else 1 :] for x in states]
    return [x.reshape(len(x), rows, columns, -1) for x in patches]


def _dino3(name: str, images: torch.Tensor) -> list[torch.Tensor]:
    width, depth = TINY_DINO
    config = DINOv3ViTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=width // 64,
        intermediate_size=4 * width, num_register_tokens=4, patch_size=16,
    )  # fmt: skip
    model = _filled(DINOv3ViTModel(config), name)
    states = model(images, output_hidden_states=True).hidden_states[1:]
    rows, columns = (side // 16 for side in images.shape[2:])
    return [model.norm(x)[:, 5:].reshape(len(x), rows, columns, -1) for x in states]


def _convnext(name: str, images: torch.Tensor) -> list[torch.Tensor]:
    widths, repeats = zip(*TINY_CONVNEXT, strict=True)
    nexts = [*widths[1:], None]
    settings = [CNBlockConfig(*of) for of in zip(widths, nexts, repeats, strict=True)]
    model = _filled(ConvNeXt(settings), name)
    maps, x = [], images
    for part in model.features:
        x = part(x)
        maps.append(x.permute(0, 2, 3, 1))
    return maps[1::2]


@torch.no_grad()
def main() -> None:
    """Computes and writes the reference outputs."""
    outputs: dict[str, np.ndarray] = {}
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    for name, size in TINY_SIZES.items():
        images = torch.from_numpy(random_images(*size)).permute(0, 3, 1, 2)
        network = {"tiny_convnext": _convnext, "tiny_dino3": _dino3}.get(name, _dino)
        maps = network(name, (images / 255 - mean) / deviation)
        for level, found in enumerate(reversed(maps)):
            # Enough to tell, and a small file.
            outputs[f"{name}/{level}"] = found[:1, ..., ::4].numpy()
    np.savez_compressed(GOLDENS / "tiny_trunks.npz", **outputs)


if __name__ == "__main__":
    main()
