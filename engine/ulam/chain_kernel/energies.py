"""An energy E(x) of small layers, and its score by the layers' own reverse pass, for one native call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from ulam_kernels.arguments import described, whole
from ulam_kernels.networks import MAX_WIDTH, Network

from ..conditioning import Cond, Shared
from ..denoiser import Denoiser
from ..schedules import ve
from .compiled import CompiledChain, examples
from .emission import Emission, EnergyEmission


class CompiledEnergy(CompiledChain):
    """An energy as a list of instructions for `ulam_kernels.evaluate_network`: see :func:`compile_energy`.

    Attributes:
        network: the score -grad E as its output, the energy beside it.
        score: the score alone.
        names: the further arguments of the energy.
    """

    emission: ClassVar[type[Emission]] = EnergyEmission

    @property
    def score(self) -> Network:
        assert self._now.score is not None
        return self._now.score


def compile_energy(fn: Callable[..., Any], shape: Sequence[int], cond: Cond | None = None) -> CompiledEnergy:
    """Read an energy ``fn(x, **cond)`` of x ``[chains, *shape]``, one number a chain ``[chains]``, into instructions.

    Layers as in :func:`ulam.chain_kernel.compile`, sums and means over what is a chain's, and whole powers up to 4. The
    score is the reverse pass of the same layers (`ulam.chain_kernel.gradients`), equal to autograd's but for rounding.

    Args:
        fn: float32 weights on the CPU. shape: of one state, at most 256 elements.
        cond: further arguments, of which only names, shapes and dtypes count.

    Raises:
        TypeError: `net: got NODE at FILE:LINE (what it is), expected ...` for an energy that does not fit.
        ValueError: an invalid argument.
    """
    if not callable(fn) or isinstance(fn, type):
        raise TypeError(f"fn: got {described(fn)}, expected a function of x [chains, *shape]")
    dims = tuple(whole(size, "shape", 1, MAX_WIDTH) for size in shape)

    def told(x: torch.Tensor, t: torch.Tensor, **given: Any) -> Any:
        return fn(x, **given)

    return CompiledEnergy(Denoiser(told, ve(0.01, 1.0), predicts="score"), dims, examples("cond", cond))


def vectors_of(
    compiled: CompiledEnergy, cond: Mapping[str, torch.Tensor | Shared], chains: int, dtype: torch.dtype
) -> torch.Tensor | None:
    """What the network reads of these chains, or None where that is nothing."""
    return compiled.chain_vectors(cond, chains, dtype) if compiled.network.chain_width else None
