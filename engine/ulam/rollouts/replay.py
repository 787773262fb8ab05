"""Pairs of chains and rows under any network, with the registers that it would have left.

A sampler with history keeps outputs of earlier rows in registers. Another network would have left others there, so they
are made again: a pair that reads ``reach`` rows back is walked through these rows, x as it was recorded, the noise as x
tells it under the new outputs. The network is called once, for all evaluations that any pair needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.arguments import described

from ..arguments import whole_number
from ..denoiser import Denoiser, check_denoiser
from ..engine.trajectory import BEYOND, Trajectory
from ..evaluation import modules_in
from .evaluations import evaluate
from .pairs import Pairs, indices, reach
from .visits import Registers, Setting, Visit


class Replay(Visit):
    """The pairs that are asked for, and their ``registers`` before their rows.

    Attributes: at: ``[b]``, the rows' places in what was recorded. failed: ``[b]`` bool, whether the chain had failed.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        trajectory: Trajectory,
        rows: slice | Sequence[int] | None,
        pairs: Pairs | None,
        batch: int | None,
    ) -> None:
        check_denoiser(denoiser, None)
        if batch is not None and whole_number("batch", batch) < 1:
            raise ValueError(f"batch: got {batch}, expected at least 1, or None")
        if not isinstance(trajectory, Trajectory):
            raise TypeError(f"trajectory: got {described(trajectory)}, expected a ulam.rollouts.Trajectory")
        if trajectory.states is None:
            raise ValueError("trajectory: got one without states, expected one of Rollout(states=True)")
        if found := [BEYOND[trait] for trait in trajectory.traits if trait in BEYOND]:
            raise ValueError(f"trajectory: got one with {found[0]}, expected weights of guidance alone")
        program = denoiser.program(trajectory.program)
        places, numbers, self._asked = indices(trajectory, rows, pairs)
        first = trajectory.rows.start
        far = {row: reach(program, row, first) for row in sorted(set(numbers.tolist()))}
        parameters = [p for module in modules_in(denoiser.net) for p in module.parameters()]
        device = parameters[0].device if parameters else trajectory.states.device
        super().__init__(Setting.of(trajectory, program, device), places, numbers.numpy())
        self.at = (numbers - first).to(device)
        failed = torch.full((len(trajectory),), len(program))
        for place, row in trajectory.failed.items():
            failed[place] = row
        self.failed = (numbers >= failed[places]).to(device)
        self.registers = self._walked(denoiser, places, np.array([far[row] for row in numbers.tolist()]), batch)

    def shaped(self, found: torch.Tensor) -> torch.Tensor:
        """What was found of each pair in the shape that was asked for."""
        return found.reshape(self._asked)

    def _walked(
        self, denoiser: Denoiser, places: torch.Tensor, far: npt.NDArray[np.int64], batch: int | None
    ) -> Registers:
        """Call the network at all rows that the pairs read, and walk each through them."""
        at = [np.flatnonzero(far >= back) for back in range(int(far.max()) + 1)]
        earlier = [Visit(self.setting, places[here], self.rows[here] - back) for back, here in enumerate(at) if back]
        evaluate(denoiser, self.setting, [self, *earlier], batch)
        empty = self.x.new_zeros(self.setting.program.registers - 1, *self.x.shape)
        now = Registers(empty, empty.double())
        for visit, here in zip(reversed(earlier), reversed(at[1:]), strict=True):
            index = torch.from_numpy(here).to(self.x.device)
            new = visit.then(Registers(now.executed[:, index], now.exact[:, index]))
            executed, exact = (old.index_copy(1, index, part) for old, part in zip(_both(now), _both(new), strict=True))
            now = Registers(executed, exact)
        return now


def _both(registers: Registers) -> tuple[torch.Tensor, torch.Tensor]:
    return registers.executed, registers.exact
