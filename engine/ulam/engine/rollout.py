"""What a job asks to be recorded of its chains."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ulam_kernels.arguments import described, switch

from ..arguments import whole_number
from ..gradients import check_no_gradient
from ..programs.program import Program


@dataclass(frozen=True)
class Rollout:
    """What is recorded of each chain, for `Engine.submit(rollout=)` and :func:`ulam.rollouts.sample`.

    states: before and after each row. log_prob: of each row's noise, from the fused step itself. outputs: the network's
    output that each row used, after guidance. rows: a slice of the program's rows, all by default. host: keep the
    record in (pinned) host memory; by default it is on the engine's device.

    Recording changes no bit of a chain. It keeps ``chains x (rows + 1)`` states, times the registers of the sampler.

    Raises TypeError or ValueError for an invalid argument.
    """

    states: bool = True
    log_prob: bool = True
    outputs: bool = False
    rows: slice | None = None
    host: bool = False

    def __post_init__(self) -> None:
        for name in ("states", "log_prob", "outputs", "host"):
            switch(getattr(self, name), name)
        if self.rows is None:
            return
        if not isinstance(self.rows, slice) or self.rows.step not in (None, 1):
            raise TypeError(f"rows: got {self.rows!r:.80}, expected a slice of consecutive rows, or None")
        for end in (self.rows.start, self.rows.stop):
            if end is not None:
                whole_number("rows", end)

    def window(self, program: Program) -> range:
        """The rows of a program that are recorded. Raises ValueError for none, or for one whose density is unknown."""
        rows = range(len(program))[self.rows or slice(None)]
        if not rows:
            raise ValueError(f"rows: got {self.rows}, expected at least one of {len(program)} rows")
        if self.log_prob:
            noisy = program.A[:, 0, -1] != 0
            for what, marked in (
                ("a learned variance", program.learned), ("a step scaled by norms", program.normalise),
                ("a known image", program.blends),
            ):  # fmt: skip
                if found := [row for row in rows if noisy[row] and marked[row]]:
                    raise ValueError(
                        f"rollout: got {program.sampler}, whose row {found[0]} has {what}, expected noise of a known "
                        "scale, or Rollout(log_prob=False)"
                    )
        return rows


def check_recording(
    rollout: object, history: object, program: Program, expected: tuple[int, ...], noise: object
) -> None:
    """Raises TypeError or ValueError for what cannot be recorded, or first registers of another shape."""
    if rollout is not None:
        if not isinstance(rollout, Rollout):
            raise TypeError(f"rollout: got {described(rollout)}, expected an ulam.rollouts.Rollout or None")
        rollout.window(program)
        if noise is not None:
            raise ValueError("noise: got a callable beside rollout, whose rows are computed again, expected None")
    if history is None:
        return
    check_no_gradient("sampling", history=history)
    if not isinstance(history, torch.Tensor) or not history.is_floating_point():
        raise TypeError(f"history: got {described(history)}, expected a float tensor {list(expected)} or None")
    if tuple(history.shape) != expected:
        raise ValueError(f"history: got shape {list(history.shape)}, expected {list(expected)}")
