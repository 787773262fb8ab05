"""One call of `step`: which rows, with what noise, executed where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import ulam_kernels
from ulam_kernels import torch_normal

from .arguments import check_noise, check_sample
from .call_table import CallTable, RowTraits
from .noise import Generators, Streams, check_generators, drawn
from .threads import Local

GENERATOR = torch.Generator


def fast_path(
    calls: CallTable,
    row: int | torch.Tensor,
    model_output: torch.Tensor,
    sample: torch.Tensor,
    generator: Generators,
    local: Local,
    backend: str | None,
) -> torch.Tensor | None:
    """The next sample as `Call.previous` gives it, with the same bits, from float32 tensors on the CPU.

    None where that is needed: more than one register, rows that differ by chain, reductions, other layouts, lists of
    generators.
    """
    if not isinstance(row, int) or calls.registers > 1:
        return None
    if generator is not None and type(generator) is not GENERATOR:
        return None
    if sample.dtype is not torch.float32 or not sample.is_cpu:
        return None
    shape, traits = sample.shape, calls.traits[row]
    step = calls.bound(shape, backend)
    if step is None or not traits.simple or not (step.takes(sample) and step.takes(model_output)):
        return None
    previous = local.buffers.empty(shape)
    noise = torch_normal(previous, generator) if traits.draws else None
    step(row, previous, sample, model_output, noise)
    return previous


@dataclass
class Call:
    """The arguments of one call, and the traits of its rows.

    row: of `calls`, or the rows of the chains [B]. noise: given by the caller. streams: those of noise-v1, None
    where noise comes from the generator, drawn as `noise_dtype`.
    """

    calls: CallTable
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
        calls, sample, chains = self.calls, self.sample, len(self.sample)
        self.device, self.wide = sample.device, wide(sample)
        if self.wide == torch.float64:
            self.backend = None
        if isinstance(self.row, int):
            traits = calls.traits[self.row]
            self.rows = calls.index(self.row, chains, self.device)
            self.draw = [traits.draw]
        else:
            each = [calls.traits[row] for row in self.row.tolist()]
            self.draw = [traits.draw for traits in each]
            traits = RowTraits(
                draws=any(traits.draws for traits in each),
                draw=0,
                reduces=any(traits.reduces for traits in each),
                learns=any(traits.learns for traits in each),
                writes=all(traits.writes for traits in each),
            )
            self.rows = self.row.to(self.device)
        self.draws, self.reduces, self.writes = traits.draws, traits.reduces, traits.writes
        if self.noise is not None:
            check_noise(self.noise, sample, "variance_noise")
        elif self.draws and self.streams is None:
            check_generators(self.generator, chains)
        channels = sample.shape[1] * 2 if sample.dim() > 1 else 0
        if traits.learns and self.model_output.shape[1] != channels:
            raise ValueError(
                f"model_output: got {self.model_output.shape[1]} channels, expected {channels}, the second half being "
                "the learned variance"
            )

    def previous(self, local: Local) -> torch.Tensor:
        """The next sample, in a tensor of its own."""
        sample = self.sample.contiguous()
        previous = local.buffers.empty_like(sample)
        if not self.writes:
            previous.copy_(sample)
        if self.calls.registers == 1:
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
        """The noise that was just used, where the second output reads it."""
        if not (self.calls.second_reads_noise and self.draws):
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
        shape, where = self.sample.shape, (self.device, self.noise_dtype, self.wide)
        overwritten = self.writes and not self.reduces and not self.calls.second_reads_noise
        if out is not None and out.dtype == self.wide and overwritten:
            return {"noise": drawn(out, shape, self.generator, *where)}
        local.noise = drawn(local.noise, shape, self.generator, *where)
        return {"noise": local.noise}

    def _registers(self, local: Local) -> torch.Tensor:
        """The registers as earlier calls of this thread's loop left them."""
        shape, before = (self.calls.registers, *self.sample.shape), local.registers
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
        """Execute rows of the table: `source` is r_0 before them, `state[0]` after."""
        table, scales = self.calls.table(self.device, self.wide, form), None
        operands: dict[str, Any] = {"model": self.model_output, "backend": self.backend, **noise}
        if self.reduces:
            state[0].copy_(source)  # reductions read it there
            out = torch.empty((len(source), 4), dtype=self.wide, device=self.device)
            scales = ulam_kernels.reduce(state, table, self.rows, out=out, **operands)
        ulam_kernels.step(state, table, self.rows, source=source, scales=scales, net_in=net_in, **operands)


def wide(sample: torch.Tensor) -> torch.dtype:
    """The dtype of coefficients and noise for a sample."""
    return torch.float64 if sample.dtype == torch.float64 else torch.float32
