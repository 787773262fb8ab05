"""Chains of an MLP that is told x + a t, as one walk of whole chains on any device, and as a naive loop."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from bench.naive import NaiveDDPM

import ulam
from ulam_kernels import Table
from ulam_kernels.networks import Linear, Network, Operand, Unary
from ulam_kernels.walks import BoundWalk

POLICY, PLANE = (14, 256, 256, 256, 14), (2, 64, 64, 2)


class Net(torch.nn.Module):
    """eps(x + a t)"""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.linears = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.time = torch.nn.Parameter(torch.full((widths[0],), 1e-3))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = self.linears[0](x + self.time * t[:, None])
        for linear in list(self.linears)[1:]:
            out = linear(torch.nn.functional.silu(out))
        return out

    def compiled(self, precision: str = "float32") -> Network:
        """The same on x alone: the first bias comes with the row."""
        instructions: list[Linear | Unary] = []
        widths, constants = [self.linears[0].in_features], [torch.empty(0)]
        for place, linear in enumerate(self.linears):
            start = Operand("constant", sum(map(len, constants))) if place else Operand("row", 0)
            if place:
                constants.append(linear.bias.detach())
            last = len(instructions)
            instructions.append(Linear(last + 1, (last,), (linear.weight.detach(),), (start,)))
            widths.append(linear.out_features)
            if place < len(self.linears) - 1:
                instructions.append(Unary(last + 2, "silu", last + 1))
                widths.append(linear.out_features)
        return Network(widths[0], tuple(widths), tuple(instructions), torch.cat(constants),
                       row_width=self.linears[0].out_features, output=len(instructions),
                       precision=precision)  # fmt: skip

    @torch.no_grad()
    def row_vectors(self, times: torch.Tensor) -> torch.Tensor:
        first = self.linears[0]
        out: torch.Tensor = (self.time * times[:, None]) @ first.weight.T + first.bias
        return out


@dataclass
class Chains:
    """The last `steps` timesteps of DDPM: by the walk, and by the naive loop."""

    widths: tuple[int, ...]
    chains: int
    steps: int
    precision: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.net, n, to = Net(self.widths).eval(), self.widths[0], self.device
        network = self.net.compiled(self.precision)
        timesteps = tuple(range(self.steps - 1, -1, -1))
        rows = ulam.samplers.DDPM(timesteps=timesteps, clip=(-1, 1)).program(ulam.schedules.vp_linear(1000)).table()
        zero = np.zeros(1)
        idle = Table.pack(zero, zero, zero, zero, zero, zero, zero, np.zeros((1, 1, 4)), zero[None] > 0, zero > 0)
        times = torch.tensor([0.0, *map(float, timesteps)])
        self.cursor = torch.zeros(6, self.chains, dtype=torch.int64, device=to)
        self.start, ids = torch.tensor([1, 16, 1, 16, 0, 0], device=to)[:, None], torch.arange(self.chains, device=to)
        self.states, self.naive = torch.empty(1, self.chains, n, device=to), NaiveDDPM(dimensions=1, device=to)
        given = {"seed": torch.zeros_like(ids), "chain": ids, "row_vectors": self.net.row_vectors(times).to(to)}
        table = Table.cat([idle, rows])
        table = Table(table.coef.to(to), table.flags.to(to), table.registers)
        self.bound = BoundWalk(self.states, table, self.cursor, network, **given)
        self.net.to(to)

    def walk(self) -> None:
        self.states.normal_()
        self.cursor.copy_(self.start)
        self.bound(self.steps)

    @torch.no_grad()
    def loop(self) -> None:
        self.naive.sample(self.net, (self.chains, self.widths[0]), self.steps, clip=True)

    @property
    def operations(self) -> int:
        return 2 * sum(a * b for a, b in itertools.pairwise(self.widths)) * self.chains * self.steps
