"""A step that is made again and again, with little between Python and the loop over the elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ulam_kernels import _cpu
from ulam_kernels.native import step_arguments
from ulam_kernels.table import Table

STATE, ROW, MODEL, NOISE, SOURCE = 3, 8, 9, 17, 21  # where step_arguments has the addresses of what changes


class BoundStep:
    """:func:`ulam_kernels.step` of one register in float32, of which five tensors change from call to call.

    Args:
        table: of one register, float32 on the CPU.
        shape: ``[B, *shape]`` of the state and all that has its shape, with at least one element.

    Raises:
        ValueError: for another table or shape.
    """

    def __init__(self, table: Table, shape: Sequence[int]) -> None:
        coef = table.coef
        if table.registers != 1 or coef.dtype != torch.float32 or coef.device.type != "cpu":
            what = f"{table.registers} registers, {coef.dtype} on {coef.device.type}"
            raise ValueError(f"table: got {what}, expected one register, torch.float32 on cpu")
        x, row = torch.empty(*shape), torch.empty(shape[0], dtype=torch.int64)
        if not x.numel():
            raise ValueError(f"shape: got {list(shape)}, expected at least one element")
        arguments = step_arguments(x[None], coef, table.flags, row, x, None, None, None, None, None, x, None, None, x)
        self.table, self.shape = table, torch.Size(shape)
        self._before = arguments[:STATE]
        self._state_row = arguments[STATE + 1 : ROW]
        self._model_noise = arguments[MODEL + 1 : NOISE]
        self._noise_source = arguments[NOISE + 1 : SOURCE]

    def __call__(
        self,
        row: torch.Tensor,
        out: torch.Tensor,
        source: torch.Tensor,
        model: torch.Tensor,
        noise: torch.Tensor | None,
    ) -> None:
        """Step from ``source`` to ``out``. Of these, only ``noise`` may be ``out``.

        The caller answers for dtypes and shapes: ``row`` int64 ``[B]``, the others float32 ``[B, *shape]``, all
        contiguous and on the CPU.

        Raises:
            IndexError: for a row that the table has not.
            ValueError: for a row that reads noise where there is none, has a reduction or a learned variance.
        """
        _cpu.step(  # type: ignore[call-arg]
            *self._before,
            out.data_ptr(),
            *self._state_row,
            row.data_ptr(),
            model.data_ptr(),
            *self._model_noise,
            0 if noise is None else noise.data_ptr(),
            *self._noise_source,
            source.data_ptr(),
            torch.get_num_threads(),
        )
