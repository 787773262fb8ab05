"""What is measured: a denoiser, its sampler and the conditioning of a full batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ulam_kernels.arguments import described, real
from ulam_kernels.reprs import short_repr

from ..arguments import check_shape, resolve_device
from ..conditioning import Cond, Shared, as_tensor
from ..denoiser import Denoiser, Sampler, check_denoiser
from ..engine.arguments import DEFAULT_SLOTS, backend_name, check_slots
from ..programs.program import Program
from ..samplers.ddim import DDIM


@dataclass(frozen=True, eq=False)
class Work:
    """Batches of ``slots`` chains under one sampler, conditioned and guided alike.

    shape: of a sample. sampler: DDIM(50) by default. cond, uncond: by name, for any number of chains ``[n, ...]``, used
    in turn, or shared. guidance: one weight, or None. device, backend: of :class:`ulam.Engine`. States are float32.

    Raises TypeError or ValueError for an invalid argument.
    """

    denoiser: Denoiser
    shape: Sequence[int]
    sampler: Sampler | Program = field(default_factory=lambda: DDIM(steps=50))
    slots: int = DEFAULT_SLOTS
    cond: Cond | None = None
    uncond: Cond | None = None
    guidance: float | None = None
    device: torch.device | str = "cpu"
    backend: str | None = None
    program: Program = field(init=False)

    __repr__ = short_repr

    def __post_init__(self) -> None:
        check_denoiser(self.denoiser, self.cond)
        put = object.__setattr__
        put(self, "shape", check_shape(self.shape))
        put(self, "slots", check_slots(self.slots))
        put(self, "device", resolve_device(self.device))
        backend_name(self.denoiser, torch.device(self.device), self.backend, torch.float32)
        put(self, "program", self.denoiser.program(self.sampler))
        if self.guidance is not None:
            put(self, "guidance", real(self.guidance, "guidance"))
            if self.uncond is None and self.denoiser.guide is None:
                raise ValueError(f"uncond: got none with guidance {self.guidance}, expected the unguided conditioning")
        if self.program.blends.any():
            raise ValueError(f"sampler: got {self.program.sampler}, expected one without a known image")
        put(self, "cond", self._for_slots(self.cond))
        put(self, "uncond", self._for_slots(self.uncond))

    def _for_slots(self, cond: Cond | None) -> dict[str, torch.Tensor | Shared] | None:
        """Conditioning of exactly ``slots`` chains, on the device."""
        if cond is None:
            return None
        found: dict[str, torch.Tensor | Shared] = {}
        for name, given in cond.items():
            value = given.tensor if isinstance(given, Shared) else as_tensor("cond", given)
            if not isinstance(value, torch.Tensor) or not (isinstance(given, Shared) or (value.dim() and len(value))):
                raise TypeError(f"cond: got {described(given)} for {name}, expected [n, ...] of n chains, or shared")
            value = value.to(self.device)
            found[name] = Shared(value) if isinstance(given, Shared) else value[torch.arange(self.slots) % len(value)]
        return found

    @property
    def job(self) -> dict[str, Any]:
        """Arguments of :meth:`ulam.Engine.submit` and :func:`ulam.tune`."""
        return {"cond": self.cond, "uncond": self.uncond, "guidance": self.guidance}

    @property
    def calls(self) -> int:
        """Calls of a network for each evaluation of a chain: two where chains are guided."""
        return 1 if self.guidance is None else 2

    @property
    def elements(self) -> int:
        """Numbers in the states of all chains."""
        return self.slots * math.prod(self.shape)

    @property
    def batch(self) -> tuple[int, ...]:
        """The shape of all chains' states."""
        return (self.slots, *self.shape)

    def first(self, evaluations: int) -> Program:
        """The program up to so many evaluations of the network."""
        return self.program.cut(0, self.program.evaluating[evaluations - 1] + 1)

    def wait(self) -> None:
        """Return when the device has done all that it was given."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)
