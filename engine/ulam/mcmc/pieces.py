"""A target that is called for a few of its rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..samplers.mcmc.chain_state import Evaluate, Evaluated


class Pieces:
    """An `Evaluate` of B rows, made of those of pieces of ``size`` rows; the last is filled up with its last row.

    Args:
        bind: gives the `Evaluate` of these rows ``[size]`` int64 of the run. rows: ``[B]`` int64, all of them.
    """

    def __init__(self, bind: Callable[[torch.Tensor], Evaluate], rows: torch.Tensor, size: int) -> None:
        self._size = size
        self._parts = [bind(filled(part, size)) for part in torch.split(rows, size)]

    def __call__(self, at: torch.Tensor, wanted: bool) -> Evaluated:
        energies, scores = [], torch.empty_like(at)
        for evaluate, part, room in zip(
            self._parts, torch.split(at, self._size), torch.split(scores, self._size), strict=True
        ):
            energy, score = evaluate(filled(part, self._size), wanted)
            room.copy_(score[: len(part)])
            if energy is not None:
                energies.append(energy[: len(part)])
        return torch.cat(energies) if energies else None, scores


def filled(part: torch.Tensor, size: int) -> torch.Tensor:
    """``size`` rows: those of ``part``, the last of them repeated."""
    short = size - len(part)
    return part if not short else torch.cat([part, part[-1:].expand(short, *part.shape[1:])])
