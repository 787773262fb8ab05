"""A step that is made again and again, with little between Python and the loop over the elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ulam_kernels import _cpu, ops
from ulam_kernels.native import step_arguments
from ulam_kernels.table import Table

STATE, MODEL, NOISE, SOURCE = 3, 9, 17, 21  # where step_arguments has the addresses of what changes


class BoundStep:
    """:func:`ulam_kernels.step` of one register in float32, of which four tensors change from call to call.

    What stays, the table and the rows that it is bound to, is checked once.

    Args:
        table: of one register, without reductions or learned variances.
        row: ``[B]`` int64.
        shape: ``[B, *shape]`` of all four tensors, with at least one element.

    Raises:
        TypeError, ValueError, IndexError: as :func:`ulam_kernels.step`.
    """

    def __init__(self, table: Table, row: torch.Tensor, shape: Sequence[int]) -> None:
        x, m, z = (torch.zeros(*shape) for _ in range(3))
        ops.step(torch.zeros(1, *shape), table, row, model=m, noise=z, source=x, backend="cpu")
        arguments = step_arguments(
            x[None], table.coef, table.flags, row, m, None, None, None, None, None, z, None, None, x
        )
        self._kept = table, row
        self._first, self._second = arguments[:STATE], arguments[STATE + 1 : MODEL]
        self._third, self._fourth = arguments[MODEL + 1 : NOISE], arguments[NOISE + 1 : SOURCE]

    def __call__(
        self, out: torch.Tensor, source: torch.Tensor, model: torch.Tensor, noise: torch.Tensor | None
    ) -> None:
        """Step from ``source`` to ``out``. The caller answers for all: float32 ``[B, *shape]``, contiguous, on the CPU.

        Of these, only ``noise`` may be ``out``. Raises ValueError for a row that reads noise where there is none.
        """
        _cpu.step(  # type: ignore[call-arg]
            *self._first,
            out.data_ptr(),
            *self._second,
            model.data_ptr(),
            *self._third,
            0 if noise is None else noise.data_ptr(),
            *self._fourth,
            source.data_ptr(),
            torch.get_num_threads(),
        )
