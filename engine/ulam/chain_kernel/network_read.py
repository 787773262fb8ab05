"""A network as it was read: its instructions, what they read of rows and chains, and whether they are the network's."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ulam_kernels import evaluate_network

from ..conditioning import Shared
from ..denoiser import Denoiser
from .changes import Bytes, Held
from .emission import Emission, Part
from .folding import EXACT, Folded, linear_exact, packet
from .tracing import Seen, Traced

MOST_TIMES = 1 << 14  # whose vectors are remembered
AGREE = 1e-2  # of the largest output: what roundings cannot do, and operations over chains do
Given = dict[str, torch.Tensor | Shared]


class NetworkRead:
    """A reading, which never changes: another follows where the network has."""

    def __init__(
        self, traced: Traced, told: Denoiser, held: Held, weights: Bytes, folded: Folded, emission: Emission
    ) -> None:
        self.traced, self.told, self.held, self.weights, self._folded = traced, told, held, weights, folded
        self.network, self.score, self._parts = emission.network, emission.score, emission.parts
        self._found: dict[tuple[float, torch.dtype], torch.Tensor] = {}
        self._alone = not self._exact("chain")

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

    def of_rows(self, times: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """``[rows, row_width]`` of these times ``[rows]``, each by itself."""
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

    def of_chains(self, cond: Given, count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """``[chains, chain_width]`` of this conditioning, each chain's by itself."""
        if not self.network.chain_width:
            return torch.zeros(count, 0, dtype=dtype)
        if not self._alone:
            return self._vectors("chain", None, _tensors(cond), count).to(dtype)
        out = torch.empty(count, self.network.chain_width, dtype=dtype)
        for chain in range(count):
            out[chain] = self._vectors("chain", None, _tensors(cond, slice(chain, chain + 1)), 1)[0].to(dtype)
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


def agree(read: NetworkRead, seen: Iterable[Seen]) -> None:
    """Raises TypeError where the instructions do not give what the network gave: it mixes chains, or counts them."""
    expected = "expected each chain by itself, whatever the number of chains"
    for one in seen:
        count = len(one.x)
        chains = read.of_chains(one.cond, count)
        each = [read.of_chains(_chain(one.cond, chain), 1) for chain in range(count)]
        if not torch.equal(chains.nan_to_num(), torch.cat(each).nan_to_num()):
            raise TypeError(f"net: got an operation over chains in what depends on {', '.join(one.cond)}, {expected}")
        vectors = torch.cat([chains, read.of_rows(one.t)], 1)
        energy, m = evaluate_network(read.network.told_by_chain, one.x, chain_vectors=vectors)
        got, right = (m if energy is None else energy).flatten().double(), one.output.flatten().double()
        known = torch.isfinite(got) & torch.isfinite(right)
        difference = (got - right)[known].abs().max() if known.any() else torch.zeros(())
        if difference > AGREE * right[known].abs().max() + 1e-6 if known.any() else False:
            raise TypeError(
                f"net: got outputs that are {difference:.2g} off those of its operations chain by chain: one mixes "
                f"{count} chains, or reads their number, {expected}"
            )


def _chain(cond: Given, chain: int) -> Given:
    return {name: v if isinstance(v, Shared) else v[chain : chain + 1] for name, v in cond.items()}


def _tensors(cond: Given, at: slice = slice(None)) -> dict[str, torch.Tensor]:
    return {
        name: (value.tensor if isinstance(value, Shared) else value[at]).detach().cpu() for name, value in cond.items()
    }
