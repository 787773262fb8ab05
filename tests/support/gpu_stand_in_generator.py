"""A device's default generator, after CUDAGeneratorImpl.cpp of torch 2.11.

torch 2.13 keeps a state for each capture in its place: a failed capture leaves no trace in the generator there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(eq=False)
class GeneratorState:
    """Seed and offset; ``capturing`` from a capture's begin to its good end, and for good after a failed one."""

    seed: int = 0
    offset: int = 0
    capturing: bool = False
    inside: int = 0  # offset since the capture began


class Generator:
    """The default generator of a device. ``set_state`` sets seed and offset and leaves ``capturing`` as it is;
    ``graphsafe_set_state`` puts another state in its place: one got before by ``clone_state`` repairs a failed capture.
    """

    def __init__(self, gpu, index, state=None):
        self._gpu, self._index, self._state = gpu, index, state or GeneratorState()
        self.device = torch.device("cuda", index)

    def _outside(self, what):
        if self._gpu.queue().capture is not None:
            raise RuntimeError(f"Cannot call CUDAGeneratorImpl::{what} during CUDA graph capture.")

    def next(self):
        """Seed and offset of the next launch that draws numbers; the offset counts from the capture's begin in one."""
        state = self._state
        if self._gpu.queue(self._index).capture is not None:
            if not state.capturing:
                raise RuntimeError("Attempt to increase offset for a CUDA generator not in capture mode.")
            state.inside += 4
            return state.seed, state.inside - 4
        self.increase(state, 4)
        return state.seed, state.offset - 4

    @staticmethod
    def increase(state, increment):
        if state.capturing:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        state.offset += increment

    def get_state(self):
        self._outside("current_seed")
        return torch.tensor([self._state.seed, self._state.offset]).view(torch.uint8)

    def set_state(self, new):
        self._outside("set_state")
        self._state.seed, self._state.offset = new.view(torch.int64).tolist()

    def manual_seed(self, seed):
        self._outside("set_current_seed")
        self._state.seed, self._state.offset = seed, 0
        return self

    def initial_seed(self):
        self._outside("current_seed")
        return self._state.seed

    def get_offset(self):
        self._outside("get_offset")
        return self._state.offset

    def set_offset(self, offset):
        self._outside("set_offset")
        self._state.offset = offset

    def clone_state(self):
        self._outside("clone_impl")
        return Generator(self._gpu, self._index, GeneratorState(self._state.seed, self._state.offset))

    def graphsafe_get_state(self):
        return Generator(self._gpu, self._index, self._state)

    def graphsafe_set_state(self, other):
        self._state = other._state
