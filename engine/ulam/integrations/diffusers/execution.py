"""One call of `step`: which rows, with what noise, executed where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import ulam_kernels
from ulam_kernels import torch_normal

from .arguments import check_noise, check_sample
from .call_table import Kind, Plan
from .noise import Generators, Streams, check_generators, drawn
from .threads import Local

GENERATOR = torch.Generator


def short_way(
    plan: Plan,
    row: int | torch.Tensor,
    model_output: torch.Tensor,
    sample: torch.Tensor,
    generator: Generators,
    local: Local,
    backend: str | None,
) -> torch.Tensor | None:
    """The next sample as :meth:`Call.previous` has it, with the same bits, from float32 tensors on the CPU.

    None where only that will do: more than one register, rows of each chain, reductions, other layouts, generators.
    """
    if not isinstance(row, int) or plan.registers > 1:
        return None
    if generator is not None and type(generator) is not GENERATOR:
        return None
    if sample.dtype is not torch.float32 or not sample.is_cpu:
        return None
    shape, kind = sample.shape, plan.kinds[row]
    step = plan.bound(shape, backend)
    if step is None or not kind.simple or not (step.takes(sample) and step.takes(model_output)):
        return None
    previous = local.buffers.empty(shape)
    noise = torch_normal(previous, generator) if kind.draws else None
    step(row, previous, sample, model_output, noise)
    return previous


@dataclass
class Call:
    """The arguments of one call, and what the plan says of its rows.

    row: the table's row, or the rows of the chains [B]. noise: given by the caller. streams: those of noise-v1, None
    where noise comes from the generator, drawn as `noise_dtype`.
    """

    plan: Plan
    row: int | torch.Tensor
    model_output: torch.Tensor
    sample: torch.Tensor
    generator: Generators
    noise: torch.Tensor | None
    noise_dtype: torch.dtype
    streams: Streams | None
    backend: str | None

    def __post_init__(self) -> None:
        check_sample(self.sample, self.model_output)
        plan, sample, chains = self.plan, self.sample, len(self.sample)
        self.device, self.wide = sample.device, wide(sample)
        if self.wide == torch.float64:
            self.backend = None
        if isinstance(self.row, int):
            kind = plan.kinds[self.row]
            self.rows = plan.index(self.row, chains, self.device)
            self.draw = [kind.draw]
        else:
            kinds = [plan.kinds[row] for row in self.row.tolist()]
            self.draw = [kind.draw for kind in kinds]
            kind = Kind(
                draws=any(kind.draws for kind in kinds),
                draw=0,
                reduces=any(kind.reduces for kind in kinds),
                learns=any(kind.learns for kind in kinds),
                writes=all(kind.writes for kind in kinds),
            )
            self.rows = self.row.to(self.device)
        self.draws, self.reduces, self.writes = kind.draws, kind.reduces, kind.writes
        if self.noise is not None:
            check_noise(self.noise, sample, "variance_noise")
        elif self.draws and self.streams is None:
            check_generators(self.generator, chains)
        channels = sample.shape[1] * 2 if sample.dim() > 1 else 0
        if kind.learns and self.model_output.shape[1] != channels:
            raise ValueError(
                f"model_output must have {channels} channels, the second half being the learned variance, "
                f"got {self.model_output.shape[1]}"
            )

    def previous(self, local: Local) -> torch.Tensor:
        """The next sample, in a tensor of its own."""
        sample = self.sample.contiguous()
        previous = local.buffers.empty_like(sample)
        if not self.writes:
            previous.copy_(sample)
        if self.plan.registers == 1:
            self._execute(previous[None], sample, "first", self._noise(local, previous))
        else:
            self._execute(self._registers(local), sample.to(self.wide), "first", self._noise(local), net_in=previous)
        return previous

    def second(self, noise: dict[str, torch.Tensor]) -> torch.Tensor:
        """The second output; noise: what `kept_noise` gave."""
        state = self.sample.clone(memory_format=torch.contiguous_format)
        self._execute(state[None], state, "second", noise)
        return state

    def kept_noise(self, local: Local) -> dict[str, torch.Tensor]:
        """The noise just used, where the second output reads it."""
        if not (self.plan.second_reads_noise and self.draws):
            return {}
        if self.streams is None:
            assert local.noise is not None
            return {"noise": local.noise.clone()}
        return self._noise(local)

    def _noise(self, local: Local, out: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The noise as operands of the fused step; `out`: what the step is about to overwrite."""
        if self.noise is not None:
            return {"noise": self.noise.detach().to(self.device, self.wide).resolve_neg().contiguous()}
        if not self.draws:
            return {}
        if self.streams is not None:
            chains = len(self.sample)
            draw = torch.tensor(self.draw, device=self.device).expand(chains).contiguous()
            return {**self.streams.operands(chains, self.device), "draw": draw}
        shape, kinds = self.sample.shape, (self.device, self.noise_dtype, self.wide)
        overwritten = self.writes and not self.reduces and not self.plan.second_reads_noise
        if out is not None and out.dtype == self.wide and overwritten:
            return {"noise": drawn(out, shape, self.generator, *kinds)}
        local.noise = drawn(local.noise, shape, self.generator, *kinds)
        return {"noise": local.noise}

    def _registers(self, local: Local) -> torch.Tensor:
        """What earlier calls of this thread's loop left."""
        shape, before = (self.plan.registers, *self.sample.shape), local.registers
        if before is not None and (before.shape, before.dtype, before.device) == (shape, self.wide, self.device):
            return before
        registers = torch.zeros(shape, dtype=self.wide, device=self.device)
        if before is not None and before.shape[1:] == shape[1:] and before.device == self.device:
            registers[: len(before)] = before  # another thread's loop needs more registers
        local.registers = registers
        return registers

    def _execute(
        self,
        state: torch.Tensor,
        source: torch.Tensor,
        form: str,
        noise: dict[str, torch.Tensor],
        net_in: torch.Tensor | None = None,
    ) -> None:
        """Rows of the plan's table: `source` is r_0 before them, `state[0]` after."""
        table, scales = self.plan.table(self.device, self.wide, form), None
        operands: dict[str, Any] = {"model": self.model_output, "backend": self.backend, **noise}
        if self.reduces:
            state[0].copy_(source)  # reductions read it there
            out = torch.empty((len(source), 4), dtype=self.wide, device=self.device)
            scales = ulam_kernels.reduce(state, table, self.rows, out=out, **operands)
        ulam_kernels.step(state, table, self.rows, source=source, scales=scales, net_in=net_in, **operands)


def wide(sample: torch.Tensor) -> torch.dtype:
    """The dtype of coefficients and noise for a sample."""
    return torch.float64 if sample.dtype == torch.float64 else torch.float32
