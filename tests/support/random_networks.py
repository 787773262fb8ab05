"""Random small networks as their users write them: embeddings of the time, conditioning, layers, blocks."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mlp_cases import CASES, Fourier, Interleaved, MLPCase, Sinusoidal

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.SiLU, nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Mish, nn.Softplus, nn.LeakyReLU, nn.ELU,
    lambda: nn.GELU(approximate="tanh"), lambda: nn.LeakyReLU(0.2),
)  # fmt: skip
LABELS = 7
KNOWN = (
    "tutorial", "scalar time", "implicit policy", "chunk policy", "modulated", "posterior score", "skip score",
    "adaptive norm", "unet of vectors", "by hand", "preconditioned", "per action", "gated", "encoded number",
)  # fmt: skip


@dataclass(frozen=True)
class Choices:
    """What is drawn of a network. blocks: plain, residual, film or gated; cond, label: told, or not."""

    n: int
    widths: tuple[int, ...]
    blocks: str
    activation: int
    norm: bool
    time: int
    embedding: int
    cond: int
    label: bool
    skip: bool

    @classmethod
    def of(cls, draw: random.Random) -> Choices:
        depth, blocks = draw.randint(1, 6), draw.choice(("plain", "residual", "film", "gated"))
        width = draw.choice((8, 16, 24, 32, 48, 64, 100, 128))
        widths = [draw.randint(8, 128) for _ in range(depth)] if blocks in ("plain", "film") else [width] * depth
        return cls(
            draw.randint(1, 14), tuple(widths), blocks, draw.randrange(len(ACTIVATIONS)), draw.random() < 0.5,
            draw.randrange(4), draw.choice((4, 8, 16, 32)), draw.choice((0, 0, 3, 10)), draw.random() < 0.3,
            draw.random() < 0.3,
        )  # fmt: skip


class Scaled(nn.Module):
    """The time itself."""

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return t[:, None] / 1000


class RandomNetwork(nn.Module):
    """Layers of these choices."""

    def __init__(self, choices: Choices) -> None:
        super().__init__()
        self.choices = c = choices
        make = ACTIVATIONS[c.activation]
        width = c.embedding
        embed = (Sinusoidal, Interleaved, Fourier)[c.time](width) if c.time < 3 else Scaled()
        first = nn.Linear(width if c.time < 3 else 1, 2 * width)
        self.time = nn.Sequential(embed, first, make(), nn.Linear(2 * width, width))
        self.encode = nn.Sequential(nn.Linear(c.cond, 24), make(), nn.Linear(24, width)) if c.cond else None
        self.label = nn.Embedding(LABELS, width) if c.label else None
        beside = 0 if c.blocks == "film" else width
        self.first = nn.Linear(c.n + beside, c.widths[0])
        sizes = zip((c.widths[0], *c.widths[:-1]), c.widths, strict=True)
        self.layers = nn.ModuleList(nn.Linear(i, 2 * o if c.blocks == "gated" else o) for i, o in sizes)
        self.norms = nn.ModuleList(nn.LayerNorm(w) if c.norm else nn.Identity() for w in c.widths)
        self.films = nn.ModuleList(nn.Linear(width, 2 * w) for w in c.widths if c.blocks == "film")
        self.act, self.dropout = make(), nn.Dropout(0.1)
        self.last = nn.Linear(c.widths[-1] + (c.n if c.skip else 0), c.n)

    def _layer(self, at: int, h: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        blocks, norm = self.choices.blocks, self.norms[at]
        if blocks == "gated":
            value, gate = self.layers[at](h).chunk(2, dim=-1)
            return norm(value) * torch.sigmoid(gate)
        out = norm(self.layers[at](self.act(h)))
        if blocks == "film":
            scale, shift = self.films[at](told).chunk(2, dim=-1)
            return out * (1 + scale) + shift
        return h + self.dropout(out) if blocks == "residual" else out

    def forward(self, x: torch.Tensor, t: torch.Tensor, **cond: torch.Tensor) -> torch.Tensor:
        told = self.time(t)
        if self.encode is not None:
            told = told + self.encode(cond["state"])
        if self.label is not None:
            told += self.label(cond["label"])
        h = self.first(x if self.choices.blocks == "film" else torch.cat([x, told], dim=-1))
        for at in range(len(self.layers)):
            h = self._layer(at, h, told)
        h = self.act(h)
        return self.last(torch.cat([h, x], dim=-1) if self.choices.skip else h)


def random_case(seed: int) -> MLPCase:
    """The network of this seed, or every fourth time one of `mlp_cases`."""
    draw = random.Random(seed)
    if seed % 4 == 3:
        return CASES[draw.choice(KNOWN)]
    choices = Choices.of(draw)
    cond: dict[str, tuple[int, ...] | int] = {"state": (choices.cond,)} if choices.cond else {}
    return MLPCase(lambda: RandomNetwork(choices), (choices.n,), cond | ({"label": LABELS} if choices.label else {}))
