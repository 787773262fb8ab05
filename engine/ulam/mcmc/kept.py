"""The states that a batch of chains keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from ..samplers.mcmc.nuts import NUTS
from ..samplers.mcmc.rows import Rows
from .plan import RunPlan


@dataclass(eq=False)
class KeptDraws:
    """Where a batch writes the states it keeps: see :class:`ulam.mcmc.Chains`; None for what is not wanted.

    ``draws`` ``[B, kept, *shape]``, ``energies`` ``[B, kept]`` float64, ``moments`` ``[B, 2, *shape]`` float64;
    ``tree_depth``, ``leapfrogs`` ``[B, kept]`` int64, of NUTS alone.
    """

    draws: torch.Tensor | None
    energies: torch.Tensor | None
    moments: torch.Tensor | None
    tree_depth: torch.Tensor | None = None
    leapfrogs: torch.Tensor | None = None

    @classmethod
    def empty(cls, plan: RunPlan, chains: int, store: bool) -> KeptDraws:
        """Room for what ``chains`` chains of a plan keep: their draws, or with store=False their moments."""
        kept, shape, device = plan.kept, plan.shape, plan.device
        if not store:
            return cls(None, None, torch.zeros(chains, 2, *shape, dtype=torch.float64, device=device))
        energies = torch.empty(chains, kept, dtype=torch.float64, device=device) if plan.target.has_energy else None
        draws = torch.empty(chains, kept, *shape, dtype=plan.dtype, device=device)
        if not isinstance(plan.sampler, NUTS) or plan.tempering is not None:
            return cls(draws, energies, None)
        depth = torch.zeros(chains, kept, dtype=torch.int64, device=device)
        return cls(draws, energies, None, depth, torch.zeros_like(depth))

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

    def put_each(self, rows: Rows, index: torch.Tensor, values: Mapping[str, torch.Tensor]) -> None:
        """Keep the states of these rows, each as its own draw ``index`` ``[B]`` int64.

        ``values``: x ``[B, *shape]``, and those of ``energies``, ``tree_depth`` and ``leapfrogs`` that there are,
        ``[B]`` each.
        """
        if not rows:
            return
        for name, value in values.items():
            kept = self.draws if name == "x" else getattr(self, name)
            if kept is not None:
                rows.put(kept, rows.of(value), at=index)
        if self.moments is not None:
            wide = rows.of(values["x"].double())
            rows.put(self.moments, rows.of(self.moments) + torch.stack([wide, wide.square()], 1))

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
