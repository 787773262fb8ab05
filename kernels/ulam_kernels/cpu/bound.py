"""A step that is made again and again, with little between Python and the loop over the elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ulam_kernels import _cpu
from ulam_kernels.native import step_arguments
from ulam_kernels.table import Table

STATE, COEF, MODEL, NOISE, SOURCE = 3, 5, 9, 17, 21  # where step_arguments has the addresses of what changes
FLAG_BYTES = 4


class BoundStep:
    """:func:`ulam_kernels.step` of one register in float32, of which the row and four tensors change from call to call.

    All chains are at the same row.

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
        x = torch.empty(*shape, dtype=torch.float32, device="cpu")
        row = torch.zeros(shape[0], dtype=torch.int64, device="cpu")
        if not x.numel():
            raise ValueError(f"shape: got {list(shape)}, expected at least one element")
        arguments = step_arguments(x[None], coef, table.flags, row, x, None, None, None, None, None, x, None, None, x)
        self._table, self._row, self._rows, self._row_bytes = table, row, len(coef), coef.shape[1] * coef.element_size()
        self._before, self._state_type = arguments[:STATE], arguments[STATE + 1]
        self._coef, self._flags = arguments[COEF : COEF + 2]
        self._model_noise = arguments[MODEL + 1 : NOISE]
        self._noise_source = arguments[NOISE + 1 : SOURCE]

    def __call__(
        self,
        row: int,
        out: torch.Tensor,
        source: torch.Tensor,
        model: torch.Tensor,
        noise: torch.Tensor | None,
    ) -> None:
        """Step from ``source`` to ``out``. Of these, only ``noise`` may be ``out``.

        The caller answers for the tensors: float32 ``[B, *shape]``, contiguous and on the CPU.

        Raises:
            IndexError: for a row that the table has not.
            ValueError: for a row that reads noise where there is none, has a reduction or a learned variance.
        """
        if not 0 <= row < self._rows:
            raise IndexError(f"row: got {row}, expected 0 to {self._rows - 1}")
        _cpu.step(  # type: ignore[call-arg]
            *self._before,
            out.data_ptr(),
            self._state_type,
            self._coef + row * self._row_bytes,
            self._flags + row * FLAG_BYTES,
            1,
            self._row.data_ptr(),
            model.data_ptr(),
            *self._model_noise,
            0 if noise is None else noise.data_ptr(),
            *self._noise_source,
            source.data_ptr(),
            torch.get_num_threads(),
        )
