"""Writes core.npz: what plain PyTorch detectors and a plain PyTorch psi compute.

Needs torch and NumPy: `python -m tests.goldens.make_core` in the repository's root.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.goldens import core_inputs as given


class _DevNet(nn.Module):
    signs = (1,)
    targets = ((0, 1, 1),)

    def __init__(self) -> None:
        super().__init__()
        self.anomaly = nn.Conv2d(given.CHANNELS, 1, 1)

    def forward(self, x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        return _top_mean(self.anomaly(x))[:, None]


class _DRA(nn.Module):
    signs = (1, 1, 1, -1)
    targets = ((0, 1, None), (0, None, 1), (0, 1, 1), (1, 0, 0))

    def __init__(self) -> None:
        super().__init__()
        c = given.CHANNELS
        self.seen = nn.Conv2d(c, 1, 1)
        self.pseudo = nn.Conv2d(c, 1, 1)
        self.residual = nn.Conv2d(c, c, 3, stride=3, bias=False)
        self.norm = nn.BatchNorm2d(c)
        self.residual_out = nn.Conv2d(c, 1, 1)
        self.normality = nn.Linear(c, given.HIDDEN)
        self.normality_out = nn.Linear(given.HIDDEN, 1)
        # nn.BatchNorm2d keeps unbiased variances; the biased ones are followed here.
        self.biased_var = torch.from_numpy(given.statistics()[1])

    def forward(self, x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        difference = reference.mean(0, keepdim=True) - x
        (h, w) = difference.shape[2:]
        top, left = (h % 3) // 2, (w % 3) // 2
        centred = difference[:, :, top : top + h // 3 * 3, left : left + w // 3 * 3]
        hidden = self.residual(centred)
        if self.training:
            var = hidden.detach().var((0, 2, 3), unbiased=False)
            self.biased_var = 0.9 * self.biased_var + 0.1 * var
        residual = self.residual_out(torch.relu(self.norm(hidden)))
        normality = self.normality_out(torch.relu(self.normality(x.mean((2, 3)))))
        heads = [_top_mean(self.seen(x)), _top_mean(self.pseudo(x)), _top_mean(residual)]
        return torch.stack([*heads, normality[:, 0]], 1)


def _top_mean(maps: torch.Tensor) -> torch.Tensor:
    flat = maps.flatten(1).abs()
    return flat.topk(max(1, int(flat.shape[1] * given.TOP_K)), dim=1)[0].mean(1)


def _two_scales(
    detector: nn.Module, maps: list[torch.Tensor], references: list[torch.Tensor]
) -> torch.Tensor:
    each = [detector(x, r) for x, r in zip(maps, references, strict=True)]
    return torch.stack(each).mean(0)


def _losses(scores: torch.Tensor, labels: torch.Tensor, targets: tuple) -> torch.Tensor:
    mean, std = given.PRIOR
    losses = []
    for head, of_label in enumerate(targets):
        terms = []
        for score, label in zip(scores[:, head], labels.tolist(), strict=True):
            dev = (score - mean) / std
            if of_label[label] == 0:
                terms.append(dev.abs())
            elif of_label[label] == 1:
                terms.append(F.relu(given.MARGIN - dev))
        losses.append(torch.stack(terms).mean())
    return torch.stack(losses)


def _nchw(maps: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(x).permute(0, 3, 1, 2) for x in maps]


def _detector(name: str, outputs: dict[str, np.ndarray]) -> None:
    detector = {"devnet": _DevNet, "dra": _DRA}[name]()
    state = {k: torch.from_numpy(v) for k, v in given.weights(name).items()}
    detector.load_state_dict(state, strict=False)
    if name == "dra":
        mean, var = given.statistics()
        detector.norm.running_mean.copy_(torch.from_numpy(mean))
        detector.norm.running_var.copy_(torch.from_numpy(var))
    images, references = (_nchw(m) for m in given.maps())

    detector.eval()
    scores = _two_scales(detector, images, references)
    outputs[f"{name}/eval/heads"] = scores.detach().numpy()
    outputs[f"{name}/eval/score"] = (scores @ torch.tensor(detector.signs).float()).detach().numpy()

    # The balanced batch with its repeated images really repeated.
    detector.train()
    repeat = torch.from_numpy(np.arange(len(given.TIMES)).repeat(given.TIMES))
    scores = _two_scales(detector, [x[repeat] for x in images], references)
    losses = _losses(scores, torch.from_numpy(given.LABELS)[repeat], detector.targets)
    losses.sum().backward()
    first = np.concatenate([[0], np.cumsum(given.TIMES)[:-1]])
    outputs[f"{name}/train/heads"] = scores.detach().numpy()[first]
    outputs[f"{name}/train/losses"] = losses.detach().numpy()
    for key, parameter in detector.named_parameters():
        outputs[f"{name}/train/grad/{key}"] = parameter.grad.numpy()
    if name == "dra":
        outputs["dra/train/mean"] = detector.norm.running_mean.numpy()
        outputs["dra/train/var"] = detector.biased_var.numpy()


class _Psi(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        t = given.PSI["subsets"]
        self.lstm = nn.LSTM(t, t, num_layers=2, bidirectional=True, batch_first=True)
        self.hidden = nn.Linear(2 * t, 2 * t)
        self.out = nn.Linear(2 * t, t)

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.hidden(self.lstm(history)[0][:, -1])))


def main() -> None:
    """Computes and writes the reference outputs."""
    outputs: dict[str, np.ndarray] = {}
    for name in ("devnet", "dra"):
        _detector(name, outputs)
    psi = _Psi()
    psi.load_state_dict({k: torch.from_numpy(v) for k, v in given.psi_weights().items()})
    history = torch.from_numpy(given.psi_history())
    outputs["psi"] = psi(history).detach().numpy()
    np.savez_compressed(Path(__file__).with_name("core.npz"), **outputs)


if __name__ == "__main__":
    main()
