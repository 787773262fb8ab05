"""The states that a batch of chains keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .plan import RunPlan


@dataclass(eq=False)
class KeptDraws:
    """Where a batch writes the states it keeps: see :class:`ulam.mcmc.Chains`; None for what is not wanted.

    ``draws`` ``[B, kept, *shape]``, ``energies`` ``[B, kept]`` float64, ``moments`` ``[B, 2, *shape]`` float64.
    """

    draws: torch.Tensor | None
    energies: torch.Tensor | None
    moments: torch.Tensor | None

    @classmethod
    def empty(cls, plan: RunPlan, chains: int, store: bool) -> KeptDraws:
        """Room for what ``chains`` chains of a plan keep: their draws, or with store=False their moments."""
        kept, shape, device = plan.kept, plan.shape, plan.device
        if not store:
            return cls(None, None, torch.zeros(chains, 2, *shape, dtype=torch.float64, device=device))
        energies = torch.empty(chains, kept, dtype=torch.float64, device=device) if plan.target.has_energy else None
        return cls(torch.empty(chains, kept, *shape, dtype=plan.dtype, device=device), energies, None)

    def put(self, index: int, x: torch.Tensor, energy: torch.Tensor | None) -> None:
        """Keep the states x ``[B, *shape]`` as draw ``index``."""
        if self.draws is not None:
            self.draws[:, index] = x
        if self.energies is not None and energy is not None:
            self.energies[:, index] = energy
        if self.moments is not None:
            wide = x.double()
            self.moments[:, 0] += wide
            self.moments[:, 1].addcmul_(wide, wide)

    def split(self, begin: int, end: int) -> KeptDraws:
        """New contiguous room for the draws from ``begin`` to ``end``; the moments are shared."""
        draws, energies = (
            None if tensor is None else torch.empty_like(tensor[:, begin:end]).contiguous()
            for tensor in (self.draws, self.energies)
        )
        return replace(self, draws=draws, energies=energies)

    def join(self, begin: int, end: int, part: KeptDraws) -> None:
        """Copy what :meth:`split` gave, filled by now, to its place."""
        for ours, theirs in ((self.draws, part.draws), (self.energies, part.energies)):
            if ours is not None and theirs is not None:
                ours[:, begin:end] = theirs
