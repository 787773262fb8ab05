"""A step that is repeated many times, with little between Python and the loop over the elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ulam_kernels import _cpu
from ulam_kernels.table import Table


class BoundStep:
    """:func:`ulam_kernels.step` of one register in float32, where only the row and four tensors change between calls.

    All chains are at the same row. ``takes(tensor)`` tells whether a tensor is plain: float32 ``[B, *shape]``,
    contiguous, on the CPU and without torch's negative bit, which a step does not check again.

    Args:
        table: of one register, float32 on the CPU.
        shape: ``[B, *shape]``, with at least one element.

    Raises:
        ValueError: another table or shape.
    """

    def __init__(self, table: Table, shape: Sequence[int]) -> None:
        coef = table.coef
        if table.registers != 1 or coef.dtype != torch.float32 or coef.device.type != "cpu":
            what = f"{table.registers} registers, {coef.dtype} on {coef.device.type}"
            raise ValueError(f"table: got {what}, expected one register, torch.float32 on cpu")
        if not coef.data_ptr():
            raise ValueError("table: got one without memory, expected one that no mode of torch made")
        shape = torch.Size(shape)
        if not shape or not shape.numel():
            raise ValueError(f"shape: got {list(shape)}, expected [B, ...] with at least one element")
        self._table = table  # keeps alive the memory whose addresses the step holds
        self.takes, self._run = _cpu.bound_step(shape, coef.data_ptr(), table.flags.data_ptr(), len(coef))

    def __call__(
        self,
        row: int,
        out: torch.Tensor,
        source: torch.Tensor,
        model: torch.Tensor,
        noise: torch.Tensor | None,
    ) -> None:
        """Step from ``source`` to ``out``, plain tensors. Of these, only ``noise`` may be ``out``.

        Raises:
            IndexError: a row outside the table.
            ValueError: other tensors, or a row that reads noise where none is given, has a reduction or a learned
                variance.
        """
        self._run(row, out, source, model, noise, torch.get_num_threads())
