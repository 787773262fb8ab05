"""`ulam.chain_kernel.compile`: a denoiser's network as instructions, with functions for what is folded out of it."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import torch

from ulam_kernels.arguments import whole
from ulam_kernels.networks import MAX_INPUTS, MAX_WIDTH, Network

from ..conditioning import Cond, Shared, check_cond
from ..denoiser import Denoiser, check_denoiser
from ..evaluation import modules_in
from .changes import Bytes, Held
from .emission import Emission
from .folding import Folded
from .network_read import NetworkRead, agree
from .reading import Reading
from .tracing import FOR_ANY, FOR_SOME, OfValues, Traced, check_weights, trace

EXAMPLES = 4  # chains' conditioning that is kept to try the network with

Compiled = TypeVar("Compiled", bound="CompiledChain")


class CompiledChain:
    """A denoiser's network as a list of instructions for `ulam_kernels.walk`.

    Its weights are those of its compilation: :meth:`refresh` reads them again where they have changed since, and traces
    the network again where an attribute, a hook, or what a closure holds has. Globals are not looked at.

    Attributes:
        network: the instructions, constants and weights, float32. shape: of one sample.
        names: the conditioning that the network takes.
        kept: what its callers keep for their next call, for as long as it lives.
    """

    emission: ClassVar[type[Emission]] = Emission

    def __init__(self, denoiser: Denoiser, shape: tuple[int, ...], cond: dict[str, torch.Tensor | Shared]) -> None:
        self.shape = shape
        self._net, self._about = denoiser.net, (shape, {name: _sample(value) for name, value in cond.items()})
        self._lock = threading.RLock()
        self._rounded: tuple[Network, Network] | None = None
        self.kept: dict[str, Any] = {}
        self.names = tuple(cond)
        self._trace(denoiser)

    def _trace(self, denoiser: Denoiser) -> None:
        modules = modules_in(self._net)
        traced = trace(denoiser, *self._about)
        made = self._made(traced, replace(denoiser, guide=None), Held(modules, self._net, traced.tensors.values()))
        if traced.some:  # and no operation was refused with its line
            raise TypeError(f"net: got {FOR_SOME}, {FOR_ANY}")
        agree(made, traced.seen)
        self._now = made  # all at once, and last: what fails, or is interrupted, is tried again

    def _made(self, traced: Traced, told: Denoiser, held: Held) -> NetworkRead:
        tensors = {id(tensor): tensor for tensor in traced.tensors.values()}.values()
        check_weights((tensor for tensor in tensors if isinstance(tensor, torch.nn.Parameter)), self._net)
        weights, folded = Bytes(tensors), Folded(traced)
        return NetworkRead(traced, told, held, weights, folded, self.emission(Reading(traced, folded)))

    @property
    def network(self) -> Network:
        return self._now.network

    def refresh(self, wait: bool = True) -> bool:
        """Read the weights again if any has changed, however it was written; True if so.

        wait: for a GPU that compares those it has. Without it, writes that torch does not count go unseen there: in
        place through ``.data``, by replays of CUDA graphs, by kernels of one's own.
        """
        with self._lock:
            now = self._now
            if not now.held.holds():
                self._trace(now.told)
                return True
            if now.weights.hold(wait):
                return False
            self._now = self._made(now.traced, now.told, now.held)
            return True

    def rounded(self, precision: str) -> Network:
        """The network with its matrices in this precision, see :class:`ulam_kernels.networks.Network`; made once."""
        if precision == (network := self._now.network).precision:
            return network
        known = self._rounded
        if known is None or known[0] is not network or known[1].precision != precision:
            self._rounded = known = network, replace(network, precision=precision)
        return known[1]

    def row_vectors(self, times: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """``[rows, row_width]``: what depends on time alone, for each of these times ``[rows]`` by itself."""
        times = torch.as_tensor(times)
        if times.dim() != 1:
            raise ValueError(f"times: got shape {list(times.shape)}, expected [rows]")
        return self._now.of_rows(times, dtype)

    def chain_vectors(
        self, cond: Cond | None = None, chains: int | None = None, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """``[chains, chain_width]``: what depends on the conditioning alone, for each chain by itself.

        Args:
            cond: as the network takes it, tensors ``[chains, ...]`` or shared. chains: their number, by default that
                of the first tensor with a chain dimension.
        """
        given = dict(cond or {})
        if sorted(given) != sorted(self.names):
            raise ValueError(
                f"cond: got {sorted(given)}, expected {sorted(self.names)} as the network was compiled with"
            )
        sizes = [len(value) for value in given.values() if not isinstance(value, Shared)]
        count = sizes[0] if chains is None and sizes else whole(1 if chains is None else chains, "chains", 0, 1 << 40)
        checked = check_cond("cond", given, count)
        for name, value in checked.items():
            own, known = (_dimensions(one) for one in (value, self._about[1][name]))
            if own != known:
                raise ValueError(f"cond[{name!r}]: got {own}, expected {known} as the network was compiled with")
        return self._now.of_chains(checked, count, dtype)


def compile(  # the name of torch's own
    denoiser: Denoiser, shape: Sequence[int], cond: Cond | None = None, uncond: Cond | None = None
) -> CompiledChain:
    """Read a denoiser's network into instructions that a whole chain's kernel executes.

    Linear, LayerNorm, RMSNorm, GroupNorm, BatchNorm by running averages, the usual activations, sums, products and
    concatenations of what depends on x are instructions; what depends on time alone is computed once a row, what
    depends on the conditioning alone once a chain.

    Args:
        denoiser: float32 weights on the CPU or a CUDA device. shape: of one sample, at most 256 elements.
        cond, uncond: conditioning as `ulam.sample` takes it, of which only names, shapes and dtypes count: the two must
            have the same.

    Raises:
        TypeError: `net: got NODE at FILE:LINE (what it is), expected ...` for a network that does not fit.
        ValueError: an invalid argument.
    """
    check_denoiser(denoiser, cond)
    dims = tuple(whole(size, "shape", 1, MAX_WIDTH) for size in shape)
    given = examples("cond", cond)
    if uncond is not None:
        other = examples("uncond", uncond)
        if {k: kind_of(v) for k, v in other.items()} != {k: kind_of(v) for k, v in given.items()}:
            raise ValueError(f"uncond: got {sorted(other)}, expected the names, shapes and dtypes of cond")
    if denoiser.second_time is not None:
        raise TypeError(f"net: got one with a second time, {denoiser.second_time!r}, expected one told t alone")
    if denoiser.guide is not None:
        raise TypeError("net: got one with another network as its guide, expected the conditioning of one network")
    if math.prod(dims) > MAX_INPUTS:  # before the seconds that tracing takes
        raise TypeError(f"net: got x of {math.prod(dims)} elements, expected at most {MAX_INPUTS}")
    return CompiledChain(denoiser, dims, given)


def compiled_once(denoiser: Denoiser, shape: tuple[int, ...], cond: dict[str, torch.Tensor | Shared]) -> CompiledChain:
    """:func:`compile`, remembered with the denoiser, a refusal too; the weights are those of now."""
    key = shape, tuple((name, kind_of(value)) for name, value in cond.items())
    known = _REMEMBERED.setdefault(denoiser, {})
    return remembered(known, key, denoiser.net, lambda: compile(denoiser, shape, cond))


def remembered(known: dict[object, Any], key: object, net: object, make: Callable[[], Compiled]) -> Compiled:
    """What was made of a network before, brought up to date; a refusal holds as long as the network does.

    Raises the TypeError of ``make``.
    """
    found: Compiled | tuple[str, Held] | None = known.get(key)
    if found is None or (isinstance(found, tuple) and not found[1].holds()):
        try:
            found = make()
        except OfValues:
            raise
        except TypeError as error:
            found = str(error), Held(modules_in(net), net)
        known[key] = found
    if isinstance(found, tuple):
        raise TypeError(found[0])
    found.refresh()
    return found


_REMEMBERED: weakref.WeakKeyDictionary[Denoiser, dict[object, Any]] = weakref.WeakKeyDictionary()


def _sample(value: torch.Tensor | Shared) -> torch.Tensor | Shared:
    """What of conditioning is kept: a shared tensor, or a few chains'."""
    return value if isinstance(value, Shared) else value[:EXAMPLES].clone()


def examples(name: str, cond: Cond | None) -> dict[str, torch.Tensor | Shared]:
    """Conditioning whose names, shapes and dtypes count."""
    if cond is None:
        return {}
    sizes = [len(value) for value in cond.values() if not isinstance(value, Shared)]
    return check_cond(name, cond, sizes[0] if sizes else 1)


def kind_of(value: torch.Tensor | Shared) -> tuple[object, ...]:
    """What of conditioning a compiled network depends on."""
    if isinstance(value, Shared):
        return "shared", value.tensor.dtype, tuple(value.tensor.shape)
    return "chains", value.dtype, tuple(value.shape[1:])


def _dimensions(value: torch.Tensor | Shared) -> str:
    """What of conditioning must be as it was, in words."""
    tensor = value.tensor if isinstance(value, Shared) else value
    kind = "floats" if tensor.is_floating_point() else "whole numbers" if tensor.dtype != torch.bool else "bools"
    sizes = ", ".join(map(str, tensor.shape if isinstance(value, Shared) else ("chains", *tensor.shape[1:])))
    return f"{'shared ' if isinstance(value, Shared) else ''}{kind} [{sizes}]"
