"""Small networks as their users write them: policies, simulation-based inference, tables, toys in the plane."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Sinusoidal(nn.Module):
    """sin and cos of t at frequencies from 1 down to 1 / 10,000."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        half = self.width // 2
        frequencies = torch.exp(torch.arange(half, device=t.device) * -(math.log(10000) / (half - 1)))
        angles = t[:, None] * frequencies[None, :]
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class Interleaved(nn.Module):
    """sin and cos side by side, written into zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("rates", torch.exp(torch.arange(0, width, 2) * (-math.log(100.0) / width)))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        t = t.unsqueeze(-1) if t.ndim == 1 else t
        out = torch.zeros((*t.shape[:-1], self.width), device=t.device)
        out[:, 0::2] = torch.sin(t * self.rates)
        out[:, 1::2] = torch.cos(t * self.rates)
        return out


class Fourier(nn.Module):
    """Random frequencies, trained or not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.randn(width // 2) * 2, requires_grad=False)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        angles = (t[:, None] / 1000) * self.rates[None, :] * 2 * math.pi
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)


class Tutorial(nn.Module):
    """The first network of many a tutorial: x and an embedding of t side by side."""

    def __init__(self, n: int = 2, hidden: int = 32, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.embed = Sinusoidal(16)
        self.layers = nn.Sequential(
            nn.Linear(n + 16, hidden), activation(), nn.Linear(hidden, hidden), activation(), nn.Linear(hidden, n)
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([x, self.embed(t)], dim=1))


class ScalarTime(nn.Module):
    """t itself, scaled to [0, 1], as one more input."""

    def __init__(self, activation: Callable[[], nn.Module] = nn.Softplus) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 24), activation(), nn.Linear(24, 24), activation(), nn.Linear(24, 2))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([x, (t.float() / 1000).unsqueeze(-1)], dim=-1))


class ResidualBlock(nn.Module):
    """Dropout, LayerNorm, four times as wide, and back."""

    def __init__(self, width: int, widening: int = 4) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Dropout(0.1), nn.LayerNorm(width), nn.Linear(width, width * widening), nn.Mish(),
            nn.Linear(width * widening, width),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.net(x)


class ImplicitPolicy(nn.Module):
    """Residual blocks with LayerNorm; the observation is added to the embedding of t in place."""

    def __init__(self, actions: int = 6, embedding: int = 16, hidden: int = 40, blocks: int = 3) -> None:
        super().__init__()
        self.map_noise = Sinusoidal(embedding)
        self.time_mlp = nn.Sequential(
            nn.Linear(embedding, 2 * embedding), nn.Mish(), nn.Linear(2 * embedding, embedding)
        )
        self.affine_in = nn.Linear(actions + embedding, hidden)
        self.resnet = nn.Sequential(*[ResidualBlock(hidden) for _ in range(blocks)])
        self.affine_out = nn.Sequential(nn.Mish(), nn.Linear(hidden, actions))

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        embedded = self.time_mlp(self.map_noise(t))
        if condition is not None:
            embedded += condition
        return self.affine_out(self.resnet(self.affine_in(torch.cat([x, embedded], -1))))


