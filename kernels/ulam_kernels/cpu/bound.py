"""What is repeated many times, with little between Python and the loop over the elements: a step, and a tick."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ulam_kernels import _cpu
from ulam_kernels.autograd import written
from ulam_kernels.native import rows
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
        squares: torch.Tensor | None = None,
    ) -> None:
        """Step from ``source`` to ``out``, plain tensors. Of these, only ``noise`` may be ``out``.

        squares: ``[B]`` int64 in plain memory, to which the squares of the noise are added.

        Raises:
            IndexError: a row outside the table.
            ValueError: other tensors, or a row that reads noise where none is given, has a reduction or a learned
                variance.
        """
        self._run(row, out, source, model, noise, squares, torch.get_num_threads())


class BoundTick:
    """:func:`ulam_kernels.look_up`; then :func:`ulam_kernels.advance` with :func:`ulam_kernels.step`, in one call.

    For ticks on tensors that stay where they are, where nothing is new but the network's output. Both methods return
    False, with nothing done, where something records or transforms torch's operations or a tensor is not plain: those
    operations are then called, which say what is wrong. No gradients may be recorded.

    Args:
        times, out: as `look_up` has them. cursor, now: as `advance` has them, ``now`` for the rows and draws of `step`.
        state, table, guidance, seed, chain, net_in, squares: as `step` has them, with at least one element and no
            float64.
        check_finite: chains whose outputs are not finite stop, as `advance` has it.
    """

    def __init__(
        self,
        times: torch.Tensor,
        out: torch.Tensor,
        cursor: torch.Tensor,
        now: torch.Tensor,
        state: torch.Tensor,
        table: Table,
        *,
        guidance: torch.Tensor,
        seed: torch.Tensor,
        chain: torch.Tensor,
        net_in: torch.Tensor | None,
        check_finite: bool,
        squares: torch.Tensor | None = None,
    ) -> None:
        self._keep = times, table, guidance, seed, chain  # alive, like what is written: their addresses are held
        self._out = (out,)
        self._written = tuple(x for x in (cursor, now, state, net_in, squares) if x is not None)
        row, draw = now
        more = {"net_in": net_in, "squares": squares}
        step = rows.step(state, table.coef, table.flags, row, None, None, guidance, seed, chain, draw, None, **more)
        whole, shape = times.dtype == torch.int64, list(state.shape[1:])
        own = times.data_ptr(), whole, out.data_ptr(), cursor.data_ptr(), check_finite, shape
        self._look_up, self._step = _cpu.bound_tick(*step, own)

    def look_up(self) -> bool:
        """Look up the times that the network is told. Raises IndexError for a row outside the table."""
        done = self._look_up(self._out[0], torch.get_num_threads())
        if done:
            written(self._out)
        return done

    def step(self, model: torch.Tensor, uncond: torch.Tensor | None) -> bool:
        """Let the chains go on, unless an output is not finite, and execute their rows.

        Raises IndexError for a row outside the table, ValueError for one that reads what is not there.
        """
        done = self._step(model, uncond, torch.get_num_threads())
        if done:
            written(self._written)
        return done
