"""An AHL training epoch as a plain PyTorch loop, to hold the compiled epoch against.

    python -m experiments.benchmarks.torch_loop FOLDER

``vs_loop`` runs this in a process of its own. It reads ``settings.json`` and ``problem.npz`` from
the folder, trains, and writes ``loop.npz``: g and its gradient after the first epoch, the scores of
that epoch's scoring pass, and the seconds of every epoch. JAX is not imported.

The loop is what one would write by hand, and write well: features on the device once, in the
memory format that the convolution runs fastest in; batches by index; fused Adam; TF32 products
where JAX has them. Images that a balanced batch repeats are repeated, as a data loader would.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SCORE_BATCH = 64
"""Images per step of the scoring pass."""

Scales = list[Tensor]
"""Feature maps [b, C, h, w], one tensor per scale."""


def top_mean(values: Tensor, fraction: float) -> Tensor:
    """Mean of the largest ``fraction`` of the locations of maps [..., h, w], at least one."""
    flat = values.flatten(-2)
    return flat.topk(max(1, int(flat.shape[-1] * fraction)), dim=-1).values.mean(-1)


class DRA(nn.Module):
    """The four heads of DRA."""

    # A row per head: targets for normals, anomalies and pseudo-anomalies; NaN where it has none.
    targets = ((0, 1, np.nan), (0, np.nan, 1), (0, 1, 1), (1, 0, 0))
    signs = (1, 1, 1, -1)
    ideal = (-1, 2)
    """The total score of ideal normals and anomalies, in margins."""

    def __init__(self, channels: int, hidden: int, top_k: float) -> None:
        super().__init__()
        self.locate = nn.Conv2d(channels, 2, 1)
        self.residual = nn.Conv2d(channels, channels, 3, stride=3, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.residual_out = nn.Conv2d(channels, 1, 1)
        self.normality = nn.Linear(channels, hidden)
        self.normality_out = nn.Linear(hidden, 1)
        self.top_k = top_k

    def forward(self, scales: Scales, references: Scales) -> Tensor:
        """Scores [b, 4], the mean over the scales."""
        return torch.stack(
            [self._scale(x, r) for x, r in zip(scales, references, strict=True)]
        ).mean(0)

    def _scale(self, x: Tensor, reference: Tensor) -> Tensor:
        seen_pseudo = top_mean(self.locate(x).abs(), self.top_k)
        # Where 3 does not divide a side, the patches are centred.
        top, left = x.shape[2] % 3 // 2, x.shape[3] % 3 // 2
        difference = (reference - x)[:, :, top:, left:]
        hidden = self.norm(self.residual(difference)).relu()
        residual = top_mean(self.residual_out(hidden).abs(), self.top_k)
        normality = self.normality_out(self.normality(x.mean((2, 3))).relu())
        return torch.cat([seen_pseudo, residual, normality], dim=1)


class DevNet(nn.Module):
    """The one head of DevNet."""

    targets = ((0, 1, 1),)
    signs = (1,)
    ideal = (0, 1)

    def __init__(self, channels: int, hidden: int, top_k: float) -> None:
        del hidden
        super().__init__()
        self.locate = nn.Conv2d(channels, 1, 1)
        self.top_k = top_k

    def forward(self, scales: Scales, references: Scales) -> Tensor:
        """Scores [b, 1], the mean over the scales."""
        del references
        return torch.stack([top_mean(self.locate(x).abs(), self.top_k) for x in scales]).mean(0)


def _statistics(module: nn.Module) -> list[Tensor]:
    """The running statistics, without torch's counters of batches."""
    return [b for b in module.buffers() if b.is_floating_point()]


DETECTORS: dict[str, type[DRA] | type[DevNet]] = {"dra": DRA, "devnet": DevNet}


@dataclass(frozen=True)
class Batches:
    """The batches of one subset, a row per step: [steps, 48], or [steps, 5] of ``reference``."""

    index: Tensor
    labels: Tensor
    reference: Tensor


