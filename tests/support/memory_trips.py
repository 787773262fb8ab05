"""How often a thread waits for memory: a kernel's PTX executed with the depth of every value."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ptx_interpreter import Machine
from ptx_memory import Array
from ptx_parser import Instruction

REGISTER = re.compile(r"%[\w]+(?:\.[xyz])?")


class Trips(Machine):
    """Counts trips to global memory that cannot overlap, with instructions issued in order.

    A load's value is there one trip after the load was issued. What uses it waits, branches included, and so does all
    that follows. Moves between registers do not wait: machine code needs none.
    """

    latest = 0  # trips of the last launch

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.arrives: dict[str, Array] = {}
        self.clock = np.zeros(self.threads, np.int64)

    def run(self, *alone: Any) -> Machine:
        done = super().run(*alone)
        Trips.latest = int(self.clock.max())
        return done

    def _arrival(self, operands: str) -> Any:
        """When the last of these registers is there, for every active thread."""
        there = [self.arrives[r][self.lanes] for r in REGISTER.findall(operands) if r in self.arrives]
        return np.maximum.reduce(there) if there else 0

    def _wait_for(self, operands: str) -> None:
        self.clock[self.lanes] = np.maximum(self.clock[self.lanes], self._arrival(operands))

    def _guard(self, instruction: Instruction) -> Array | None:
        if instruction.guard is not None:
            self._wait_for(instruction.guard)
        return super()._guard(instruction)

    def _execute(self, instruction: Instruction) -> None:
        active = self._guard(instruction)
        everyone = self.lanes
        if active is not None:
            self.lanes = (np.arange(self.threads) if isinstance(everyone, slice) else everyone)[active]
        stores, moves = instruction.name in ("st", "red", "stmatrix"), instruction.name == "mov"
        sources = " ".join(instruction.operands[0 if stores else 1 :])
        if not moves:
            self._wait_for(sources)
        loads = instruction.name == "ld" and "global" in instruction.modifiers
        for register in [] if stores or not instruction.operands else REGISTER.findall(instruction.operands[0]):
            arrives = self.arrives.setdefault(register, np.zeros(self.threads, np.int64))
            arrives[self.lanes] = self.clock[self.lanes] + 1 if loads else self._arrival(sources) if moves else 0
        self.lanes = everyone
        super()._execute(instruction)
