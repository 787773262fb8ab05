"""Work on some of the rows of a batch, without a wait where the rows are on a device."""

from __future__ import annotations

import torch

from ...arguments import per_chain


class Rows:
    """The rows of a batch that an operation concerns, those of a mask ``where`` ``[B]`` bool.

    On the CPU they are found and taken out. On a device, where finding them would have the host wait, the operation
    works on all rows and the others keep what they have. What is put has the same bits either way.
    """

    def __init__(self, where: torch.Tensor) -> None:
        self.where = where
        self.found = where.nonzero()[:, 0] if finds(where) else None

    def __bool__(self) -> bool:
        """Whether there may be any."""
        return self.found is None or len(self.found) > 0

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The rows of ``tensor`` ``[B, ...]`` to work on, ``[M, ...]``."""
        return tensor if self.found is None else tensor[self.found]

    def put(self, tensor: torch.Tensor, values: torch.Tensor | float, at: torch.Tensor | None = None) -> None:
        """Write ``values`` ``[M, ...]``, or one number, into these rows of ``tensor`` ``[B, ...]``.

        With ``at`` ``[B]`` int64 into element ``at[b]`` of row b of ``tensor`` ``[B, N, ...]``.
        """
        if at is not None:
            rows = torch.arange(len(tensor), device=tensor.device) if self.found is None else self.found
            at = self.of(at)
            tensor[rows, at] = values if self.found is not None else self._or_old(values, tensor[rows, at])
        elif self.found is not None:
            tensor[self.found] = values
        else:
            tensor.copy_(self._or_old(values, tensor))

    def _or_old(self, values: torch.Tensor | float, old: torch.Tensor) -> torch.Tensor:
        return torch.where(per_chain(self.where, old), values, old)


def finds(where: torch.Tensor) -> bool:
    """Whether rows are found, which on a device would have the host wait."""
    return where.device.type == "cpu"
