"""Writes training.npz: what PyTorch's batch norm does to ResNet-18 in training.

Needs what ``make_trunks`` does: `python -m tests.goldens.make_training` in the repository's root.
"""

import numpy as np
import torch

from tests.goldens.inputs import (
    GOLDENS,
    TRAINING_NORMS,
    random_images,
    resnet_state_dict,
)
from tests.goldens.make_trunks import normalised, resnet


def main() -> None:
    """Computes and writes one forward pass, its running moments, and a gradient."""
    model = resnet("resnet18").train()
    model.load_state_dict(
        {k: torch.from_numpy(v) for k, v in resnet_state_dict("resnet18").items()}
    )
    maps = model(normalised(random_images(64, 64)))
    maps.square().mean().backward()
    outputs = {"maps": maps.detach().permute(0, 2, 3, 1).numpy()}
    modules = dict(model.named_modules())
    for name in TRAINING_NORMS:
        norm = modules[name]
        outputs[f"{name}.mean"] = norm.running_mean.numpy()
        outputs[f"{name}.var"] = norm.running_var.numpy()
        outputs[f"{name}.scale"] = norm.weight.grad.numpy()
        outputs[f"{name}.shift"] = norm.bias.grad.numpy()
    np.savez_compressed(GOLDENS / "training.npz", **outputs)


if __name__ == "__main__":
    main()
