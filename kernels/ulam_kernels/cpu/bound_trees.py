"""Trees of the No-U-Turn sampler in native code: a leaf of all of them in one call, or whole chains of a density."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ulam_kernels import _cpu
from ulam_kernels.arguments import described
from ulam_kernels.autograd import written
from ulam_kernels.densities import Density
from ulam_kernels.native.addresses import addresses

AFTER, BEFORE = 1, 2  # the parts of a leap, what comes after an evaluation and before the next; 3: one, then the other
FLOATS = ("step", "inverse_temperature", "root_temperature")

Columns = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # step, 1 / T and sqrt(T) of every chain, float32 [B]


class BoundTrees:
    """The trees of B chains of n elements, whose tensors stay where they are; those made here begin with zeros.

    What a leap does is said, and done in torch with the same bits, by :class:`ulam.samplers.mcmc.nuts.Trees`.

    Attributes:
        here: x, v, score ``[3, B, n]`` of the end that grows; x is where the energy is to be evaluated, and its score
            belongs here before the part `AFTER`. energy_here: ``[B]`` float64, likewise.
        depth, leaps: ``[B]`` int64. accepted: ``[B]`` float64.
        live: ``[B]`` bool: chains that leap. fresh: those that begin a transition first, as all do at the start.
        moved, diverged, done: ``[B]`` bool, of the last leap.

    Args:
        x, score: ``[B, *shape]`` float32. energy: ``[B]`` float64. The state chosen so far, in place.
        seed, chain, draw: ``[B]`` int64, the address of the noise of the current transition.
        scale: ``[*shape]`` float32, or None.
        max_depth: 1 to 20.

    Raises:
        ValueError: tensors that are not contiguous, of another dtype or on another device.
    """

    def __init__(
        self,
        x: torch.Tensor,
        score: torch.Tensor,
        energy: torch.Tensor,
        seed: torch.Tensor,
        chain: torch.Tensor,
        draw: torch.Tensor,
        scale: torch.Tensor | None,
        max_depth: int,
    ) -> None:
        B, n = len(x), x[0].numel()
        _check(torch.float32, x=x, score=score, scale=scale)
        _check(torch.float64, energy=energy)
        _check(torch.int64, seed=seed, chain=chain, draw=draw)
        self.here, there = x.new_zeros(2, 3, B, n)
        chosen, momenta = x.new_zeros(3, B, n), x.new_zeros(3, B, max_depth + 1, n)  # x, score and the sum; see trees.h
        numbers, counts = torch.zeros(6, B, dtype=torch.float64), torch.zeros(4, B, dtype=torch.int64)
        flags = torch.zeros(6, B, dtype=torch.bool)
        self.done: torch.Tensor
        self.accepted: torch.Tensor
        self.energy_here, self.accepted = torch.zeros(B, dtype=torch.float64), numbers[4]
        self.depth, self.leaps = counts[:2]
        self.live, self.fresh, _, self.moved, self.diverged, self.done = flags
        self.fresh.fill_(True)
        given = x, score, energy, seed, chain, draw, scale
        made = *self.here, *there, *chosen, *momenta, *numbers[:5], *counts, *flags
        self._keep = given, made  # alive: their addresses are held
        self._written = x, score, energy, draw, self.here
        self._leap, self._run = _cpu.bound_trees(max_depth, (B, n, *addresses([*given, *made])))

    def leap(self, parts: int, columns: Columns, record: tuple[int, ...]) -> None:
        """Do these parts of a leap of the chains that are live. ``record``: what :meth:`record` gives, or ()."""
        _check(torch.float32, **dict(zip(FLOATS, columns, strict=True)))
        at = addresses([*columns, self.energy_here, self.here[2]])
        self._leap(parts, *at, record, torch.get_num_threads())
        for tensor in self._written:
            written((tensor,))

    def run(self, density: Density, columns: Columns, record: tuple[int, ...]) -> None:
        """Leap, with the density's energy and score, until no chain is live."""
        _check(torch.float32, **dict(zip(FLOATS, columns, strict=True)))
        params = density.to(torch.device("cpu"), torch.float32)
        of = density.kind, density.dimension, density.components, params.data_ptr()
        self._run(*of, *addresses(columns), record, torch.get_num_threads())
        for tensor in self._written:
            written((tensor,))

    @staticmethod
    def record(
        made: torch.Tensor,
        limit: int,
        first: int,
        thin: int,
        counted: int,
        kept: int,
        outputs: Sequence[torch.Tensor | None],
    ) -> tuple[int, ...]:
        """Where transitions that are done are counted, and their states kept; the tensors must outlive its use.

        Args:
            made: ``[B]`` int64, transitions so far; a chain rests at ``limit`` of them, those from ``first`` on count.
            thin, counted, kept: every ``thin``-th state of those that count is kept, ``kept`` in all; ``counted``: how
                many an earlier run made.
            outputs: draws ``[B, kept, n]`` float32, energies ``[B, kept]`` and moments ``[B, 2, n]`` float64, depth and
                leapfrogs ``[B, kept]`` int64, diverging ``[B, kept]`` bool, or None each; then of every chain, whether
                it diverged since the last draw, the sum of acceptances, divergences and leapfrogs so far.

        Raises:
            ValueError: an output that is not contiguous.
        """
        for tensor in outputs:
            if tensor is not None and not tensor.is_contiguous():
                raise ValueError(f"outputs: got strides {tensor.stride()}, expected a contiguous tensor")
        return (made.data_ptr(), limit, first, thin, counted, kept, *addresses(outputs))


def _check(dtype: torch.dtype, **tensors: torch.Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and (tensor.dtype != dtype or tensor.device.type != "cpu" or not tensor.is_contiguous()):
            raise ValueError(f"{name}: got {described(tensor)}, expected a contiguous tensor of {dtype} on the CPU")
