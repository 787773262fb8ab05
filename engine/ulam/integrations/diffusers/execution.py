"""One call of `step`: which rows, with what noise, executed where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import ulam_kernels

from .noise import Generators, Streams, drawn
from .plan import Plan
from .threads import Local


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
        plan, sample, chains = self.plan, self.sample, len(self.sample)
        self.device, self.wide = sample.device, wide(sample)
        if self.wide == torch.float64:
            self.backend = None
        indices = plan.indices(chains, self.device)
        if isinstance(self.row, int):
            kinds = [self.row]
            self.rows, self.draw = indices[0, self.row], indices[1, self.row]
        else:
            kinds = self.row.tolist()
            self.rows = self.row.to(self.device)
            self.draw = indices[1, self.rows, 0]
        self.draws = any(plan.draws[row] for row in kinds)
        self.reduces = any(plan.reduces[row] for row in kinds)
        channels = sample.shape[1] * 2 if sample.dim() > 1 else 0
        if any(plan.learns[row] for row in kinds) and self.model_output.shape[1] != channels:
            raise ValueError(
                f"model_output must have {channels} channels, the second half being the learned variance, "
                f"got {self.model_output.shape[1]}"
            )
        # Rows that read their history, and bits that are to be those of ulam.sample, are executed in place.
        self.goes_apart = (
            isinstance(self.row, int)
            and plan.parts[self.row]
            and self.streams is None
            and self.noise is None
            and not plan.second_reads_noise
            and sample.dtype == self.model_output.dtype == torch.float32
            and sample.shape == self.model_output.shape
            and sample.is_contiguous()
        )

    def previous(self, local: Local) -> torch.Tensor:
        """The next sample, in a tensor of its own."""
        return self._apart() if self.goes_apart else self._in_place(local)

    def _apart(self) -> torch.Tensor:
        assert isinstance(self.row, int)
        sample, plan, operands = self.sample, self.plan, {}
        coefficients = plan.coefficients(len(sample), self.device)
        previous = None
        if self.draws:
            previous = drawn(None, sample.shape, self.generator, self.device, self.noise_dtype, self.wide)
        if plan.plain[self.row]:
            a, b = coefficients[1, self.row], coefficients[2, self.row]
            return ulam_kernels.affine(sample, self.model_output, a, b, backend=self.backend)
        if previous is None:
            previous = torch.empty_like(sample)
        if plan.guides[self.row]:
            operands = {"uncond": sample, "guidance": coefficients[0, self.row]}
        table = plan.table(self.device, self.wide, "apart")
        ulam_kernels.step(
            previous[None], table, self.rows, model=self.model_output, noise=sample, backend=self.backend, **operands
        )
        return previous

    def _in_place(self, local: Local) -> torch.Tensor:
        sample = self.sample
        operands: dict[str, Any] = {"model": self.model_output, **self._noise(local)}
        if self.plan.registers == 1:
            previous = sample.clone(memory_format=torch.contiguous_format)
            self._execute(previous[None], "in place", operands)
            return previous
        shape, registers = (self.plan.registers, *sample.shape), local.registers
        if (
            registers is None
            or registers.shape != shape
            or (registers.dtype, registers.device)
            != (
                self.wide,
                self.device,
            )
        ):
            before, registers = registers, torch.zeros(shape, dtype=self.wide, device=self.device)
            if before is not None and before.shape[1:] == sample.shape and before.device == self.device:
                registers[: len(before)] = before  # another thread's loop needs more registers
            local.registers = registers
        registers[0].copy_(sample)
        previous = torch.empty(sample.shape, dtype=sample.dtype, device=self.device)
        self._execute(registers, "in place", operands, net_in=previous)
        return previous

    def second(self, noise: dict[str, torch.Tensor]) -> torch.Tensor:
        """The second output; noise: what `_noise` gave, where it is read."""
        state = self.sample.clone(memory_format=torch.contiguous_format)[None]
        self._execute(state, "second", {"model": self.model_output, **noise})
        return state[0]

    def kept_noise(self, local: Local) -> dict[str, torch.Tensor]:
        """The noise just used, where the second output reads it."""
        if not (self.plan.second_reads_noise and self.draws):
            return {}
        if self.streams is None:
            assert local.noise is not None
            return {"noise": local.noise.clone()}
        return self._noise(local)

    def _noise(self, local: Local) -> dict[str, torch.Tensor]:
        """The noise as operands of the fused step."""
        if self.noise is not None:
            return {"noise": self.noise.to(self.device, self.wide).contiguous()}
        if not self.draws:
            return {}
        if self.streams is not None:
            return {**self.streams.operands(len(self.sample), self.device), "draw": self.draw}
        local.noise = drawn(local.noise, self.sample.shape, self.generator, self.device, self.noise_dtype, self.wide)
        return {"noise": local.noise}

    def _execute(
        self, state: torch.Tensor, form: str, operands: dict[str, Any], net_in: torch.Tensor | None = None
    ) -> None:
        table, scales = self.plan.table(self.device, self.wide, form), None
        if self.reduces:
            out = torch.empty((len(self.sample), 4), dtype=self.wide, device=self.device)
            scales = ulam_kernels.reduce(state, table, self.rows, out=out, backend=self.backend, **operands)
        ulam_kernels.step(state, table, self.rows, scales=scales, net_in=net_in, backend=self.backend, **operands)


def wide(sample: torch.Tensor) -> torch.dtype:
    """The dtype of coefficients and noise for a sample."""
    return torch.float64 if sample.dtype == torch.float64 else torch.float32
