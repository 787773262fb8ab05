"""Which times a batch is trained at: samplers of t, each with weights for the losses.

>>> times = ulam.objectives.timesteps.Stratified(schedule)
>>> t, weight = times(len(x), seed=0, step=step)
>>> loss = (weight * ulam.objectives.denoising(denoiser, x, t, seed=0, step=step)).mean()

t ``[B]`` is what losses are given, in the schedule's own unit:

| kind | t | a uniform t |
|---|---|---|
| vp | training steps, int64 | is each of 0 to T - 1 as often |
| flow, learned | time, float32 | is uniform from 0 to 1 |
| subvp | time, float32 | is uniform from t_min to 1 |
| ve, edm | noise levels sigma, float32 | is uniform in log sigma, from sigma_min to sigma_max |

weight ``[B]`` float32 is 1 but for :class:`LossAware`: with it, losses have the mean that uniform times give.

t is a function of (seed, step, example id). Ids are ``chains``, by default those of :func:`ulam.noise.examples`: no two
ranks or micro-batches share times, and one process with the ids of all ranks has the times of all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ulam_kernels.arguments import described, positive, real, whole
from ulam_kernels.validation import check_real

from ..arguments import chain_ids, check_device, seed_int64, training_step
from ..noise import TRAINING_TIMES, batch_of, example_ids, normal_for
from ..schedules import FlowMatching, Schedule, SubVP, VarianceExploding, VariancePreserving, check_schedule
from .arguments import check_plain

HISTORY = 10  # losses of a training step that are remembered
UNIFORM_SHARE = 1e-3  # of the times, whatever their losses: none is forgotten


@dataclass(frozen=True)
class Timesteps(ABC):
    """A law of the times of a batch on ``schedule``. Raises TypeError or ValueError for another than it is for."""

    schedule: Schedule

    def __post_init__(self) -> None:
        check_schedule(self.schedule)

    def __call__(
        self,
        count: int,
        *,
        seed: int = 0,
        step: int,
        chains: int | range | Sequence[int] | torch.Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(t, weight), each ``[count]``: see this module.

        Args:
            count: examples in this process's batch. seed: an integer in [-2^63, 2^64).
            step: the training step, in [0, 2^60). chains: ids of the examples. device: where both go.

        Raises:
            TypeError, ValueError: an invalid argument, named in the message.
        """
        ids = chain_ids(example_ids(chains, whole(count, "count", 1, 1 << 32)))  # on the host
        t, weight = self._draw(ids, seed_int64(seed), training_step(step))
        return t.to(check_device(device)), weight.to(device, torch.float32)

    @abstractmethod
    def _draw(self, ids: torch.Tensor, seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]: ...


