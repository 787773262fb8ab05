"""The tail of a run: while few slots hold chains, the network sees a smaller batch, of these slots only."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

import ulam_kernels
from ulam_kernels.arguments import described, real

from ..arguments import whole_number
from ..evaluation import autocast_state
from .buffers import Buffers
from .groups import Group
from .job import Job
from .network import Network
from .report import Report
from .slots import places
from .transfers import on_device

Inputs: TypeAlias = dict[str, torch.Tensor]
Ints: TypeAlias = "npt.NDArray[np.int64]"
DIVISORS = (2, 4, 8)
CALL = 1  # evaluation of all slots, at most, that each call of the check costs
TAIL = 32  # elements at the end of a tensor that the CPU may compute by other code


@dataclass(frozen=True)
class Ladder:
    """Batches below an engine's ``slots`` that its network may see while no more slots than that hold chains.

    Each is checked once, when it would first save more evaluations than the check takes: the network sees one
    perturbed batch of the running chains whole and in parts. A batch whose outputs differ is not used, and
    ``Report.ladder`` says so: by default a single bit is enough. The check is made at one time of the chains, and the
    network must be a function of its arguments: one that keeps something from call to call, or takes other paths at
    other times, should have no ladder. A compiled network is compiled once for each batch.

    On the CPU, where PyTorch computes the last elements of a tensor (its size modulo 32) by other code, only multiples
    of 32 have the same bits for every network; others need a tolerance.

    rungs: the sizes; those below ``slots`` count. By default a half, a quarter and an eighth of the slots.
    tolerance: the largest difference between outputs that is accepted, relative to the largest output. Above 0, a
    chain's last bits may depend on its batch-mates.
    Raises TypeError or ValueError for an invalid argument.
    """

    rungs: tuple[int, ...] | None = None
    tolerance: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if self.rungs is not None:
            if not isinstance(self.rungs, list | tuple) or not self.rungs:
                raise TypeError(f"rungs: got {described(self.rungs)}, expected sizes such as (128, 64), or None")
            sizes = tuple(whole_number("rungs", size) for size in self.rungs)
            if min(sizes) < 1:
                raise ValueError(f"rungs: got {min(sizes)}, expected sizes of at least 1")
            object.__setattr__(self, "rungs", sizes)
        tolerance = real(self.tolerance, "tolerance", "a number from 0 to below 1")
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance: got {self.tolerance}, expected a number from 0 to below 1")
        object.__setattr__(self, "tolerance", tolerance)

    def below(self, slots: int) -> list[int]:
        """The sizes below a number of slots, ascending."""
        sizes = [slots // divisor for divisor in DIVISORS] if self.rungs is None else self.rungs
        return sorted({size for size in sizes if 1 <= size < slots})


class Rungs:
    """Evaluates the network over all slots, or over a smaller batch of those that hold chains; ``size`` says which."""

    def __init__(self, ladder: Ladder | None, network: Network, buffers: Buffers, report: Report) -> None:
        self._network, self._buffers, self._report = network, buffers, report
        self._slots = self.size = buffers.size
        self._tolerance = 0.0 if ladder is None else ladder.tolerance
        sizes = [] if ladder is None else ladder.below(self._slots)
        self.places = {size: torch.zeros(size, dtype=torch.int64, device=buffers.device) for size in sizes}
        self._outputs: dict[Hashable, torch.Tensor] = {}
        self._verdicts: dict[Hashable, bool] = {}

    def fit(self, groups: list[Group[Job]], x: torch.Tensor, uncond: Inputs | None, tick: int) -> None:
        """Choose the batch for these groups from this tick on. x, uncond: as for a call."""
        if not groups:
            return
        left = max(group.end for group in groups) - tick
        held = places([group.slots for group in groups])[0]
        sizes = (size for size in self.places if size >= len(held))
        self.size = next((size for size in sizes if self._is_usable(size, held, x, uncond, left)), self._slots)
        if self.size < self._slots:
            idle = np.setdiff1d(np.arange(self._slots), held)[: self.size - len(held)]
            self.places[self.size].copy_(self._on_device(np.sort(np.concatenate([held, idle]))))

    def __call__(self, x: torch.Tensor, uncond: Inputs | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The outputs ``[slots, ...]`` of the conditional and, unless ``uncond`` is None, the unconditional branch.

        Those of slots outside the batch are old ones. Guidance is two calls, unless the options say ``doubled``: the
        network sees the same batch, and a chain gets the same bits, whether or not there are guided chains in it.
        """
        if self.size == self._slots:
            return self._network(x, self._buffers.t, self._buffers.cond.inputs, uncond, self._buffers.cond.shared)
        at = self.places[self.size]
        m, other = self._at(at, _rows(x, at), uncond)
        return self._placed("cond", m, at), None if other is None else self._placed("uncond", other, at)

    def further(self, number: int, x: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """The outputs of further conditionings, of which this is the one of that number."""
        shared = self._buffers.cond.shared
        if self.size == self._slots:
            return self._network(x, self._buffers.t, inputs, None, shared)[0]
        at = self.places[self.size]
        selected = {name: value if name in shared else _rows(value, at) for name, value in inputs.items()}
        m = self._network(_rows(x, at), _rows(self._buffers.t, at), selected, None, shared)[0]
        return self._placed(f"blend {number}", m, at)

    def _at(
        self, slots: torch.Tensor, x: torch.Tensor, uncond: Inputs | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The network's outputs for x ``[n, ...]`` with the times and conditioning of n slots."""
        shared = self._buffers.cond.shared

        def selected(inputs: Inputs) -> Inputs:
            return {name: value if name in shared else _rows(value, slots) for name, value in inputs.items()}

        t, others = _rows(self._buffers.t, slots), None if uncond is None else selected(uncond)
        return self._network(x, t, selected(self._buffers.cond.inputs), others, shared)

    def _placed(self, branch: str, part: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Outputs at the places of their slots, in a buffer that stays where it is."""
        key = branch, part.dtype, part.shape[1:]
        if key not in self._outputs:
            self._outputs[key] = part.new_zeros(self._slots, *part.shape[1:])
        return self._outputs[key].index_copy_(0, at, part)

    def _on_device(self, slots: Ints) -> torch.Tensor:
        return on_device(torch.from_numpy(slots), self._buffers.device)

    # ------------------------------------------------------------------------------------------------- the check

    def _is_usable(self, size: int, held: Ints, x: torch.Tensor, uncond: Inputs | None, left: int) -> bool:
        """Whether the network may see such a batch; False as long as finding out would cost more than it saves."""
        key = size, uncond is not None, self._network.batch, autocast_state(self._buffers.device)
        if key not in self._verdicts:
            if left * (1 - size / self._slots) <= CALL * (1 + math.ceil(self._slots / size)):
                return False
            self._verdicts[key], said = self._judged(size, held, x, uncond)
            told = f"{size} of {self._slots} slots{'' if uncond is None else ', guided'}"
            self._report.add_rung(f"{told}: {'' if self._verdicts[key] else 'not used: '}{said}")
        return self._verdicts[key]

    def _judged(self, size: int, held: Ints, x: torch.Tensor, uncond: Inputs | None) -> tuple[bool, str]:
        """Whether the outputs of a smaller batch may be used, and what was found."""
        odd = next((number for number in (size, self._slots) if number % TAIL), None)
        if self._buffers.device.type == "cpu" and odd is not None and not self._tolerance:
            return (
                False,
                f"on the CPU last bits depend on the place in a batch of {odd} (a multiple of 32, or a tolerance)",
            )
        try:
            with self._leaving_no_trace():
                found = self._difference(size, held, x, uncond)
        except Exception as error:  # of the network, which the whole batch will meet again if it is to blame
            cause = error.__cause__ or error
            return False, f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"
        said = f"outputs differ by {found:.1e} of the largest" if found else "the same bits"
        return found <= self._tolerance, said

    @contextmanager
    def _leaving_no_trace(self) -> Iterator[None]:
        """Neither random numbers that the network draws nor memory that it lacks change what comes after."""
        device = self._buffers.device
        self._network.halves = False
        try:
            with torch.random.fork_rng([] if device.type == "cpu" else [device]):
                yield
        finally:
            self._network.halves = True

    def _difference(self, size: int, held: Ints, x: torch.Tensor, uncond: Inputs | None) -> float:
        """The largest difference of outputs in batches of this size from those of all slots, relative to the largest.

        Of all slots' worth of the running chains, whose states differ by a little noise.
        """
        buffers = self._buffers
        ulam_kernels.look_up(buffers.rows.columns.times, buffers.slots.row, buffers.t, backend=buffers.backend)
        slots = self._on_device(np.resize(held, self._slots))
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(x.dtype)
        x = _rows(x, slots)
        x.mul_(1 + on_device(noise, x.device) / 8)
        largest = worst = 0.0
        # Where both branches are one call, ticks at which no guidance applies are another.
        for branches in (None, uncond) if uncond is not None and self._network.doubled else (uncond,):
            wholes = self._at(slots, x, branches)
            largest = max(largest, float(wholes[0].nan_to_num(0, 0, 0).abs().max()))
            for begin in range(0, self._slots, size):
                at = slice(min(begin, self._slots - size), min(begin + size, self._slots))
                for whole, part in zip(wholes, self._at(slots[at], x[at], branches), strict=True):
                    if whole is not None and part is not None:
                        worst = max(worst, _gap(whole[at].double(), part.double()))
        if not largest:
            raise ValueError("all outputs are 0 or not finite")
        return worst / largest


def _rows(values: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Some rows, as a tensor like that of all: torch.compile and the check for changes in place tell them apart."""
    with torch.inference_mode(False), torch.no_grad():
        return values.index_select(0, at)


def _gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference; infinite where one is NaN and the other is not."""
    same = (a == b) | (a.isnan() & b.isnan())
    return float((a - b).abs().nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(same, 0).max())
