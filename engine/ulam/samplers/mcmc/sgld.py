"""Stochastic gradient Langevin dynamics: ULA with steps that fall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ulam_kernels.arguments import described

from .chain_sampler import check_numbers
from .chain_state import Columns
from .ula import ULA


@dataclass(frozen=True, eq=False)
class SGLD(ULA):
    """ULA with the step sizes step (1 + i / delay)^-decay at the steps i = 0, 1, ... of a run [Welling & Teh 2011].

    For energies on minibatches, whose noise fades as the steps fall: an :class:`ulam.Energy` whose ``fn`` draws a
    minibatch of its own at each call.

    decay: above 0.5 and at most 1 for the paper's conditions; 0 keeps the step. delay: the number of steps before
    the step size falls noticeably. Other arguments: see `ULA`. Raises TypeError or ValueError naming the argument.
    """

    decay: float = 0.55
    delay: float = 1.0

    kernel: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        decay, delay = check_numbers("decay", self.decay, least=0), check_numbers("delay", self.delay, above=0)
        for name, tensor in (("decay", decay), ("delay", delay)):
            if tensor.dim():
                raise ValueError(f"{name}: got {described(getattr(self, name))}, expected one number")

    def coefficients(self, step: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, index: int) -> Columns:
        return super().coefficients(step * (1 + index / self.delay) ** -self.decay, temperature, rows, index)