class Uniform(Timesteps):
    """Independent uniform times [Ho 2020, algorithm 1]."""

    def _draw(self, ids: torch.Tensor, seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return _at(self.schedule, _uniforms(ids, seed, step)), torch.ones(len(ids))


class Stratified(Timesteps):
    """Uniform times that cover their range evenly in every step: u_i = (u + i / N) mod 1 [Kingma 2021, app. I.1].

    One offset u a step; i = 0 to N - 1 numbers the joint batch of all W ranks, dealt out in turn: with B examples a
    rank, the i-th of rank r has u + (i + r / W) / B. Each t is uniform; a batch's mean loss varies less. Micro-batch m
    lies between the others, r + 0.5, 0.25, 0.75, ... for m = 1, 2, 3 (its bits reversed), so that 2^k of them are as
    even as one batch. W is that of ``torch.distributed``, or of the ranks in ``chains``.
    """

    def _draw(self, ids: torch.Tensor, seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        offset = _uniforms(torch.zeros(1, dtype=torch.int64), seed, step)
        return _at(self.schedule, (offset + _places(ids)) % 1), torch.ones(len(ids))


class Antithetic(Timesteps):
    """Uniform times in pairs u and 1 - u: examples 2k and 2k + 1 have t and T - 1 - t, or t and 1 - t [Song 2021a].

    (In the authors' code. On ve and edm: sigma and sigma_min sigma_max / sigma.) The part of a loss that is odd about
    the middle cancels within a pair.
    """

    def _draw(self, ids: torch.Tensor, seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        u = _uniforms(ids // 2, seed, step)
        return _at(self.schedule, torch.where(ids % 2 == 0, u, 1 - u)), torch.ones(len(ids))


@dataclass(frozen=True)
class LogNormal(Timesteps):
    """log sigma ~ N(mean, std^2), on ve and edm [Karras 2022, table 1]; weights are 1.

    Raises TypeError or ValueError for another schedule, a mean that is no number, a std that is not above 0.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, VarianceExploding):
            raise ValueError(f"schedule: got {described(self.schedule)}, expected a ve or edm schedule")
        real(self.mean, "mean")
        positive(self.std, "std")

    def _draw(self, ids: torch.Tensor, seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return (self.mean + self.std * _normals(ids, seed, step)).exp().float(), torch.ones(len(ids))


@dataclass(frozen=True)
class LogitNormal(Timesteps):
    """log(t / (1 - t)) ~ N(mean, std^2), then t -> shift t / (1 + (shift - 1) t), on flow [Esser 2024, eq. 19 and 23].

    The shift adds log(shift) to the mean. Weights are 1. Raises TypeError or ValueError for another schedule, a mean
    that is no number, a std or a shift that is not above 0.
    """

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, FlowMatching):
            raise ValueError(f"schedule: got {described(self.schedule)}, expected a flow schedule")
        real(self.mean, "mean")
        positive(self.std, "std")
        positive(self.shift, "shift")

    def _draw(self, ids: torch.Tensor, seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        logit = math.log(self.shift) + self.mean + self.std * _normals(ids, seed, step)
        return logit.sigmoid().float(), torch.ones(len(ids))


@dataclass(frozen=True, eq=False)
class LossAware(Timesteps):
    """Training steps as often as their losses are large, p_t ~ sqrt(E[L_t^2]) [Nichol & Dhariwal 2021, eq. 18].

    E[L_t^2] is the mean over the last 10 losses of t; until every t has 10, and for one in a thousand afterwards, t is
    uniform (LossSecondMomentResampler of openai/guided-diffusion). weight is 1 / (T p_t): weighted losses have the mean
    of uniform times, with less variance. For a vp schedule. After every step::

        times.update(t, losses)  # before they are weighted

    The history lies on the host, so an update waits for the losses. Where ``torch.distributed`` is initialised it
    gathers those of all ranks, which then agree; every rank must call it, with as many examples as it has.
    Raises TypeError or ValueError for another schedule.
    """

    history: torch.Tensor = field(init=False, repr=False)
    counts: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, VariancePreserving):
            raise ValueError(f"schedule: got {described(self.schedule)}, expected a vp schedule")
        object.__setattr__(self, "history", torch.zeros(self.schedule.steps, HISTORY, dtype=torch.float64))
        object.__setattr__(self, "counts", torch.zeros(self.schedule.steps, dtype=torch.int64))

    @property
    def probabilities(self) -> torch.Tensor:
        """p_t, ``[T]`` float64."""
        uniform = torch.full((len(self.counts),), 1 / len(self.counts), dtype=torch.float64)
        size = self.history.square().mean(1).sqrt()
        if bool((self.counts < HISTORY).any()) or not bool(size.any()):
            return uniform
        return torch.lerp(size / size.sum(), uniform, UNIFORM_SHARE)

    def update(self, t: torch.Tensor, losses: torch.Tensor) -> None:
        """Remember the losses ``[B]`` of the times t ``[B]``, those of all ranks. Raises TypeError or ValueError."""
        for name, values in (("t", t), ("losses", losses)):
            check_plain(values, name)
            check_real(values, name)
            if values.dim() != 1 or values.shape != t.shape:
                raise ValueError(f"{name}: got shape {list(values.shape)}, expected [B], one an example")
        if t.dtype != torch.int64:
            raise TypeError(f"t: got {described(t)}, expected int64 training steps")
        t, losses = _gathered(t.detach().cpu(), losses.detach().to("cpu", torch.float64))
        if not bool(((t >= 0) & (t < len(self.counts))).all()):
            raise ValueError(f"t: got {t.tolist()[:8]}, expected training steps from 0 to {len(self.counts) - 1}")
        if not bool(losses.isfinite().all()):
            raise ValueError(f"losses: got {losses[~losses.isfinite()][0]}, expected finite numbers")
        t, order = t.sort(stable=True)
        place = torch.arange(len(t))
        earlier = place - torch.searchsorted(t, t)  # examples before this one with its t
        last = torch.searchsorted(t, t, right=True) - place <= HISTORY  # of its t in this batch
        column = (self.counts[t] + earlier) % HISTORY
        self.history[t[last], column[last]] = losses[order[last]]
        self.counts.add_(torch.bincount(t, minlength=len(self.counts)))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of the losses remembered and of how many there were, to continue from."""
        return {"history": self.history.clone(), "counts": self.counts.clone()}

    def load_state_dict(self, saved: dict[str, torch.Tensor]) -> None:
        """Continue from the :meth:`state_dict` of a schedule as long, else raise TypeError or ValueError."""
        for name, own in self.state_dict().items():
            tensor = saved.get(name) if isinstance(saved, dict) else None
            if not isinstance(tensor, torch.Tensor) or tensor.dtype != own.dtype:
                raise TypeError(f"{name}: got {described(tensor)}, expected a tensor of {own.dtype}")
            check_plain(tensor, name)
            if tensor.shape != own.shape:
                raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected {list(own.shape)}")
            if not bool((tensor.isfinite() & (tensor >= 0 if name == "counts" else True)).all()):
                raise ValueError(
                    f"{name}: got {tensor.flatten().tolist()[:8]}, expected finite losses, counts from 0 on"
                )
        self.history.copy_(saved["history"])
        self.counts.copy_(saved["counts"])

    def _draw(self, ids: torch.Tensor, seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        p = self.probabilities
        below = p.cumsum(0)
        t = torch.searchsorted(below, _uniforms(ids, seed, step) * below[-1], right=True).clamp(max=len(p) - 1)
        return t, 1 / (len(p) * p[t])


def _normals(ids: torch.Tensor, seed: int, step: int) -> torch.Tensor:
    """One standard normal an example, ``[B]`` float64."""
    return normal_for(TRAINING_TIMES, (1,), seed=seed, chains=ids, row=step)[:, 0].double()


def _uniforms(ids: torch.Tensor, seed: int, step: int) -> torch.Tensor:
    """Uniform numbers in (0, 1), ``[B]`` float64: odd multiples of 2^-33, so that 1 - u is exact."""
    u: torch.Tensor = torch.special.ndtr(_normals(ids, seed, step))
    return ((u * 2**32).floor().clamp(max=2**32 - 1) + 0.5) / 2**32


def _at(schedule: Schedule, u: torch.Tensor) -> torch.Tensor:
    """The times of u ``[B]`` in (0, 1), increasing with u: uniform where u is."""
    if isinstance(schedule, VariancePreserving):
        return (u * schedule.steps).long().clamp(max=schedule.steps - 1)
    if isinstance(schedule, VarianceExploding):
        low, high = math.log(schedule.sigma_min), math.log(schedule.sigma_max)
        return (low + u * (high - low)).exp().float()
    first = schedule.t_min if isinstance(schedule, SubVP) else 0.0
    return (first + u * (1 - first)).float()


def _places(ids: torch.Tensor) -> torch.Tensor:
    """Where each example of a stratified batch lies, in [0, 1), ``[B]`` float64: (i + (r + reversed m) / W) / B."""
    rank, micro_batch = batch_of(ids)
    _, group, sizes = torch.unique(torch.stack([rank, micro_batch]), dim=1, return_inverse=True, return_counts=True)
    place = torch.empty(len(ids), dtype=torch.float64)
    order = group.argsort(stable=True)  # by rank and micro-batch; an example's place counts from the first of its own
    place[order] = torch.cat([torch.arange(size, dtype=torch.float64) for size in sizes.tolist()])
    world = max(_world(), int(rank.max()) + 1)
    return torch.div(place + (rank + _reversed(micro_batch)) / world, sizes[group])


def _reversed(m: torch.Tensor) -> torch.Tensor:
    """The bits of m behind the point in reverse, as in van der Corput's sequence: 0, 1/2, 1/4, 3/4, 1/8, ..."""
    bits = torch.arange(12)
    return torch.ldexp((m[:, None] >> bits & 1).double(), -1 - bits).sum(1)


def _world() -> int:
    initialised = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if initialised else 1


def _gathered(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Each tensor with those of all ranks behind one another, by rank; batches may differ in size."""
    if _world() == 1:
        return list(tensors)
    ranks: list[tuple[torch.Tensor, ...]] = [()] * _world()
    torch.distributed.all_gather_object(ranks, tensors)
    return [torch.cat(parts) for parts in zip(*ranks, strict=True)]
