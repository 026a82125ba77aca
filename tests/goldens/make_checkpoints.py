"""Writes small checkpoints with torch itself: `python -m tests.goldens.make_checkpoints`.

The test states the values again, in NumPy.
"""

from collections import OrderedDict

import torch
from torch import nn

from tests.goldens.inputs import GOLDENS


def main() -> None:
    """Writes the same tensors in torch's zip and legacy formats, and nested in a training state."""
    whole = torch.arange(24, dtype=torch.float32)
    plain = OrderedDict(
        [
            ("whole", whole.reshape(2, 3, 4)),
            ("transposed", whole.reshape(4, 6).t()),
            ("window", whole.reshape(4, 6)[1:3, 2:5]),
            ("steps", whole[1::5]),
            ("half", torch.tensor([0.5, -2.0, 65504.0], dtype=torch.float16)),
            ("brain", torch.tensor([[1.0, -3.140625]], dtype=torch.bfloat16)),
            ("double", torch.tensor([1e-300], dtype=torch.float64)),
            ("long", torch.tensor([2**40, -1])),
            ("byte", torch.tensor([0, 255], dtype=torch.uint8)),
            ("bool", torch.tensor([True, False, True])),
            ("scalar", torch.tensor(7)),
            ("empty", torch.zeros(0, 3)),
            ("parameter", nn.Parameter(torch.ones(2))),
        ]
    )
    torch.save(plain, GOLDENS / "zip.pth")
    torch.save(plain, GOLDENS / "zip_protocol4.pth", pickle_protocol=4)
    torch.save(plain, GOLDENS / "legacy.pth", _use_new_zipfile_serialization=False)

    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(2, 3, 1), bn=nn.BatchNorm2d(3)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    # A step, so that the optimizer's state has tensors too.
    model(torch.ones(2, 2, 1, 1)).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        for index, tensor in enumerate(model.state_dict().values()):
            tensor.fill_(index)
    training = {
        "epoch": 3,
        "best": 0.5,
        "state_dict": nn.DataParallel(model).state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(training, GOLDENS / "training.pth")
    torch.save(training, GOLDENS / "training_legacy.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
