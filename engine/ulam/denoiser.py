"""A trained network with its schedule, what it predicts and which time it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from ulam_kernels.arguments import choice, described, one_of
from ulam_kernels.reprs import short_repr

from .outputs import Output, ReadOutput, check_output_option
from .programs.predictions import check_predicts, told_steps
from .programs.program import Program
from .schedules import Schedule, check_schedule

if TYPE_CHECKING:
    from typing_extensions import Self

TIMES = ("auto", "index")
DERIVATIVES = ("auto", "forward", "reverse")
LARGEST_TIME = float(np.finfo(np.float32).max)  # networks receive float32
LAST_TIMES = {"flow": 1.0, "subvp": 1.0, "learned": 1.0}
TIME_ROUNDING = 1e-6  # relative


def check_denoiser(denoiser: object, cond: object = None) -> None:
    """Raises TypeError unless given a Denoiser, and conditioning by name or None."""
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"denoiser: got {described(denoiser)}, expected a Denoiser")
    if cond is not None and not isinstance(cond, Mapping):
        raise TypeError(f"cond: got {described(cond)}, expected tensors by name, or None")


class Sampler(Protocol):
    """What compiles to a `Program`."""

    def program(self, schedule: Schedule, predicts: str = "eps") -> Program: ...


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A trained network `net(x, t, **cond)`, its schedule, what it predicts and which time it is given.

    x is [slots, *shape], already scaled by c_in; t is a [slots] tensor of `time_dtype`. `time="auto"` is float32: the
    training index on VP, sigma on VE and EDM (under `predicts="raw"` too), t in [0, 1] on flow. `time="index"` is the
    int64 training index, on VP schedules. Under it, and for `predicts="mean"`, the network knows whole training steps
    only: a sampler's own grid is rounded to them, a list is not (`ulam.samplers.GridSampler`). Sampling
    calls an `nn.Module` in eval mode and restores the mode it was in. Raises TypeError or ValueError for an invalid
    argument.

    output: what of the network's output is the prediction, where it returns no tensor: a key or attribute, such as
    ``"sample"``, a position, such as ``0``, or a function of all that it returns. None, the default, finds the one
    tensor of the right shape in a dict, a tuple or an object with ``.sample``; where there are several, an error names
    them. `network` is the network with its output read so.

    second_time: the network's argument, such as ``"r"``, for a second time beside t, as flow maps u(x, t, r) have. A
    sampler that has none tells it t, where a flow map is the velocity.

    guide: another network ``guide(x, t, **cond)`` that takes the place of the unguided branch: a smaller or less
    trained one of the same data, schedule and prediction, for autoguidance [Karras 2024]. ``guidance`` then needs no
    ``uncond``.

    derivatives: how `ulam.tweedie`, `ulam.sure`, `ulam check` and the likelihood differentiate the network: "forward"
    or "reverse" mode, or "auto", whichever it has formulas for (`ulam.estimation.derivatives`). `modes` says what ran.
    """

    net: Callable[..., Any]
    schedule: Schedule
    predicts: str = "eps"
    time: str = "auto"
    derivatives: str = "auto"
    output: Output = None
    second_time: str | None = field(default=None, kw_only=True)
    guide: Callable[..., Any] | None = field(default=None, kw_only=True)
    _found: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)  # written by estimation.derivatives
    _modes: dict[str, str] = field(default_factory=dict, init=False, repr=False)  # written there too

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if not callable(self.net) or isinstance(self.net, type):
            raise TypeError(f"net: got {described(self.net)}, expected a callable net(x, t, **cond)")
        check_schedule(self.schedule)
        check_predicts(self.predicts, self.schedule)
        if not isinstance(self.time, str) or self.time not in TIMES:
            raise ValueError(f"time: got {described(self.time)}, expected {one_of(self.time, TIMES)}")
        choice(self.derivatives, "derivatives", DERIVATIVES)
        check_output_option(self.output)
        if self.second_time is not None and (
            not isinstance(self.second_time, str) or not self.second_time.isidentifier() or self.second_time in "xt"
        ):
            got = described(self.second_time)
            raise ValueError(f"second_time: got {got}, expected the name of an argument (not x or t), or None")
        if self.guide is not None and (not callable(self.guide) or isinstance(self.guide, type)):
            raise TypeError(f"guide: got {described(self.guide)}, expected a callable guide(x, t, **cond), or None")
        if self.time == "index" and self.schedule.kind != "vp":
            raise ValueError(f"time: got 'index' with {self.schedule!r}, expected 'auto', or a vp schedule")

    @classmethod
    def from_diffusers(
        cls,
        source: object,
        *,
        scheduler: object = None,
        variant: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The denoiser of a diffusers pipeline, saved (a folder) or in memory, or of a model and its scheduler.

        UNet2DModel, UNet2DConditionModel, or the transformer of DiT, Stable Diffusion 3 or Flux, with its scheduler's
        schedule and prediction. Arguments and errors: see
        :func:`ulam.integrations.diffusers.loading.network_from_diffusers`.
        """
        # The one import from a higher floor: a constructor belongs to its class, and diffusers loads on demand.
        from .integrations.diffusers.loading import network_from_diffusers

        return cls(*network_from_diffusers(source, scheduler=scheduler, variant=variant, dtype=dtype))

    @property
    def modes(self) -> dict[str, str]:
        """The mode, forward or reverse, in which derivatives of order "first", "second", ... ran last."""
        return dict(self._modes)

    @property
    def network(self) -> Callable[..., Any]:
        """What is called as network(x, t, **cond): `net` itself, or the part of its output that ``output`` names."""
        return self.net if self.output is None else ReadOutput(self.net, self.output)

    @property
    def nets(self) -> tuple[Callable[..., Any], ...]:
        """The network, and the guide if there is one."""
        return (self.net,) if self.guide is None else (self.net, self.guide)

    @cached_property
    def told_steps(self) -> str:
        """The argument by which the network is told whole training steps only; empty where it takes any time."""
        return told_steps(self.predicts, self.time)

    @property
    def time_dtype(self) -> torch.dtype:
        """The dtype of the network's t."""
        return torch.int64 if self.time == "index" else torch.float32

    def program(self, sampler: Sampler | Program) -> Program:
        """`sampler` compiled for this denoiser; a compiled program as it is.

        Raises TypeError for what is no sampler, ValueError for times outside the schedule, for fractional ones where
        it takes whole ones, and for a program of another schedule or prediction.
        """
        if isinstance(sampler, type) or not (isinstance(sampler, Program) or hasattr(sampler, "program")):
            raise TypeError(f"sampler: got {described(sampler)}, expected one of ulam.samplers, such as DDIM(steps=50)")
        if isinstance(sampler, Program):
            got, own = (sampler.schedule, sampler.predicts), (repr(self.schedule), self.predicts)
            if got != own:
                raise ValueError(f"sampler: got a program for {got}, expected one for the denoiser's {own}")
            program = sampler
        elif self.told_steps and (by_index := getattr(sampler, "index_program", None)) is not None:
            program = by_index(self.schedule, self.predicts)
        else:
            program = sampler.program(self.schedule, self.predicts)
        if program.tells_second and self.second_time is None:
            raise ValueError(
                f"sampler: got {program.sampler}, which tells the network a second time, expected "
                "Denoiser(second_time=...), the name of the argument that takes it"
            )
        self._check_times(program)
        if self.told_steps and not program.told[2]:
            fractional = program.time[program.time % 1 > 0][0]
            raise ValueError(f"timesteps: got {fractional!s} under {self.told_steps}, expected whole training steps")
        if self.told_steps and (program.second % 1 > 0).any():
            fractional = program.second[program.second % 1 > 0][0]
            raise ValueError(f"second: got {fractional!s} under {self.told_steps}, expected whole training steps")
        return program

    def _check_times(self, program: Program) -> None:
        """Raises ValueError for a time outside the schedule, or beyond the range of float32."""
        steps = self.schedule.steps
        last = steps - 1 if steps else LAST_TIMES.get(self.schedule.kind, LARGEST_TIME)
        first = -last if self.predicts == "raw" else 0.0  # whose networks may take logarithms of sigma
        if first <= program.told[0] and program.told[1] <= last * (1 + TIME_ROUNDING):
            return
        off = program.evaluates & ~((program.time >= first) & (program.time <= last * (1 + TIME_ROUNDING)))
        for row in np.flatnonzero(off):
            expected = f"{first:.9g} to {last:.9g}, as {self.schedule!r} has"
            raise ValueError(f"time: got {program.time[row]!s} at row {row} of {program.sampler}, expected {expected}")
