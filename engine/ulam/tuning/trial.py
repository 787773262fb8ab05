"""One candidate in an engine of its own: its warm-up, its ticks, its samples, the network's outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..conditioning import Shared
from ..denoiser import Denoiser
from ..engine.engine import Engine
from ..engine.errors import NetworkError
from ..engine.tuned import Candidate
from ..evaluation import in_eval_mode, modules_in
from ..files import one_line
from ..memory import paging_of
from ..programs.program import Program

TICKS = 3  # of a timed run


class Failed(Exception):
    """Why a candidate cannot be used."""


@dataclass(frozen=True)
class Setting:
    """What every trial runs: jobs of ``chains`` chains in engines of these arguments.

    program: of the compared samples. timed: the first ``TICKS`` evaluations of it. job: further arguments of
    :meth:`ulam.Engine.submit`; its conditioning has any number of chains, used in turn.
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    device: torch.device
    backend: str | None
    dtype: torch.dtype
    program: Program
    timed: Program
    chains: int
    seed: int
    job: Mapping[str, Any]


@dataclass(frozen=True)
class Call:
    """What the network was given in one call."""

    x: torch.Tensor
    t: torch.Tensor
    inputs: dict[str, torch.Tensor]


class Trial:
    """An engine that runs as a candidate says. Raises Failed where it cannot."""

    def __init__(self, setting: Setting, candidate: Candidate, net: Callable[..., Any] | None = None) -> None:
        self.setting, self.candidate = setting, candidate
        denoiser = setting.denoiser if net is None else replace(setting.denoiser, net=net)
        try:
            self.engine = Engine(
                denoiser, setting.shape, candidate.slots, setting.device, setting.backend, setting.dtype,
                options=candidate.options, graphs=candidate.graphs,
            )  # fmt: skip
        except ValueError as error:
            raise Failed(one_line(error)) from None
        self._known = self.engine.report.fallbacks

    def warm_up(self) -> float:
        """Seconds until the first output, beyond those of a later one."""
        first = self._run(self.setting.timed, self.candidate.slots)[1]
        return max(0.0, first - min(self._run(self.setting.timed, self.candidate.slots)[1] for _ in range(2)))

    def tick(self) -> float:
        """Seconds of a tick with all slots busy, the mean of a run's."""
        return self._run(self.setting.timed, self.candidate.slots)[1] / len(self.setting.timed.evaluating)

    def tick_and_paging(self) -> tuple[float, float]:
        """Seconds of a tick, and the share of them that the CPU spent on pages of freed memory."""
        seconds, paging = paging_of(lambda: self._run(self.setting.timed, self.candidate.slots)[1])
        return seconds / len(self.setting.timed.evaluating), min(1.0, paging / seconds)

    def samples(self) -> torch.Tensor:
        """``[chains, *shape]`` on the CPU."""
        return self._run(self.setting.program, self.setting.chains)[0].cpu()

    def _run(self, program: Program, chains: int) -> tuple[torch.Tensor, float]:
        job = {name: _for_chains(value, chains) for name, value in self.setting.job.items()}
        submitted = self.engine.submit(program, chains, self.setting.seed, **job)
        begin = time.perf_counter()
        try:
            samples = self.engine.run()[submitted]
        except NetworkError as error:
            raise Failed(one_line(error.__cause__ or error)) from None
        except (TypeError, ValueError, RuntimeError) as error:
            raise Failed(one_line(error)) from None
        if self.setting.device.type == "cuda":
            torch.cuda.synchronize(self.setting.device)
        seconds = time.perf_counter() - begin
        if self.engine.report.fallbacks != self._known:
            raise Failed(self.engine.report.fallbacks[-1])
        return samples, seconds

    # ------------------------------------------------------------------------------------------ the network alone

    def output(self, call: Call) -> torch.Tensor:
        """What the network gives, ``[chains of the call, ...]``."""
        x, t, inputs = self._given(call)
        return self._evaluated(x, t, inputs)[0][: len(call.x)]

    def branches_apart(self, cond: Call, uncond: Call) -> bool:
        """Whether both branches in one batch have the bits of two batches."""
        x, t, inputs = self._given(cond)
        others = self._given(uncond)[2]
        both = self._evaluated(x, t, inputs, others)
        alone = self._evaluated(x, t, inputs)[0], self._evaluated(x, t, others)[0]
        return both[1] is not None and torch.equal(both[0], alone[0]) and torch.equal(both[1], alone[1])

    def _evaluated(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        cond: dict[str, torch.Tensor],
        uncond_inputs: dict[str, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        net = self.setting.denoiser.net
        try:
            with torch.inference_mode(), in_eval_mode(modules_in(net)):
                m, uncond = self.engine._runner.network(x, t, cond, uncond_inputs, self._shared)
        except NetworkError as error:
            raise Failed(one_line(error.__cause__ or error)) from None
        return m.clone(), None if uncond is None else uncond.clone()

    def _given(self, call: Call) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """A call's arguments for as many slots as there are here."""
        at = torch.arange(self.candidate.slots, device=call.x.device) % len(call.x)
        x = call.x[at].to(self.engine._runner.network.dtype or call.x.dtype)
        return x, call.t[at], {name: v if name in self._shared else v[at] for name, v in call.inputs.items()}

    @property
    def _shared(self) -> set[str]:
        return self.engine._runner.buffers.cond.shared


class Recorder(torch.nn.Module):
    """A network that keeps what it is given in some of its calls: those numbered in ``wanted``."""

    def __init__(self, net: Callable[..., Any], wanted: set[int]) -> None:
        super().__init__()
        self.net, self._wanted, self._count = net, wanted, 0
        self.calls: list[Call] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor, **inputs: torch.Tensor) -> Any:
        if self._count in self._wanted:
            self.calls.append(Call(x.clone(), t.clone(), {name: v.clone() for name, v in inputs.items()}))
        self._count += 1
        return self.net(x, t, **inputs)


def _for_chains(value: Any, chains: int) -> Any:
    """Conditioning by name, or weights, for so many chains: those given, in turn."""
    if isinstance(value, Mapping):
        return {name: _for_chains(one, chains) for name, one in value.items()}
    if isinstance(value, torch.Tensor) and not isinstance(value, Shared):
        return value[torch.arange(chains, device=value.device) % len(value)]
    return value
