"""Tiny networks and jobs for bulk sampling, importable by worker processes."""

from __future__ import annotations

import time
from typing import Any

import torch

import ulam
from ulam.bulk import Job
from ulam.guidance import APG, CFGZero
from ulam.samplers import DDIM, DDPM, RePaint

SCHEDULE = ulam.schedules.vp_linear(20)
SHAPE = (2, 3)
CHAINS = 70
IDS = torch.randperm(1000, generator=torch.Generator().manual_seed(2))[:CHAINS]


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    """The same normal numbers every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Net(torch.nn.Module):
    """A linear network with an optional class, optional context."""

    def __init__(self, scale: float = 0.3) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)
        with torch.no_grad():
            self.linear.weight.copy_(values(3, 3, seed=7) * scale)
            self.linear.bias.fill_(0.01)

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None, context: torch.Tensor | None = None
    ) -> torch.Tensor:
        out = self.linear(x) + 0.001 * t.view(-1, 1, 1).to(x.dtype)
        if y is not None:
            out = out + 0.05 * y.view(-1, 1, 1).to(x.dtype)
        return out if context is None else out + context.to(x.dtype)


class Breaks(Net):
    """Gives NaN for chains of class 3, raises for class 9."""

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None, context: torch.Tensor | None = None
    ) -> torch.Tensor:
        assert y is not None
        if bool((y == 9).any()):
            raise RuntimeError("a class\nthat it does not know")
        out = super().forward(x, t, y)
        return torch.where((y == 3).view(-1, 1, 1), torch.nan, out)


class Slow(Net):
    """Long enough in each evaluation that a kill meets the middle of a unit."""

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        time.sleep(0.03)
        return super().forward(*inputs, **named)


class Decoder(torch.nn.Module):
    """Pictures, uint8 and of another shape, of latents."""

    def __init__(self, gain: float = 40.0) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(gain))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.gain + 128).nan_to_num(0).clamp(0, 255).to(torch.uint8)[:, :, None].repeat(1, 1, 2, 1)


DENOISER = ulam.Denoiser(Net(), SCHEDULE)


def labelled(chains: int = CHAINS) -> dict[str, torch.Tensor]:
    """A class for each chain."""
    return {"y": torch.arange(chains) % 8}


def jobs() -> dict[str, dict[str, Any]]:
    """The arguments of :func:`ulam.sample` for jobs of every kind."""
    guided = {"cond": labelled(), "uncond": {"y": torch.zeros(CHAINS, dtype=torch.int64)}}
    weights = [1.0 + (i // 32) * 0.5 * (i % 3) for i in range(CHAINS)]  # those of the first 32 are 1
    image, mask = values(*SHAPE), torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    return {
        "count": {},
        "noise": {"sampler": DDPM(5)},
        "odd order": {"chains": IDS.tolist(), "sampler": DDPM(5)},
        "steps": {"chains": range(5, 5 + 7 * CHAINS, 7)},
        "down": {"chains": range(3 * CHAINS, 0, -3)},
        "huge ids": {"chains": [(1 << 63) - 1 - i * i for i in range(CHAINS)], "sampler": DDPM(5)},
        "negative seed": {"seed": -5, "sampler": DDPM(5)},
        "largest seed": {"seed": (1 << 64) - 1, "sampler": DDPM(5)},
        "classes": {"cond": labelled()},
        "one guidance": guided | {"guidance": 2.5},
        "guidance of each": guided | {"guidance": weights},
        "guidance tensor": guided | {"guidance": torch.tensor(weights, dtype=torch.float64)},
        "interval": guided | {"guidance": 3.0, "guidance_interval": (4.0, 12.0), "guidance_rescale": 0.7},
        "projected": guided | {"guidance": weights, "guidance_rule": APG(eta=0.5, norm=2.0, momentum=-0.3)},
        "scaled": guided | {"guidance": weights, "guidance_rule": CFGZero()},
        "blended": {
            "cond": labelled(),
            "blend": [({"y": torch.arange(CHAINS) % 3}, weights), ({"y": ulam.shared(torch.tensor(2))}, -0.5)],
        },
        "blended and guided": guided | {"guidance": weights, "blend": [({"y": torch.arange(CHAINS) % 3}, 0.25)]},
        "scheduled": guided | {"guidance": 1.0, "guidance_schedule": lambda t: 1 + t / 10},
        "shared": {"cond": {**labelled(), "context": ulam.shared(values(*SHAPE, seed=3))}},
        "shared null": {
            "cond": {"y": torch.arange(CHAINS) % 8},
            "uncond": {"y": ulam.shared(torch.tensor(0))},
            "guidance": 2.0,
        },
        "first states": {"x_init": values(CHAINS, *SHAPE), "seed": 3, "sampler": DDPM(5)},
        "shared first state": {"x_init": ulam.shared(values(*SHAPE)), "seed": 3, "sampler": DDPM(5)},
        "first row": {"first_row": 77, "sampler": DDPM(5)},
        "known": {"sampler": RePaint(4), "known": ulam.shared(image), "mask": ulam.shared(mask)},
        "known of each": {
            "sampler": RePaint(4), "known": values(CHAINS, *SHAPE, seed=5),
            "mask": (values(CHAINS, *SHAPE, seed=6) > 0).float(),
        },
        "known spread": {"sampler": RePaint(4), "known": values(1, *SHAPE), "mask": (values(CHAINS, 1, 3) > 0).float()},
    }  # fmt: skip


def job(**arguments: Any) -> Job:
    """A job of ``CHAINS`` chains."""
    return Job(**{"denoiser": DENOISER, "sampler": DDIM(5), "shape": SHAPE, "chains": CHAINS} | arguments)


def sampled(slots: int = 32, **arguments: Any) -> torch.Tensor:
    """What ulam.sample gives for the same arguments."""
    given = {"denoiser": DENOISER, "sampler": DDIM(5), "shape": SHAPE, "chains": CHAINS, "seed": 0} | arguments
    return ulam.sample(**given, slots=slots, progress=False)
