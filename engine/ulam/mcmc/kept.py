"""The states that a batch of chains keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

import ulam_kernels.mcmc as ops
from ulam_kernels.reprs import short_repr

from ..memory import room_for
from ..samplers.mcmc.chain_state import ChainState
from ..samplers.mcmc.low_rank import Coordinates
from ..samplers.mcmc.nuts import NUTS
from ..samplers.mcmc.rows import Rows
from .observables import Observables
from .plan import RunPlan

PLACED = 1 << 20  # elements of draws that are placed at once


@dataclass(eq=False)
class KeptDraws:
    """Where a batch writes the states it keeps: see :class:`ulam.mcmc.Chains`; None for what is not wanted.

    ``draws`` ``[B, kept, *shape]``, ``energies`` ``[B, kept]`` float64, ``moments`` ``[B, 2, *shape]`` float64;
    ``tree_depth``, ``leapfrogs`` ``[B, kept]`` int64, of NUTS alone. ``observables`` ``[B, kept, *sizes]`` by name,
    what ``measure`` says of the states; ``velocities`` ``[B, kept, *shape]``, ``kinetic`` ``[B, kept]`` float64.
    ``coordinates``: those of the states that come, or None where they are x.
    """

    draws: torch.Tensor | None
    energies: torch.Tensor | None
    moments: torch.Tensor | None
    tree_depth: torch.Tensor | None = None
    leapfrogs: torch.Tensor | None = None
    observables: dict[str, torch.Tensor] = field(default_factory=dict)
    measure: Observables | None = None
    velocities: torch.Tensor | None = None
    kinetic: torch.Tensor | None = None
    coordinates: Coordinates | None = None

    __repr__ = short_repr

    @classmethod
    def empty(cls, plan: RunPlan, x: torch.Tensor, ids: torch.Tensor, store: bool) -> KeptDraws:
        """Room for what the chains ``ids`` of a plan keep, who start at x ``[B, *shape]``: draws or moments, and more.

        Raises TypeError or ValueError for observables that do not fit.
        """
        kept, chains, measure = plan.kept, len(x), plan.observables

        def room(*sizes: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
            return torch.empty(chains, kept, *sizes, dtype=dtype, device=plan.device)

        measured = {} if measure is None else measure.room(x, ids, kept)
        with room_for(
            f"steps: got {kept} draws of {chains} chains of {list(plan.shape)}, expected what fits into memory: "
            "a larger thin=, or store=False"
        ):
            made = cls(
                draws=room(*plan.shape, dtype=plan.dtype) if store else None,
                energies=room() if plan.target.has_energy and (store or measure is not None) else None,
                moments=None if store else torch.zeros(chains, 2, *plan.shape, dtype=torch.float64, device=plan.device),
                observables=measured,
                measure=measure,
                velocities=room(*plan.shape, dtype=plan.dtype) if "velocities" in plan.record else None,
                kinetic=room() if "kinetic" in plan.record else None,
            )
            if isinstance(plan.sampler, NUTS) and plan.tempering is None and made.each:
                made.tree_depth, made.leapfrogs = (torch.zeros_like(room(dtype=torch.int64)) for _ in range(2))
        return made

    @property
    def each(self) -> bool:
        """Whether something is kept of each state, more than moments."""
        return self.draws is not None or self.measure is not None

    def put_velocities(self, index: int, v: torch.Tensor, state: ChainState) -> None:
        """Keep the whitened velocities v ``[B, *shape]`` of draw ``index``: sqrt(P) v, and |v|^2 / 2."""
        if self.velocities is not None:
            moving = v if self.coordinates is None else self.coordinates.velocity(v)
            self.velocities[:, index] = moving if state.scale is None else moving * state.scale
        if self.kinetic is not None:
            self.kinetic[:, index] = 0.5 * ops.squared_norm(v.contiguous(), backend=state.backend)

    def put(self, index: int, x: torch.Tensor, energy: torch.Tensor | None) -> None:
        """Keep the states x ``[B, *shape]`` as draw ``index``."""
        x = self._placed(x)
        if self.measure is not None:
            for name, value in self.measure(x).items():
                self.observables[name][:, index] = self._fitting(name, value)
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
        values = {**values, "x": self._placed(values["x"])}
        for name, value in values.items():
            kept = self.draws if name == "x" else getattr(self, name)
            if kept is not None:
                rows.put(kept, rows.of(value), at=index)
        if self.measure is not None:  # of all rows: a batch of one size gives a network the same bits
            for name, value in self.measure(values["x"]).items():
                rows.put(self.observables[name], rows.of(self._fitting(name, value)), at=index)
        if self.moments is not None:
            wide = rows.of(values["x"].double())
            rows.put(self.moments, rows.of(self.moments) + torch.stack([wide, wide.square()], 1))

    def place(self) -> None:
        """Place draws that were written in the chains' coordinates."""
        if self.draws is not None and self.coordinates is not None:
            for part in torch.split(self.draws.flatten(0, 1), max(PLACED // self.draws[0, 0].numel(), 1)):
                part.copy_(self._placed(part))

    def _placed(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.coordinates is None else self.coordinates.place(x).to(x.dtype)

    def _fitting(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """``value``. Raises ValueError where its sizes or its dtype are not those at the first states."""
        room = self.observables[name]
        if value.shape[1:] != room.shape[2:] or value.dtype != room.dtype:
            came, right = ([*of.shape[axes:]] for of, axes in ((value, 1), (room, 2)))
            raise ValueError(
                f"observables: got {value.dtype} {came} a chain of {name}, expected {room.dtype} {right} as at the "
                "first states"
            )
        return value

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
