"""The density of a trajectory's rows, under the network that sampled it or another, with gradients.

Row k of a program draws x' from N(mean, a_z^2), mean = sum_j A_0j r_j + A_0D D + A_0m m. What is known of x' = mean +
a_z z is used: with z made again from noise-v1 and x* the fused step's own arithmetic on the new output,

    z' = (x' - mean_new) / a_z = z - (x* - x') / a_z

where x* - x' is exactly 0 for an output of the same bits, and without cancellation for others. Gradients come from the
mean, which is linear in m where D is not clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import ulam_kernels
from ulam_kernels.arguments import described

from ..arguments import per_chain, whole_numbers
from ..conditioning import Shared
from ..denoiser import Denoiser, check_denoiser
from ..engine.guided_outputs import prediction, weighted
from ..engine.network import computing_dtype
from ..engine.trajectory import BEYOND, Trajectory
from ..evaluation import check_output, in_eval_mode, modules_in
from ..noise import ROW
from ..outputs import ReadOutput
from ..programs.program import Program

Pairs = tuple[torch.Tensor, torch.Tensor]


def log_prob(
    denoiser: Denoiser,
    trajectory: Trajectory,
    rows: slice | Sequence[int] | None = None,
    *,
    pairs: Pairs | None = None,
) -> torch.Tensor:
    """log N(x'; mean, a_z^2) of recorded rows, float64, differentiable through the network.

    With the network that sampled, called as the engine called it, it is what ``trajectory.log_prob`` holds, to 1e-6 an
    element. The states are constants. The network is called in eval mode, under the caller's autocast, once for all
    pairs (twice if guided). NaN from the row on at which a chain failed.

    Args:
        rows: of the program, a slice, a sequence, or bool ``[K]``; by default all of ``trajectory.rows`` that evaluate
            the network and add noise. The result is ``[n, len(rows)]``.
        pairs: (places, rows) int64 ``[b]`` each, any chains of the trajectory at any rows in any order, a mini-batch;
            the result is then ``[b]``.

    Raises:
        TypeError, ValueError: an invalid argument; a row that was not recorded, adds no noise and so has no density, or
            reads earlier outputs, which another network would have changed; states that were not recorded; guidance by
            a rule, rescaled or blended; known images, learned variances, noise scaled by norms.
    """
    step = _Step(denoiser, trajectory, rows, pairs)
    z, executed = step.noise(), step.executed()
    moved = executed.double() - step.after.double()
    mean = step.mean(*step.outputs)
    a_z = per_chain(step.column(lambda p: p.A[:, 0, -1]), step.x)
    exact = z.double() - (moved + (mean - mean.detach())) / a_z
    elements = exact[0].numel()
    found = -0.5 * exact.flatten(1).square().sum(1) + elements * trajectory.log_scales().to(z.device)[step.at]
    return step.shaped(torch.where(step.failed, torch.nan, found))


def kl(
    denoiser: Denoiser,
    reference: Denoiser,
    trajectory: Trajectory,
    rows: slice | Sequence[int] | None = None,
    *,
    pairs: Pairs | None = None,
) -> torch.Tensor:
    """KL(row under ``denoiser`` || row under ``reference``) = |mean - mean_ref|^2 / (2 a_z^2), at the recorded states.

    float64, differentiable through both networks (call the reference's parameters with ``requires_grad_(False)``).
    Arguments, shapes and errors: see :func:`log_prob`.
    """
    new, old = (_Step(one, trajectory, rows, pairs) for one in (denoiser, reference))
    apart = new.mean(*new.outputs) - old.mean(*old.outputs)
    a_z = new.column(lambda p: p.A[:, 0, -1])
    return new.shaped(apart.flatten(1).square().sum(1) / (2 * a_z.square()))


class _Step:
    """The rows of a batch of (chain, row) pairs, their states, and the network's outputs there."""

    def __init__(
        self, denoiser: Denoiser, trajectory: Trajectory, rows: slice | Sequence[int] | None, pairs: Pairs | None
    ) -> None:
        check_denoiser(denoiser, None)
        if not isinstance(trajectory, Trajectory):
            raise TypeError(f"trajectory: got {described(trajectory)}, expected a ulam.rollouts.Trajectory")
        if trajectory.states is None:
            raise ValueError("trajectory: got one without states, expected one of Rollout(states=True)")
        if found := [BEYOND[trait] for trait in trajectory.traits if trait in BEYOND]:
            raise ValueError(f"trajectory: got one with {found[0]}, expected weights of guidance alone")
        program = denoiser.program(trajectory.program)
        self._denoiser, self._trajectory, self._program = denoiser, trajectory, program
        places, numbers, self._shape = _indices(trajectory, rows, pairs)
        parameters = [p for module in modules_in(denoiser.net) for p in module.parameters()]
        device = parameters[0].device if parameters else trajectory.states.device
        self._places, self._rows = places.to(device), numbers.to(device)
        self.at = (numbers - trajectory.rows.start).to(device)
        at, states = numbers - trajectory.rows.start, trajectory.states
        here = places.to(states.device), at.to(states.device)
        self.x, self.after = (states[here[0], here[1] + k].to(device) for k in (0, 1))
        parts = [] if trajectory.history is None else trajectory.history[here].to(device).unbind(1)
        self._registers = torch.stack([self.x, *parts])
        self._numbers = numbers.numpy()
        first = torch.full((len(trajectory),), len(trajectory.program))
        for place, row in trajectory.failed.items():
            first[place] = row
        self.failed = (numbers >= first[places]).to(device)
        self.outputs = self._evaluated()

    def column(self, of: Callable[[Program], Any], dtype: torch.dtype | None = None) -> torch.Tensor:
        """A column of the program at the pairs' rows, rounded as the step has it; float64 unless told otherwise."""
        values = torch.from_numpy(np.ascontiguousarray(of(self._program)[self._numbers]))
        wide = self.x.dtype == torch.float64
        return (values if wide else values.float()).to(self.x.device, dtype or torch.float64)

    def shaped(self, found: torch.Tensor) -> torch.Tensor:
        return found.reshape(self._shape)

    def _evaluated(self) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """m, the unguided output (None without guidance), and the weights."""
        trajectory, denoiser = self._trajectory, self._denoiser
        weight = torch.ones(len(self._places), device=self.x.device)
        guided = trajectory.guidance is not None
        if trajectory.guidance is not None:
            weight = trajectory.guidance.to(self.x.device)[self._places]
            weight = weight * self.column(lambda p: p.guidance, torch.float32)
            if trajectory.interval is not None:
                exact, _ = self._time_dtype()
                time = self.column(lambda p: p.time, torch.float64 if exact else torch.float32)
                lo, hi = trajectory.interval
                weight = torch.where((lo <= time) & (time <= hi), weight, 1.0)
        m = self._called(denoiser.network, trajectory.cond)
        if not guided:
            return m, None, weight
        net = denoiser.network
        if denoiser.guide is not None:
            net = denoiser.guide if denoiser.output is None else ReadOutput(denoiser.guide, denoiser.output)
        return m, self._called(net, trajectory.uncond), weight

    def _time_dtype(self) -> tuple[bool, torch.dtype]:
        """Whether all is float64, and the dtype of the time that the network is told, as the engine has them."""
        denoiser = self._denoiser
        exact = computing_dtype(denoiser.net) in (None, torch.float64) and self.x.dtype == torch.float64
        exact = exact and denoiser.time != "index"
        return exact, torch.float64 if exact else denoiser.time_dtype

    def _called(self, net: Callable[..., Any], cond: dict[str, torch.Tensor | Shared]) -> torch.Tensor:
        """The network's prediction at the pairs' states and times."""
        denoiser = self._denoiser
        dtype = computing_dtype(denoiser.net) or self.x.dtype
        exact, times = self._time_dtype()
        x = self.x
        c_in = self.column(lambda p: p.c_in, torch.float64 if exact else torch.float32)
        if (self._program.c_in[self._numbers] != 1).any():
            x = x * per_chain(c_in, x)
        inputs = {
            name: value.tensor if isinstance(value, Shared) else value[self._places.to(value.device)].to(x.device)
            for name, value in cond.items()
        }
        if denoiser.second_time is not None:
            told = self.column(lambda p: np.where(np.isnan(p.second), p.time, p.second), times)
            inputs[denoiser.second_time] = told
        with in_eval_mode([module for one in denoiser.nets for module in modules_in(one)]):
            m = net(x.to(dtype), self.column(lambda p: p.time, torch.float64).to(times), **inputs)
        m = check_output(m, tuple(self.x.shape))
        return prediction(m, tuple(self.x.shape[1:]))

    def noise(self) -> torch.Tensor:
        """The noise of the pairs' rows, as the fused step made it."""
        out = torch.empty(self.x.shape, dtype=torch.promote_types(self.x.dtype, torch.float32), device=self.x.device)
        return ulam_kernels.fill_normal(out, **self._ids())

    def _ids(self) -> dict[str, Any]:
        trajectory, device = self._trajectory, self.x.device
        draws = torch.from_numpy(ROW.draws(self._numbers + trajectory.first_row)).to(device)
        return {
            "seed": torch.full_like(draws, trajectory.seed),
            "chain": trajectory.chains.to(device)[self._places],
            "draw": draws,
        }

    @torch.no_grad()
    def executed(self) -> torch.Tensor:
        """x after the fused step, with the outputs as they are now."""
        m, u, weight = self.outputs
        wide = torch.float64 if self.x.dtype == torch.float64 else torch.float32
        table = self._program.table(dtype=wide)
        table = type(table)(table.coef.to(self.x.device), table.flags.to(self.x.device), table.registers)
        states = self._registers.clone()
        given: dict[str, Any] = {} if u is None else {"uncond": u.detach().contiguous(), "guidance": weight}
        ulam_kernels.step(states, table, self._rows, model=m.detach().contiguous(), **given, **self._ids())
        return states[0]

    def mean(self, m: torch.Tensor, u: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
        """The mean of x after the row, float64 and differentiable in the outputs."""
        m = weighted(m.double(), None if u is None else u.double(), weight.double())

        def of(column: Callable[[Program], Any]) -> torch.Tensor:
            return per_chain(self.column(column), m)

        r = self._registers.double()
        D = torch.clamp(of(lambda p: p.kx) * r[0] + of(lambda p: p.km) * m, of(lambda p: p.lo), of(lambda p: p.hi))
        terms = [*r, D, m]
        coefficients = [of(lambda p, j=j: p.A[:, 0, j]) for j in range(len(terms))]  # type: ignore[misc]
        present = [torch.where(a != 0, a * term, 0.0) for a, term in zip(coefficients, terms, strict=True)]
        return torch.stack(present).sum(0)


def _indices(
    trajectory: Trajectory, rows: slice | Sequence[int] | None, pairs: Pairs | None
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """Places and rows of all pairs, int64 ``[b]`` on the host, and the shape of what is computed of them."""
    program = trajectory.program
    if pairs is not None:
        if rows is not None:
            raise ValueError("rows: got some beside pairs, expected one of the two")
        if isinstance(pairs, torch.Tensor) or len(pairs) != 2:
            raise TypeError(f"pairs: got {described(pairs)}, expected two int64 tensors [b], places and rows")
        places, numbers = (torch.as_tensor(part).detach().cpu().contiguous() for part in pairs)
        if places.dim() != 1 or places.shape != numbers.shape or {places.dtype, numbers.dtype} != {torch.int64}:
            raise ValueError(
                f"pairs: got {described(pairs[0])} and {described(pairs[1])}, expected two int64 tensors [b]"
            )
        shape: tuple[int, ...] = tuple(places.shape)
    else:
        if rows is None:
            noisy = zip(trajectory.rows, trajectory.stochastic.tolist(), strict=True)
            wanted = [row for row, adds in noisy if adds and program.evaluates[row]]
        elif isinstance(rows, slice):
            wanted = list(range(len(program))[rows])
        elif isinstance(rows, torch.Tensor) and rows.dtype == torch.bool:
            if rows.shape != (len(trajectory.rows),):
                raise ValueError(f"rows: got shape {list(rows.shape)}, expected [{len(trajectory.rows)}], one a row")
            wanted = [trajectory.rows[place] for place in torch.nonzero(rows).flatten().tolist()]
        elif isinstance(rows, torch.Tensor | np.ndarray | Sequence) and not isinstance(rows, str):
            wanted = whole_numbers(**{f"rows[{place}]": row for place, row in enumerate(rows)})
        else:
            raise TypeError(f"rows: got {described(rows)}, expected a slice, a sequence of rows, or None")
        numbers = torch.tensor(wanted, dtype=torch.int64).repeat(len(trajectory))
        places = torch.arange(len(trajectory)).repeat_interleave(len(wanted))
        shape = (len(trajectory), len(wanted))
    if len(numbers) == 0:
        raise ValueError(f"rows: got none, expected rows of {trajectory!r} that add noise")
    for row in sorted(set(numbers.tolist())):
        if row not in trajectory.rows:
            raise ValueError(f"rows: got {row}, expected {trajectory.rows.start} to {trajectory.rows.stop - 1}")
        if not trajectory.stochastic[row - trajectory.rows.start]:
            raise ValueError(f"rows: got {row}, which adds no noise to x and has no density, expected rows that do")
        if why := _unknown(program, row):
            raise ValueError(f"rows: got {row}, {why}")
    if not bool(((places >= 0) & (places < len(trajectory))).all()):
        raise ValueError(f"pairs: got a place outside 0 to {len(trajectory) - 1}, expected chains of the trajectory")
    return places, numbers, shape


def _unknown(program: Program, row: int) -> str:
    """Why the density of a row cannot be computed again; empty if it can."""
    if not program.evaluates[row]:
        return "which does not evaluate the network, expected rows that do"
    if program.A[row, 0, 1 : program.registers].any():
        return (
            "which reads earlier outputs, that another network would have changed, expected rows of a sampler without "
            "history: DDPM, DDIM, EulerAncestral, FlowSDE, DPMSolverPP(order=1, sde=True)"
        )
    for what, marked in (
        ("a learned variance", program.learned), ("noise scaled by norms", program.normalise),
        ("a clip by a quantile", program.threshold),
    ):  # fmt: skip
        if marked[row]:
            return f"which has {what}, expected rows without"
    return ""
