"""Recorded rows once more: states before and after, the network's outputs there, and the fused step on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import ulam_kernels
from ulam_kernels.table import Table

from ..arguments import per_chain
from ..engine.guided_outputs import weighted
from ..engine.trajectory import Trajectory
from ..noise import ROW
from ..programs.program import Program

Column = Callable[[Program], npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Setting:
    """What all visits of one trajectory share: the program of the denoiser, its table, and where all is computed."""

    trajectory: Trajectory
    program: Program
    table: Table
    device: torch.device

    @classmethod
    def of(cls, trajectory: Trajectory, program: Program, device: torch.device) -> Setting:
        wide = torch.float64 if trajectory.dtype == torch.float64 else torch.float32
        return cls(trajectory, program, program.table(dtype=wide, device=device), device)


@dataclass(frozen=True, eq=False)
class Registers:
    """Of b pairs, ``[R - 1, b, *shape]``: as the fused step leaves them, and in float64 with gradients."""

    executed: torch.Tensor
    exact: torch.Tensor


class Visit:
    """b pairs of chains and rows.

    Attributes:
        x, after: ``[b, *shape]``, the states before and after the row.
        outputs: the network's, the unguided one (None without guidance) and the weights; 0 where a row has none.
    """

    outputs: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]

    def __init__(self, setting: Setting, places: torch.Tensor, rows: npt.NDArray[np.int64]) -> None:
        trajectory = setting.trajectory
        assert trajectory.states is not None
        self.setting, self.places, self.rows = setting, places.to(setting.device), rows
        states, at = trajectory.states, torch.from_numpy(rows) - trajectory.rows.start
        here = places.to(states.device), at.to(states.device)
        self.x, self.after = (states[here[0], here[1] + k].to(setting.device) for k in (0, 1))

    def column(self, of: Column, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """A column of the program, ``[b]``, rounded as the step has it."""
        values = torch.from_numpy(np.ascontiguousarray(of(self.setting.program)[self.rows]))
        if values.dtype == torch.float64 and self.x.dtype != torch.float64:
            values = values.float()
        return values.to(self.setting.device, dtype)

    def noise(self, registers: Registers) -> torch.Tensor:
        """The z, float64, that takes x to its next state under these outputs, see :mod:`ulam.rollouts.densities`; 0 in
        rows that add none to x."""
        made = torch.empty(self.x.shape, dtype=torch.promote_types(self.x.dtype, torch.float32), device=self.x.device)
        ulam_kernels.fill_normal(made, **self._ids())
        mean = self.means(registers)[0]
        moved = self._executed(registers)[0].double() - self.after.double()
        a_z = per_chain(self.column(lambda p: np.where(p.writes[:, 0], p.A[:, 0, -1], 0.0)), mean)
        z = made.double() - (moved + (mean - mean.detach())) / torch.where(a_z == 0, 1.0, a_z)
        return torch.where(a_z == 0, 0.0, z)

    def then(self, registers: Registers) -> Registers:
        """The registers after the rows."""
        program = self.setting.program
        noisy = program.writes & (program.A[:, :, -1] != 0)
        if not noisy[self.rows, 1:].any():
            return Registers(self._executed(registers)[1:], self.means(registers)[1:])
        z = self.noise(registers)
        exact = self.means(registers)
        for i in range(1, len(exact)):
            exact[i] += per_chain(self.column(lambda p, i=i: np.where(noisy[:, i], p.A[:, i, -1], 0.0)), z) * z  # type: ignore[misc]
        return Registers(self._executed(registers, z.detach())[1:], exact[1:])

    def means(self, registers: Registers) -> torch.Tensor:
        """x and the registers after the rows but for their noise, ``[R, b, *shape]`` float64, differentiable in the
        outputs."""
        m, u, weight = self.outputs
        m = weighted(m.double(), None if u is None else u.double(), weight.double())

        def of(column: Column) -> torch.Tensor:
            return per_chain(self.column(column), m)

        r = [self.x.double(), *self._loaded(registers.exact)]
        D = torch.clamp(of(lambda p: p.kx) * r[0] + of(lambda p: p.km) * m, of(lambda p: p.lo), of(lambda p: p.hi))
        found = []
        for register, before in enumerate(r):
            total = torch.zeros_like(m)
            for term, value in enumerate([*r, D, m]):
                if self.setting.program.A[self.rows, register, term].any():
                    a = of(lambda p, at=(register, term): p.A[:, at[0], at[1]])  # type: ignore[misc]
                    total = total + torch.where(a != 0, a * value, 0.0)
            written = of(lambda p, register=register: p.writes[:, register]) != 0  # type: ignore[misc]
            found.append(torch.where(written, total, before))
        return torch.stack(found)

    @torch.no_grad()
    def _executed(self, registers: Registers, noise: torch.Tensor | None = None) -> torch.Tensor:
        """States after the fused step, ``[R, b, *shape]``, with the trajectory's noise or this."""
        m, u, weight = (None if value is None else value.detach().contiguous() for value in self.outputs)
        table = self.setting.table
        states = torch.cat([self.x[None], self._loaded(registers.executed)])
        given: dict[str, Any] = {} if u is None else {"uncond": u, "guidance": weight}
        given |= self._ids() if noise is None else {"noise": noise.to(table.coef.dtype)}
        ulam_kernels.step(states, table, torch.from_numpy(self.rows).to(self.x.device), model=m, **given)
        return states

    def _loaded(self, registers: torch.Tensor) -> torch.Tensor:
        """Registers, with the unguided output in those that take it before the row."""
        if not self.setting.program.unguided[self.rows].any():
            return registers
        m, u, _ = self.outputs
        own = (m if u is None else u).to(registers.dtype)
        taken = per_chain(self.column(lambda p: p.unguided), own)
        return torch.stack([torch.where(taken == i, own, part) for i, part in enumerate(registers, 1)])

    def _ids(self) -> dict[str, Any]:
        """Where the rows' noise is in noise-v1."""
        trajectory, device = self.setting.trajectory, self.x.device
        draws = torch.from_numpy(ROW.draws(self.rows + trajectory.first_row)).to(device)
        chains = trajectory.chains.to(device)[self.places]
        return {"seed": torch.full_like(draws, trajectory.seed), "chain": chains, "draw": draws}
