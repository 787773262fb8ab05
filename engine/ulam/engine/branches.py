"""What happens to the outputs of a tick's branches before its fused step, beyond a weighted difference.

Further conditionings are blended in, rules guide their chains, and registers take the unguided output. A tick without
such chains comes by none of this.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

import ulam_kernels
from ulam_kernels.table import KM, KX

from ..arguments import per_chain
from .buffers import Buffers, TickTensors
from .guided_outputs import Chains, blended, prediction, rescaled, ruled
from .ladder import Rungs
from .tick_needs import TickNeeds


class Outputs(NamedTuple):
    """What the fused step guides: m_c, m_u (None without an unguided branch) and the weights."""

    m: torch.Tensor
    uncond: torch.Tensor | None
    weight: torch.Tensor


class Branches:
    """Works on the outputs of all slots; ``buffers`` have what the chains in them ask for."""

    def __init__(self, buffers: Buffers, rungs: Rungs) -> None:
        self._buffers, self._rungs = buffers, rungs

    def scheduled(self) -> torch.Tensor:
        """The guidance weights of the rows that the chains are at."""
        slots, factors = self._buffers.slots, self._buffers.rows.columns.guidance
        return slots.weight * factors.index_select(0, slots.row)

    def blended(self, m: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """m_c with the outputs of further conditionings blended in; x: the network's input."""
        buffers = self._buffers
        others = [
            (prediction(self._rungs.further(number, x, branch.inputs), buffers.shape), buffers.slots.blend[number])
            for number, branch in enumerate(buffers.branches)
            if branch.entered
        ]
        return self._with(m, blended(prediction(m, buffers.shape), others, buffers.backend))

    def guided(self, tensors: TickTensors, outputs: Outputs, needs: TickNeeds) -> Outputs:
        """The outputs after the rules: those of chains that have one are guided, and their weight is 1."""
        m, uncond, weight = outputs
        if uncond is None or not (needs.ruled or needs.rescaled):
            return outputs
        buffers, slots = self._buffers, self._buffers.slots
        row = tensors.table.coef.index_select(0, slots.row)
        chains = Chains(
            weight, slots.rule, slots.eta, slots.norm, slots.momentum, slots.rescale, row[:, KX], row[:, KM]
        )
        wide = torch.promote_types(m.dtype, torch.float32)
        own, other = (prediction(output, buffers.shape).to(wide).contiguous() for output in (m, uncond))
        done = slots.rescale > 0
        if needs.rescaled:
            own = rescaled(own, other, chains, buffers.backend)
        if needs.ruled:
            assert buffers.past is not None
            own = ruled(own, other, tensors.states[0], buffers.past, chains, buffers.backend)
            done = done | (slots.rule > 0)
        return Outputs(self._with(m, own), uncond.to(wide), torch.where(done, 1.0, weight))

    def checked(self, weight: torch.Tensor) -> torch.Tensor:
        """The weights for the check of outputs: rows that read the unguided output by itself read both."""
        both = (self._register(self._buffers.slots.row) > 0) & (self._buffers.slots.branches > 0)
        return torch.where(both, 0.5, weight)

    def load(self, states: torch.Tensor, m: torch.Tensor, uncond: torch.Tensor | None) -> None:
        """Put the unguided output, m where there is none, into the registers that the rows to come read it from."""
        slots, register = self._buffers.slots, self._register(self._buffers.slots.now_row)
        m = prediction(m, self._buffers.shape)
        if uncond is not None:
            m = torch.where(per_chain(slots.branches > 0, m), prediction(uncond, self._buffers.shape), m)
        for number in range(1, len(states)):
            states[number].copy_(torch.where(per_chain(register == number, m), m.to(states.dtype), states[number]))

    def look_up_second(self) -> None:
        """Look up the second time that the network is told."""
        buffers = self._buffers
        if buffers.second is not None:
            ulam_kernels.look_up(
                buffers.rows.columns.second, buffers.slots.row, buffers.second, backend=buffers.backend
            )

    def _register(self, row: torch.Tensor) -> torch.Tensor:
        return self._buffers.rows.columns.unguided.index_select(0, row)

    def _with(self, m: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """An output with another prediction, and the learned variances that it has."""
        if m.shape == own.shape:
            return own
        return torch.cat([own, m[:, self._buffers.shape[0] :].to(own.dtype)], 1)