class Loop:
    """AHL's epoch, one subset after another and one step at a time."""

    def __init__(self, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """``vs_loop.write_problem`` tells what the two hold."""
        self.settings = settings
        self.device = torch.device("cpu" if settings["backend"] == "cpu" else "cuda")
        maps = [arrays[f"maps{i}"].transpose(0, 3, 1, 2) for i in range(settings["scales"])]
        self.features = [
            self._tensor(m).contiguous(memory_format=torch.channels_last) for m in maps
        ]
        kind = DETECTORS[settings["detector"]]

        def detector() -> DRA | DevNet:
            module = kind(maps[0].shape[1], settings["hidden"], settings["top_k"])
            module.load_state_dict(
                {
                    key.removeprefix("g."): torch.from_numpy(value)
                    for key, value in arrays.items()
                    if key.startswith("g.")
                },
                strict=False,  # the running statistics start as torch's do
            )
            module.to(self.device, self.features[0].dtype, memory_format=torch.channels_last)
            return module

        self.g, self.base = detector(), detector()
        self.targets = self._tensor(np.array(kind.targets)).to(self.features[0].dtype)
        self.outer = self._adam(self.g)
        self.reference = self._tensor(arrays["reference"])
        self.followed = self._tensor(arrays["followed"])
        self.arrays = arrays

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _adam(self, module: nn.Module, lr: float = 0.0) -> torch.optim.Optimizer:
        return torch.optim.Adam(module.parameters(), lr, fused=True)

    def batches(self, epoch: int, part: str) -> list[Batches]:
        """One item per subset; ``part`` is support or query."""
        names = ("index", "labels", "reference")
        arrays = [self._tensor(self.arrays[f"{part}_{name}"][epoch]) for name in names]
        return [Batches(*subset) for subset in zip(*arrays, strict=True)]

    def _take(self, index: Tensor) -> Scales:
        return [maps[index] for maps in self.features]

    def _loss(self, module: DRA | DevNet, batches: Batches, step: int) -> Tensor:
        references = [x.mean(0) for x in self._take(batches.reference[step])]
        scores = module(self._take(batches.index[step]), references)
        deviation = (scores - self.settings["prior_mean"]) / self.settings["prior_std"]
        targets = self.targets[:, batches.labels[step]].T
        trains = ~targets.isnan()
        targets = targets.nan_to_num()
        away = (self.settings["margin"] - deviation).relu()
        each = (1 - targets) * deviation.abs() + targets * away
        return ((each * trains).sum(0) / trains.sum(0)).sum()

    def epoch(
        self, support: list[Batches], query: list[Batches], lr: float, lr_base: float
    ) -> Tensor:
        """Train every base model from g, score the training images, and move g.

        Returns:
            The base models' scores of the training images [n, T].
        """
        share = 1 / len(support)
        steps, clip = self.settings["steps"], self.settings["clip"]
        gradient = [torch.zeros_like(p) for p in self.g.parameters()]
        statistics = [torch.zeros_like(b) for b in _statistics(self.g)]
        scores = []
        for support_batches, query_batches in zip(support, query, strict=True):
            self.base.load_state_dict(self.g.state_dict())
            inner = self._adam(self.base, lr_base)
            for _ in range(self.settings["passes"]):
                for step in range(steps):
                    inner.zero_grad()
                    self._loss(self.base, support_batches, step).backward()
                    nn.utils.clip_grad_norm_(self.base.parameters(), clip)
                    inner.step()
            inner.zero_grad()
            scores.append(self._scores())
            # The query passes below move the running statistics on, so they are read here.
            for total, buffer in zip(statistics, _statistics(self.base), strict=True):
                total += share * buffer
            for step in range(steps):
                (self._loss(self.base, query_batches, step) * (share / steps)).backward()
            for total, p in zip(gradient, self.base.parameters(), strict=True):
                total += p.grad
        for p, total in zip(self.g.parameters(), gradient, strict=True):
            p.grad = total
        nn.utils.clip_grad_norm_(self.g.parameters(), clip)
        self.outer.param_groups[0]["lr"] = lr
        self.outer.step()
        for buffer, total in zip(_statistics(self.g), statistics, strict=True):
            buffer.copy_(total)
        return torch.stack(scores, dim=1)

    @torch.no_grad()
    def _scores(self) -> Tensor:
        """The base model's scores of the training images, on the scale of the labels."""
        self.base.eval()
        reference = [x.mean(0) for x in self._take(self.reference)]
        heads = torch.cat(
            [self.base(self._take(i), reference) for i in self.followed.split(SCORE_BATCH)]
        )
        self.base.train()
        total = heads @ torch.tensor(self.base.signs, dtype=heads.dtype, device=self.device)
        normal, anomaly = (self.settings["margin"] * x for x in self.base.ideal)
        return (total - normal) / (anomaly - normal)

    def run(self) -> Iterator[tuple[float, Tensor]]:
        """Seconds and scores of every epoch."""
        for epoch, (lr, lr_base) in enumerate(self.settings["rates"]):
            support, query = self.batches(epoch, "support"), self.batches(epoch, "query")
            start = time.perf_counter()
            scores = self.epoch(support, query, lr, lr_base)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            yield time.perf_counter() - start, scores


def main(folder: Path) -> None:
    """Train as the folder's files say."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    if settings["backend"] != "cpu" and not torch.cuda.is_available():
        sys.exit(
            f"JAX runs on a {settings['backend']} and torch finds no GPU; install torch with CUDA, "
            "or set JAX_PLATFORMS=cpu"
        )
    torch.set_num_threads(settings["threads"])
    torch.backends.cuda.matmul.allow_tf32 = settings["tf32"]
    torch.backends.cudnn.allow_tf32 = settings["tf32"]
    with np.load(folder / "problem.npz") as arrays:
        loop = Loop(settings, dict(arrays))
    result: dict[str, np.ndarray] = {}
    seconds = []
    for taken, scores in loop.run():
        seconds.append(taken)
        if not result:
            state = loop.g.state_dict()
            result = {f"g.{key}": value.cpu().numpy().copy() for key, value in state.items()}
            gradients = {f"gradient.{key}": p.grad for key, p in loop.g.named_parameters()}
            result |= {key: g.cpu().numpy().copy() for key, g in gradients.items() if g is not None}
            result["scores"] = scores.cpu().numpy()
    np.savez(folder / "loop.npz", seconds=np.array(seconds), **result)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
