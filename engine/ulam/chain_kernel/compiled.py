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
from .changes import Copies, Held
from .emission import Emission, Part
from .folding import EXACT, Folded, linear_exact, packet
from .reading import Reading
from .tracing import check_weights, trace

MOST_TIMES = 1 << 14  # whose vectors are remembered


Compiled = TypeVar("Compiled", bound="CompiledChain")


class CompiledChain:
    """A denoiser's network as a list of instructions for `ulam_kernels.walk`.

    Its weights are those of its compilation: :meth:`refresh` reads them again where they have changed since, and traces
    the network again where an attribute, a hook, or what a closure holds has. Globals are not looked at.

    Attributes:
        network: the instructions, constants and weights, float32.
        names: the conditioning that the network takes.
        kept: what its callers keep for their next call, for as long as it lives.
    """

    network: Network
    emission: ClassVar[type[Emission]] = Emission

    def __init__(self, denoiser: Denoiser, shape: tuple[int, ...], cond: dict[str, torch.Tensor | Shared]) -> None:
        self._net, self._about = denoiser.net, (shape, {name: _sample(value) for name, value in cond.items()})
        self._lock = threading.Lock()
        self._rounded: tuple[Network, Network] | None = None
        self.kept: dict[str, Any] = {}
        self.names = tuple(cond)
        self._trace(denoiser)

    def _trace(self, denoiser: Denoiser) -> None:
        modules = modules_in(self._net)
        self._traced = trace(denoiser, *self._about)
        self._told = replace(denoiser, guide=None)
        self._read()
        self._held = Held(modules, self._net)  # last: what fails is tried again

    def _read(self) -> None:
        tensors = {id(tensor): tensor for tensor in self._traced.tensors.values()}.values()
        check_weights((tensor for tensor in tensors if isinstance(tensor, torch.nn.Parameter)), self._net)
        copies = Copies(tensors)
        folded = Folded(self._traced)
        emission = self.emission(Reading(self._traced, folded))
        self._found: dict[tuple[float, torch.dtype], torch.Tensor] = {}
        self._folded, self._parts, self.network = folded, emission.parts, emission.network
        self._take(emission)
        self._alone = not self._exact("chain")
        self._copies = copies  # last: what fails is tried again

    def _take(self, emission: Emission) -> None:
        """Keep what else there is of the network."""

    def _exact(self, kind: str) -> bool:
        """Whether all operations that a part is made of are rounded alike wherever an element lies."""
        waiting = [source.node for part in self._parts[kind] for source, *_ in part.elements]
        seen = set()
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            if node.op == "call_function" and packet(node) not in EXACT and "getitem" not in str(node.target):
                return False
            waiting += node.all_input_nodes
        return True

    def refresh(self, wait: bool = True) -> bool:
        """Read the weights again if any has changed, however it was written; True if so.

        wait: for a GPU that compares those it has. Without it, writes that torch does not count go unseen there: in
        place through ``.data``, by replays of CUDA graphs, by kernels of one's own.
        """
        with self._lock:
            if not self._held.holds():
                self._trace(self._told)
                return True
            if self._copies.hold(wait):
                return False
            self._read()
            return True

    def rounded(self, precision: str) -> Network:
        """The network with its matrices in this precision, see :class:`ulam_kernels.networks.Network`; made once."""
        if precision == self.network.precision:
            return self.network
        known = self._rounded
        if known is None or known[0] is not self.network or known[1].precision != precision:
            self._rounded = known = self.network, replace(self.network, precision=precision)
        return known[1]

    def row_vectors(self, times: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """``[rows, row_width]``: what depends on time alone, for each of these times ``[rows]`` by itself."""
        times = torch.as_tensor(times)
        if times.dim() != 1:
            raise ValueError(f"times: got shape {list(times.shape)}, expected [rows]")
        out = torch.zeros(len(times), self.network.row_width, dtype=dtype)
        if self.network.row_width:
            if len(self._found) > MOST_TIMES:
                self._found = {}
            keys = [(time, dtype) for time in times.tolist()]
            for row, key in enumerate(keys):
                if key not in self._found:
                    self._found[key] = self._vectors("row", times[row : row + 1], {}, 1)[0].to(dtype)
            torch.stack([self._found[key] for key in keys], out=out)
        return out

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
        if not self.network.chain_width:
            return torch.zeros(count, 0, dtype=dtype)
        if not self._alone:
            return self._vectors("chain", None, _tensors(checked), count).to(dtype)
        out = torch.empty(count, self.network.chain_width, dtype=dtype)
        for chain in range(count):
            out[chain] = self._vectors("chain", None, _tensors(checked, slice(chain, chain + 1)), 1)[0].to(dtype)
        return out

    @torch.no_grad()
    def _vectors(self, kind: str, t: torch.Tensor | None, cond: dict[str, torch.Tensor], batch: int) -> torch.Tensor:
        """The vectors of this kind, float64 ``[batch, width]``."""
        with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
            return torch.cat([self._part(part, t, cond, batch) for part in self._parts[kind]], -1)

    def _part(self, part: Part, t: torch.Tensor | None, cond: dict[str, torch.Tensor], batch: int) -> torch.Tensor:
        values = self._folded.values([source.node for source, *_ in part.elements], t, cond, batch)
        vector = torch.zeros(batch, part.columns, dtype=torch.float64)
        for (source, columns, places), value in zip(part.elements, values, strict=True):
            size = source.node.meta["val"].shape
            batched = len(size) > 0 and isinstance(size[0], torch.SymInt)
            flat = value.double().reshape((batch if batched else 1), -1)
            vector[:, columns] = (1 / flat if source.inverse else flat)[:, places].expand(batch, -1)
        return vector if part.weight is None else linear_exact(vector, part.weight, part.bias)


def compile(  # the name of torch's own
    denoiser: Denoiser, shape: Sequence[int], cond: Cond | None = None, uncond: Cond | None = None
) -> CompiledChain:
    """Read a denoiser's network into instructions that a whole chain's kernel executes.

    Linear, LayerNorm, the usual activations, sums, products and concatenations of what depends on x are instructions;
    what depends on time alone is computed once a row, what depends on the conditioning alone once a chain.

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
        except TypeError as error:
            found = str(error), Held(modules_in(net), net)
        known[key] = found
    if isinstance(found, tuple):
        raise TypeError(found[0])
    found.refresh()
    return found


_REMEMBERED: weakref.WeakKeyDictionary[Denoiser, dict[object, Any]] = weakref.WeakKeyDictionary()


def _sample(value: torch.Tensor | Shared) -> torch.Tensor | Shared:
    """What of conditioning is kept: a shared tensor, or one chain's."""
    return value if isinstance(value, Shared) else value[:1].clone()


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


def _tensors(cond: dict[str, torch.Tensor | Shared], at: slice = slice(None)) -> dict[str, torch.Tensor]:
    return {
        name: (value.tensor if isinstance(value, Shared) else value[at]).detach().cpu() for name, value in cond.items()
    }
