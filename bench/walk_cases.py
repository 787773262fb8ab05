"""Chains of an MLP beside an embedding of the time, as one walk of whole chains on any device."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from bench.naive import NaiveDDPM

import ulam
from ulam.chain_kernel.compiled import CompiledChain
from ulam_kernels import Table
from ulam_kernels.networks import Network
from ulam_kernels.walks import BoundWalk

POLICY, PLANE = (14, 256, 256, 256, 14), (2, 64, 64, 2)
EMBEDDING = 32


class Net(torch.nn.Module):
    """x beside sines and cosines of the time, through layers with SiLU."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        pairs = itertools.pairwise((widths[0] + EMBEDDING, *widths[1:]))
        self.linears = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in pairs)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        half = EMBEDDING // 2
        rates = torch.exp(torch.arange(half, device=t.device) * -(math.log(10_000) / (half - 1)))
        angles = t[:, None] * rates
        out = self.linears[0](torch.cat([x, angles.sin(), angles.cos()], -1))
        for linear in list(self.linears)[1:]:
            out = linear(torch.nn.functional.silu(out))
        result: torch.Tensor = out
        return result


def compiled(net: Net, precision: str = "float32") -> tuple[Network, CompiledChain]:
    """The network of a walk in this precision, and what computes the vectors of its rows."""
    denoiser = ulam.Denoiser(net, ulam.schedules.vp_linear(1000))
    chain = ulam.chain_kernel.compile(denoiser, (net.linears[-1].out_features,))
    return replace(chain.network, precision=precision), chain


@dataclass
class Chains:
    """The last `steps` timesteps of DDPM."""

    widths: tuple[int, ...]
    chains: int
    steps: int
    precision: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.net, n, to = Net(self.widths).eval(), self.widths[0], self.device
        network, compiled_chain = compiled(self.net, self.precision)
        timesteps = tuple(range(self.steps - 1, -1, -1))
        rows = ulam.samplers.DDPM(timesteps=timesteps, clip=(-1, 1)).program(ulam.schedules.vp_linear(1000)).table()
        zero = np.zeros(1)
        idle = Table.pack(zero, zero, zero, zero, zero, zero, zero, np.zeros((1, 1, 4)), zero[None] > 0, zero > 0)
        times = torch.tensor([0.0, *map(float, timesteps)])
        self.cursor = torch.zeros(6, self.chains, dtype=torch.int64, device=to)
        self.start, ids = torch.tensor([1, 16, 1, 16, 0, 0], device=to)[:, None], torch.arange(self.chains, device=to)
        self.states, self.naive = torch.empty(1, self.chains, n, device=to), NaiveDDPM(dimensions=1, device=to)
        given = {"seed": torch.zeros_like(ids), "chain": ids, "row_vectors": compiled_chain.row_vectors(times).to(to)}
        table = Table.cat([idle, rows])
        table = Table(table.coef.to(to), table.flags.to(to), table.registers)
        self.bound = BoundWalk(self.states, table, self.cursor, network, **given)
        self.net.to(to)

    def walk(self) -> None:
        self.states.normal_()
        self.cursor.copy_(self.start)
        self.bound(self.steps)