class ChunkPolicy(nn.Module):
    """Chunks of actions [B, horizon, actions], flat beside the embedding of t and encoded observations."""

    def __init__(self, horizon: int = 4, actions: int = 3, observations: int = 5, hidden: int = 48) -> None:
        super().__init__()
        self.time_embedding = nn.Sequential(Sinusoidal(16), nn.Linear(16, 32), nn.Mish(), nn.Linear(32, 16))
        self.encoder = nn.Sequential(nn.Linear(2 * observations, 24), nn.Mish(), nn.Linear(24, 8))
        wide = horizon * actions
        self.first = nn.Linear(wide + 16 + 8, hidden)
        self.blocks = nn.ModuleList(
            [nn.ModuleList([nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)]) for _ in range(2)]
        )
        self.last = nn.Linear(hidden, wide)

    def forward(self, x: torch.Tensor, t: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        batch, horizon, actions = x.shape
        x = x.view(batch, -1)
        state = self.encoder(state.view(batch, -1))
        embedded = self.time_embedding(t.view(batch)).view(batch, 16)
        h = self.first(torch.cat([x, embedded, state], dim=-1))
        for one, two in self.blocks:
            h = two(F.mish(one(F.mish(h)))) + h
        return self.last(h).view(batch, horizon, actions)


class Modulated(nn.Module):
    """Scale and shift of every layer by the embedding of t [FiLM]."""

    def __init__(self, n: int = 5, hidden: int = 32) -> None:
        super().__init__()
        self.embed = nn.Sequential(Fourier(12), nn.Linear(12, 20), nn.SiLU())
        self.layers = nn.ModuleList([nn.Linear(n, hidden), nn.Linear(hidden, hidden)])
        self.films = nn.ModuleList([nn.Linear(20, 2 * hidden) for _ in range(2)])
        self.out = nn.Linear(hidden, n)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        embedded = self.embed(t)
        for layer, film in zip(self.layers, self.films, strict=True):
            scale, shift = film(embedded).chunk(2, dim=-1)
            x = F.gelu(layer(x) * (1 + scale) + shift)
        return self.out(x)


class AdaptiveBlock(nn.Module):
    """Shift, scale and gate from time and conditioning."""

    def __init__(self, width: int, cond: int) -> None:
        super().__init__()
        self.adapt = nn.Sequential(nn.Linear(cond, width), nn.SiLU(), nn.Linear(width, 3 * width))
        self.block = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        shift, scale, gate = self.adapt(cond).chunk(3, dim=-1)
        return x + (gate + 1.0) * self.block((scale + 1) * x + shift)


class PosteriorScore(nn.Module):
    """A score network of simulation-based inference: a global embedding of t and the data, adaptive blocks."""

    def __init__(self, n: int = 3, data: int = 4, hidden: int = 24) -> None:
        super().__init__()
        self.time = Interleaved(8)
        self.both = nn.Sequential(nn.Linear(8 + data, 20), nn.SiLU(), nn.Linear(20, 12))
        self.into = nn.Linear(n, hidden)
        self.blocks = nn.ModuleList([AdaptiveBlock(hidden, 12) for _ in range(2)])
        self.out = nn.Linear(hidden, n)
        self.register_buffer("mean", torch.randn(1, n))
        self.register_buffer("std", 2.0 ** torch.randint(-1, 2, (1, n)))

    def forward(self, x: torch.Tensor, t: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        cond = self.both(torch.cat([self.time(t), data], dim=-1))
        h = self.into((x - self.mean) / self.std)
        for block in self.blocks:
            h = block(h, cond)
        return self.out(h) / (1 + t.unsqueeze(-1))


class SkipScore(nn.Module):
    """Linear, plus time and data, LayerNorm, activation, skip connections from the input."""

    def __init__(self, n: int = 3, data: int = 4, hidden: int = 20) -> None:
        super().__init__()
        self.x, self.t, self.c = nn.Linear(n, hidden), nn.Linear(8, hidden), nn.Linear(data, hidden)
        self.time = Sinusoidal(8)
        self.layers = nn.ModuleList([nn.Linear(hidden, hidden, bias=False) for _ in range(3)])
        self.norms = nn.ModuleList([nn.LayerNorm(hidden, elementwise_affine=k > 0) for k in range(3)])
        self.out = nn.Linear(hidden + n, n)

    def forward(self, x: torch.Tensor, t: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        h = start = self.x(x) + self.t(self.time(t)) + self.c(data)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = torch.tanh(norm(layer(h))) + start
        return self.out(torch.cat([h, x], dim=-1))


class AdaptiveNorm(nn.Module):
    """LayerNorm without weights, then modulated: as transformers of diffusion do, without attention."""

    def __init__(self, n: int = 8, hidden: int = 24, classes: int = 5) -> None:
        super().__init__()
        self.time = nn.Sequential(Sinusoidal(16), nn.Linear(16, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.label = nn.Embedding(classes + 1, hidden)
        self.into, self.out = nn.Linear(n, hidden), nn.Linear(hidden, n)
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 3 * hidden))
        self.mlp = nn.Sequential(
            nn.Linear(hidden, 2 * hidden), nn.GELU(approximate="tanh"), nn.Linear(2 * hidden, hidden)
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        shift, scale, gate = self.modulation(self.time(t) + self.label(label)).chunk(3, dim=1)
        h = self.into(x)
        return self.out(h + gate * self.mlp(self.norm(h) * (1 + scale) + shift))


class Variances(nn.Module):
    """Learned variances: twice the outputs."""

    def __init__(self, n: int = 4) -> None:
        super().__init__()
        self.t, self.net = Fourier(8), nn.Sequential(nn.Linear(n + 8, 24), nn.ELU(0.7), nn.Linear(24, 2 * n))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.net(torch.hstack([x, self.t(t)]))


class UnetOfVectors(nn.Module):
    """Down, and up again beside what was there on the way down."""

    def __init__(self, n: int = 6) -> None:
        super().__init__()
        self.time = nn.Sequential(Sinusoidal(8), nn.Linear(8, 16))
        self.down = nn.ModuleList([nn.Linear(n, 32), nn.Linear(32, 16)])
        self.up = nn.ModuleList([nn.Linear(16, 32), nn.Linear(64, 32)])
        self.out = nn.Linear(32 + n, n)
        self.act = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        one = self.act(self.down[0](x))
        two = self.act(self.down[1](one) + self.time(t))
        three = self.act(self.up[0](two))
        four = self.act(self.up[1](torch.cat([three, one], 1)))
        return self.out(torch.cat([four, x], 1))


class ByHand(nn.Module):
    """Parameters and products without nn.Linear; the skip is scaled by t."""

    def __init__(self, n: int = 4, hidden: int = 16) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(n, hidden) / 2)
        self.b = nn.Parameter(torch.randn(hidden))
        self.c = nn.Parameter(torch.randn(hidden, n) / 4)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t.reshape(-1, 1)
        h = torch.sigmoid(x @ self.a + self.b * t / 1000)
        return x * torch.exp(-t / 500) - torch.matmul(h, self.c) * 0.5


class Preconditioned(nn.Module):
    """c_skip x + c_out F(c_in x, log(sigma) / 4), as EDM has it, around another network."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Tutorial(3, 24, nn.SiLU)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        sigma = sigma.view(-1, 1)
        scale = (sigma**2 + 0.25).sqrt()
        return 0.25 / scale**2 * x + sigma * 0.5 / scale * self.inner(x / scale, sigma.flatten().log() / 4)


class PerAction(nn.Module):
    """The same small network for each step of the horizon, and one that mixes them."""

    def __init__(self, horizon: int = 3, actions: int = 2) -> None:
        super().__init__()
        self.embed, self.mix = nn.Linear(actions, 6), nn.Linear(6 * horizon, horizon * actions)
        self.t = nn.Sequential(Sinusoidal(8), nn.Linear(8, 6))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = F.silu(self.embed(x) + self.t(t)[:, None, :])
        return self.mix(h.flatten(1)).unflatten(1, x.shape[1:]) + x


class Prompted(nn.Module):
    """A context that all chains share, pooled; labels of each by embedding."""

    def __init__(self, n: int = 4) -> None:
        super().__init__()
        self.pool, self.label, self.t = nn.Linear(6, 16), nn.Embedding(4, 16), nn.Linear(1, 16)
        self.into, self.out = nn.Linear(n, 16), nn.Linear(16, n)

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        told = self.pool(context.mean(0)).tanh() + self.label(label) + self.t(t[:, None] / 1000)
        return self.out(F.relu(self.into(x) * torch.sigmoid(told)))


class Gated(nn.Module):
    """Gated linear units, split along the last dimension; elements of x in another order."""

    def __init__(self, n: int = 5) -> None:
        super().__init__()
        self.a, self.b, self.t = nn.Linear(n, 32), nn.Linear(16, n), nn.Linear(4, 32)
        self.time, self.order = Fourier(4), torch.randperm(n).tolist()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        value, gate = torch.split(self.a(x) + self.t(self.time(t)), [16, 16], dim=-1)
        return self.b(value * F.silu(gate)) - 0.125 * x[:, self.order].flip(-1).roll(1, -1)


class Encoded(nn.Module):
    """Sines of a number that conditions, as well as of the time."""

    def __init__(self, n: int = 2) -> None:
        super().__init__()
        self.embed, self.net = Sinusoidal(8), nn.Sequential(nn.Linear(n + 16, 20), nn.Tanh(), nn.Linear(20, n))

    def forward(self, x: torch.Tensor, t: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat([x, self.embed(t), self.embed(value)], -1))


class Averages(nn.Module):
    """BatchNorm by running averages: of x, of channels, and without weights; GroupNorm, of channels and of x."""

    def __init__(self) -> None:
        super().__init__()
        channels = [nn.Unflatten(1, (2, 3)), nn.BatchNorm1d(2), nn.GroupNorm(2, 2), nn.Flatten()]
        layers = [nn.Linear(6, 16), nn.GroupNorm(4, 16), nn.GELU(), nn.GroupNorm(2, 16, affine=False, eps=0.1)]
        layers += [nn.Linear(16, 16), nn.BatchNorm1d(16, affine=False, eps=0.1), nn.SELU(), nn.Linear(16, 4)]
        self.time, self.net = Fourier(2), nn.Sequential(nn.BatchNorm1d(6), *channels, *layers)
        for norm in (one for one in self.net if isinstance(one, (nn.BatchNorm1d, nn.GroupNorm))):
            for values in filter(torch.is_floating_point, (*norm.buffers(), *norm.parameters())):
                nn.init.uniform_(values, 0.1, 4)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat([x, self.time(t)], -1))


def _of_function() -> Callable[..., torch.Tensor]:
    net = Tutorial(2, 16, nn.Tanh)
    return lambda x, t: {"sample": net(x, t / 2)}  # type: ignore[return-value]


@dataclass(frozen=True)
class MLPCase:
    """make: the network. cond: shapes behind the chain, or how many labels there are; shared: without a chain."""

    make: Callable[[], Callable[..., Any]]
    shape: tuple[int, ...]
    cond: dict[str, tuple[int, ...] | int] = field(default_factory=dict)
    shared: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def conditioning(self, chains: int) -> dict[str, torch.Tensor]:
        """Random conditioning of so many chains, without what they share."""
        return {
            name: torch.randint(shape, (chains,)) if isinstance(shape, int) else torch.randn(chains, *shape)
            for name, shape in self.cond.items()
        }


CASES = {
    "tutorial": MLPCase(Tutorial, (2,)),
    "tutorial wide": MLPCase(lambda: Tutorial(14, 256, nn.SiLU), (14,)),
    "scalar time": MLPCase(ScalarTime, (2,)),
    "implicit policy": MLPCase(ImplicitPolicy, (6,), {"condition": (16,)}),
    "implicit policy, unconditional": MLPCase(ImplicitPolicy, (6,)),
    "implicit policy, 1024 wide": MLPCase(lambda: ImplicitPolicy(6, 16, 256, 2), (6,), {"condition": (16,)}),
    "chunk policy": MLPCase(ChunkPolicy, (4, 3), {"state": (2, 5)}),
    "modulated": MLPCase(Modulated, (5,)),
    "posterior score": MLPCase(PosteriorScore, (3,), {"data": (4,)}),
    "skip score": MLPCase(SkipScore, (3,), {"data": (4,)}),
    "adaptive norm": MLPCase(AdaptiveNorm, (8,), {"label": 6}),
    "learned variances": MLPCase(Variances, (4,)),
    "unet of vectors": MLPCase(UnetOfVectors, (6,)),
    "by hand": MLPCase(ByHand, (4,)),
    "preconditioned": MLPCase(Preconditioned, (3,)),
    "per action": MLPCase(PerAction, (3, 2)),
    "prompted": MLPCase(Prompted, (4,), {"label": 4}, {"context": (3, 6)}),
    "gated": MLPCase(Gated, (5,)),
    "encoded number": MLPCase(Encoded, (2,), {"value": ()}),
    "of a function": MLPCase(_of_function, (2,)),
    "running averages": MLPCase(Averages, (4,)),
}
