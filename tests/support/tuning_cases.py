"""Networks whose fastest way to run is known, importable by name from the command line."""

from __future__ import annotations

import time
from typing import Any

import torch

SLEEP = 0.004


class Clock:
    """The machine's clock, but that a wait is a hundred times as long by it and takes no time: noise is lost in it."""

    def __init__(self) -> None:
        self.waited = 0.0

    def sleep(self, seconds: float) -> None:
        self.waited += 100 * seconds

    def perf_counter(self) -> float:
        return time.perf_counter() + self.waited


clock: Any = time  # of the networks below


class Slow(torch.nn.Module):
    """Slow when eager, not when compiled; ``off``: how far compiled outputs are from eager ones."""

    def __init__(self, off: float = 0.0) -> None:
        super().__init__()
        self.off = off
        self.weight = torch.nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return x * self.weight + self.off
        clock.sleep(SLEEP)
        return x * self.weight


class Float32Only(Slow):
    """Has no 16-bit form."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("not\ntoday")
        return super().forward(x, t)


class EachCall(Slow):
    """Takes the same time for any batch, compiled or not; ``coupled``: its rows depend on each other."""

    def __init__(self, coupled: bool = False) -> None:
        super().__init__()
        self.coupled = coupled

    @torch.compiler.disable
    def wait(self) -> None:
        clock.sleep(SLEEP)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        self.wait()
        shift = 0.0 if y is None else 0.01 * y.view(-1, *[1] * (x.dim() - 1))
        out = x * self.weight + shift
        return out + 0.01 * out.mean() if self.coupled else out


def slow() -> torch.nn.Module:
    return Slow()
