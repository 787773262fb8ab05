"""Markov chain samplers of a density given by energy and score: numbers a chain, and one transition.

p(x) = exp(-E(x) / T) / Z, s = -grad E, P a diagonal preconditioner (the inverse mass of BAOAB and HMC), z ~ N(0, I).
Every number may be one for all chains or one a chain. Noise is noise-v1 at (seed, chain, 16 step), accept uniforms
are its tag 2, those of HMC's path length its stage 2: a chain's bits depend on its id, the seed and its own numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeAlias

import torch

import ulam_kernels.mcmc as ops
from ulam_kernels.arguments import described, switch
from ulam_kernels.validation import real_numbers

from ...arguments import whole_number
from .chain_state import Columns, State

LONGEST_PATH = 1 << 26  # leapfrog steps that may be asked for
MOST_LEAPS = 10  # times the leapfrog steps given: what adaptation goes up to

PerChain: TypeAlias = "float | Sequence[float] | torch.Tensor"


class ChainSampler(ABC):
    """What the samplers share: their numbers, which may be one a chain, and the checks of them."""

    step: PerChain
    temperature: PerChain
    preconditioner: torch.Tensor | None

    per_chain: ClassVar[tuple[str, ...]] = ("step", "temperature")
    kernel: ClassVar[str | None] = None  # its name in `ulam_kernels.mcmc.run`, None where its numbers change by step
    adjusted: ClassVar[bool] = False  # whether it has a Metropolis test
    moves: ClassVar[bool] = False  # whether its state has a velocity

    def __post_init__(self) -> None:
        numbers("step", self.step, above=0)
        if self.adjusted:
            numbers("temperature", self.temperature, above=0)
        else:
            numbers("temperature", self.temperature, least=0)
        if self.preconditioner is not None:
            message = "preconditioner: expected a tensor [*shape] of finite numbers above 0, or None"
            if not isinstance(self.preconditioner, torch.Tensor):
                raise ValueError(message)
            p = real_numbers("preconditioner", self.preconditioner)
            if not bool((p > 0).all() & torch.isfinite(p).all()):
                raise ValueError(message)

    def numbers(self) -> dict[str, Any]:
        """The class's name and every number, tensors as copies: equal for samplers that do the same."""
        return {"name": type(self).__name__} | {
            field.name: _copied(getattr(self, field.name))
            for field in fields(self)  # type: ignore[arg-type]
        }

    def scale(self, x: torch.Tensor) -> torch.Tensor | None:
        """sqrt(P) like one chain of x. Raises ValueError for a preconditioner of another shape."""
        p = self.preconditioner
        if p is None:
            return None
        if p.shape != x.shape[1:]:
            raise ValueError(f"preconditioner: got shape {list(p.shape)}, expected {list(x.shape[1:])} like a chain")
        return p.detach().double().sqrt().to(x.device, x.dtype).contiguous()

    @property
    def bounds(self) -> tuple[float, float]:
        """What states are clipped to."""
        return -float("inf"), float("inf")

    @property
    def leaps(self) -> int:
        """Evaluations of the score a step."""
        return 1

    def leap_counts(self, given: torch.Tensor, step: torch.Tensor) -> torch.Tensor | None:
        """Leapfrog steps a transition ``[B]`` int64, the step ``given`` having become ``step``; None without leaps."""
        return None

    @abstractmethod
    def coefficients(self, step: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, index: int) -> Columns:
        """The numbers of step ``index`` for ``ops.run``, float64 ``[B]`` each; ``rows`` of the run."""

    @abstractmethod
    def transition(self, state: State, c: Columns) -> torch.Tensor | None:
        """One step in place; the log acceptance ratio ``[B]`` float64, None where there is no test."""


@dataclass(frozen=True, eq=False)
class ULA(ChainSampler):
    """x' = x + step P s(x) + sqrt(2 step T P) z: the unadjusted Langevin algorithm [Roberts & Tweedie 1996].

    Stationary law: off by order step. On a Gaussian of precision a (T = P = 1) its variance is
    1 / (a (1 - step a / 2)), stable below step = 2 / a.

    step, temperature, preconditioner: as this module says; the temperature may be 0 (gradient descent).
    noise_scale: what stands before sqrt(P) z in place of sqrt(2 step T), as energy-based models are often sampled.
    clip: (lo, hi), a box that the state is clipped to after every step. Raises ValueError naming the argument.
    """

    step: PerChain
    temperature: PerChain = 1.0
    preconditioner: torch.Tensor | None = None
    noise_scale: PerChain | None = None
    clip: tuple[float, float] | None = None

    per_chain: ClassVar[tuple[str, ...]] = ("step", "temperature", "noise_scale")
    kernel: ClassVar[str | None] = "ula"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_scale is not None:
            numbers("noise_scale", self.noise_scale, least=0)
        check_box(self.clip)

    @property
    def bounds(self) -> tuple[float, float]:
        return super().bounds if self.clip is None else self.clip

    def coefficients(self, step: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, index: int) -> Columns:
        if self.noise_scale is None:
            return step, (2 * step * temperature).sqrt(), torch.zeros_like(step), torch.zeros_like(step)
        return step, of_rows("noise_scale", self.noise_scale, rows), torch.zeros_like(step), torch.zeros_like(step)

    def transition(self, state: State, c: Columns) -> torch.Tensor | None:
        langevin_step(state, c, self.bounds, state.x)
        state.energy, state.score = state.evaluate(state.x, state.record)
        return None


@dataclass(frozen=True, eq=False)
class SGLD(ULA):
    """ULA with the steps step (1 + i / delay)^-decay, i = 0, 1, ... of the run [Welling & Teh 2011].

    For energies on minibatches, whose noise the falling steps drown: an :class:`ulam.Energy` whose ``fn`` draws its
    own minibatch at each call. decay: above 0.5 and at most 1 for the paper's conditions; 0 keeps the step. delay:
    steps until the fall begins in earnest. The rest as :class:`ULA`. Raises ValueError naming the argument.
    """

    decay: float = 0.55
    delay: float = 1.0

    kernel: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        decay, delay = numbers("decay", self.decay, least=0), numbers("delay", self.delay, above=0)
        for name, tensor in (("decay", decay), ("delay", delay)):
            if tensor.dim():
                raise ValueError(f"{name}: got {described(getattr(self, name))}, expected one number")

    def coefficients(self, step: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, index: int) -> Columns:
        return super().coefficients(step * (1 + index / self.delay) ** -self.decay, temperature, rows, index)


@dataclass(frozen=True, eq=False)
class MALA(ChainSampler):
    """ULA's step as a proposal, and a Metropolis test that makes p stationary exactly [Roberts & Tweedie 1996].

    Of many dimensions d the best step falls as d^(-1/3), at the acceptance 0.574 [Roberts & Rosenthal 1998].
    step, temperature (above 0), preconditioner: as this module says. Raises ValueError naming the argument.
    """

    step: PerChain
    temperature: PerChain = 1.0
    preconditioner: torch.Tensor | None = None

    kernel: ClassVar[str | None] = "mala"
    adjusted: ClassVar[bool] = True

    def coefficients(self, step: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, index: int) -> Columns:
        return step, (2 * step * temperature).sqrt(), 1 / temperature, torch.zeros_like(step)

    def transition(self, state: State, c: Columns) -> torch.Tensor | None:
        proposal = langevin_step(state, c, self.bounds, state.spare)
        energy, score = state.evaluate(proposal, True)
        assert energy is not None and state.energy is not None
        state.accepted, log_ratio = ops.mala_accept(
            state.x, proposal, state.score, score, state.energy, energy, c[0],
            inverse_temperature=c[2], scale=state.scale, **state.ids(), backend=state.backend,
        )  # fmt: skip
        return log_ratio


@dataclass(frozen=True, eq=False)
class BAOAB(ChainSampler):
    """Underdamped Langevin dynamics dx = v dt, dv = s dt - friction v dt + sqrt(2 friction T) dW, time step ``step``.

    One step is v += h/2 s; x += h/2 v; v <- e^(-friction h) v + sqrt(T (1 - e^(-2 friction h))) z; x += h/2 v;
    v += h/2 s' [Leimkuhler & Matthews 2013]. On a Gaussian of frequency omega its positions are exact and its
    velocities' variance is T (1 - h^2 omega^2 / 4); stable below h = 2 / omega. friction inf draws fresh velocities
    every step. P is the inverse mass. Velocities start from N(0, T). Raises ValueError naming the argument.
    """

    step: PerChain
    friction: PerChain = 1.0
    temperature: PerChain = 1.0
    preconditioner: torch.Tensor | None = None

    per_chain: ClassVar[tuple[str, ...]] = ("step", "temperature", "friction")
    kernel: ClassVar[str | None] = "baoab"
    moves: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers("friction", self.friction, least=0, finite=False)

    def coefficients(self, step: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, index: int) -> Columns:
        rate = of_rows("friction", self.friction, rows) * step
        return step / 2, step / 2, (-rate).exp(), (temperature * -torch.expm1(-2 * rate)).sqrt()

    def transition(self, state: State, c: Columns) -> torch.Tensor | None:
        kick, drift, keep, noise_scale = c
        assert state.v is not None
        ops.kick_drift(
            state.x, state.v, state.score, kick, drift,
            keep=keep, noise_scale=noise_scale, scale=state.scale, **state.ids(), backend=state.backend,
        )  # fmt: skip
        state.energy, state.score = state.evaluate(state.x, state.record)
        ops.kick_drift(state.x, state.v, state.score, kick, None, scale=state.scale, backend=state.backend)
        return None


@dataclass(frozen=True, eq=False)
class HMC(ChainSampler):
    """``leapfrog`` leapfrog steps of length ``step`` from a fresh momentum N(0, T), and a Metropolis test [Neal 2011].

    A transition's step, and with it the length of its path, is step (1 + jitter u), u uniform on [-1, 1] from the
    chain's own noise: at one length a path comes back to where it began in directions whose period divides it, and
    the chain never mixes there [Neal 2011, section 3.2]. u does not depend on the state, so p stays stationary.

    ``adapt`` of :func:`ulam.mcmc.run` changes the step and keeps the path: a chain with the step h takes
    ceil(leapfrog step / h) leapfrog steps. At most ten times ``leapfrog``: where no step reaches the acceptance on so
    long a path, as at a hard wall, the path shrinks with the step.

    P is the inverse mass. Of many dimensions d the best step falls as d^(-1/4), at the acceptance 0.651 [Beskos 2013].
    jitter: in [0, 1), in the precision of the states; 0 for paths of one length.

    Raises TypeError or ValueError naming the argument.
    """

    step: PerChain
    leapfrog: int = 10
    temperature: PerChain = 1.0
    preconditioner: torch.Tensor | None = None
    jitter: float = 0.5

    kernel: ClassVar[str | None] = "hmc"
    adjusted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= (leaps := whole_number("leapfrog", self.leapfrog)) <= LONGEST_PATH:
            raise ValueError(f"leapfrog: got {leaps}, expected at least 1" + " and at most 2^26" * (leaps > 1))
        jitter = real_numbers("jitter", self.jitter)
        if jitter.dim() or not 0 <= float(jitter) < 1:
            raise ValueError(f"jitter: got {described(self.jitter)}, expected a number in [0, 1)")

    @property
    def leaps(self) -> int:
        return self.leapfrog

    def leap_counts(self, given: torch.Tensor, step: torch.Tensor) -> torch.Tensor | None:
        return (self.leapfrog * (given / step)).ceil().clamp(1, MOST_LEAPS * self.leapfrog).long()

    def coefficients(self, step: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, index: int) -> Columns:
        return step, torch.full_like(step, self.jitter), 1 / temperature, temperature.sqrt()

    def transition(self, state: State, c: Columns) -> torch.Tensor | None:
        step, jitter, inverse_temperature, momentum_scale = c
        if self.jitter:
            step = (step.double() * (1 + jitter.double() * state.uniforms())).to(step.dtype)
        assert state.energy is not None
        v = state.normals().mul_(momentum_scale.view(-1, *[1] * (state.x.dim() - 1)))
        kinetic, energy = ops.squared_norm(v, backend=state.backend), state.energy
        x, v, score, found = self._path(state, step, v)
        difference = energy - found + 0.5 * (kinetic - ops.squared_norm(v, backend=state.backend))
        log_ratio = difference * inverse_temperature.double()
        pairs = [(state.x, x), (state.score, score), (energy, found)]
        state.accepted = ops.accept(log_ratio, pairs, **state.ids(), backend=state.backend)
        return log_ratio

    def _path(self, state: State, step: torch.Tensor, v: torch.Tensor) -> _PathEnd:
        """Where the paths of all chains end; v is overwritten. A chain whose path has ended is carried on in vain."""
        half, x, score = 0.5 * step, state.spare.copy_(state.x), state.score
        ends = state.ends or {self.leapfrog: None}
        last, end = max(ends), None
        for leap in range(1, last + 1):
            ops.kick_drift(x, v, score, half if leap == 1 else step, step, scale=state.scale, backend=state.backend)
            found, score = state.evaluate(x, leap in ends)
            if leap in ends:
                assert found is not None
                final = v if leap == last else v.clone()
                ops.kick_drift(x, final, score, half, None, scale=state.scale, backend=state.backend)
                end = _selected(ends[leap], (x, final, score, found), end)
        assert end is not None
        return end


_PathEnd: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # x, v, score, energy


def _selected(where: torch.Tensor | None, here: _PathEnd, before: _PathEnd | None) -> _PathEnd:
    """``here`` for the chains ``where``, ``before`` for the others; new tensors unless all chains end here."""
    if where is None:
        return here
    old = before or here
    x, v, score, energy = (
        torch.where(where.view(-1, *[1] * (new.dim() - 1)), new, kept) for new, kept in zip(here, old, strict=True)
    )
    return x, v, score, energy


@dataclass(frozen=True, eq=False)
class ParallelTempering:
    """Replicas of every chain at several temperatures, neighbours swapping their states [Geyer 1991].

    Replica k of a chain samples exp(-E / T_k) by ``sampler``; every ``swap_every`` steps the pairs (0, 1), (2, 3), ...
    and (1, 2), (3, 4), ... in turn swap with probability min(1, exp((1 / T_k - 1 / T_l) (E_k - E_l))). The result has
    the first temperature's states. Replica k of chain c has the noise of chain c K + k, K temperatures; swaps have
    uniforms of their own (stage 2), so nothing depends on other chains.

    Args:
        sampler: one of the other samplers, whose own temperature stays 1.
        temperatures: at least two, increasing; the first, usually 1, is the one that is wanted.
        swap_every: steps between swaps.
        scaled: steps grow with the temperature: step T_k (of BAOAB and HMC step sqrt(T_k), a time).

    Raises:
        TypeError, ValueError: naming the argument.
    """

    sampler: ChainSampler
    temperatures: Sequence[float]
    swap_every: int = 1
    scaled: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, ChainSampler):
            raise TypeError(f"sampler: got {type(self.sampler).__name__}, expected ULA, SGLD, MALA, BAOAB or HMC")
        if not isinstance(self.sampler.temperature, (int, float)) or self.sampler.temperature != 1:
            raise ValueError("temperature: of the sampler inside must be 1, the replicas have their own")
        ladder = numbers("temperatures", self.temperatures, above=0)
        if ladder.dim() != 1 or len(ladder) < 2 or not bool((ladder.diff() > 0).all()):
            raise ValueError(f"temperatures: got {described(self.temperatures)}, expected at least two, increasing")
        if isinstance(self.temperatures, torch.Tensor):
            object.__setattr__(self, "temperatures", ladder.tolist())
        switch(self.scaled, "scaled")
        if whole_number("swap_every", self.swap_every) < 1:
            raise ValueError(f"swap_every: got {self.swap_every}, expected at least 1")

    def numbers(self) -> dict[str, Any]:
        """As :meth:`ChainSampler.numbers`, those of the sampler inside with them."""
        inner = {f"sampler.{name}": value for name, value in self.sampler.numbers().items()}
        own = {name: _copied(getattr(self, name)) for name in ("temperatures", "swap_every", "scaled")}
        return {"name": type(self).__name__, **own, **inner}


def _copied(value: object) -> object:
    """Numbers as a float64 copy; None as it is."""
    return None if value is None else torch.as_tensor(value, dtype=torch.float64).detach().to("cpu", copy=True)


def langevin_step(state: State, c: Columns, bounds: tuple[float, float], out: torch.Tensor) -> torch.Tensor:
    """x + step P s + noise_scale sqrt(P) z within the bounds, in ``out``."""
    return ops.langevin(
        state.x, state.score, c[0], c[1], scale=state.scale, lo=bounds[0], hi=bounds[1],
        **state.ids(), out=out, backend=state.backend,
    )  # fmt: skip


def numbers(
    name: str, value: object, *, above: float | None = None, least: float | None = None, finite: bool = True
) -> torch.Tensor:
    """``value`` as float64, one number ``[]`` or one a chain. Raises TypeError or ValueError for any out of range."""
    tensor = real_numbers(name, value)
    if tensor.dim() > 1:
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected a number, or one a chain")
    bad = tensor.isnan() | (tensor.isinf() if finite else torch.zeros_like(tensor, dtype=torch.bool))
    if above is not None:
        bad |= tensor <= above
    if least is not None:
        bad |= tensor < least
    if bool(bad.any()):
        rule = f"above {above:g}" if above is not None else f"of at least {least:g}"
        raise ValueError(f"{name}: got {tensor[bad].flatten()[0].item():g}, expected a finite number {rule}")
    return tensor


def of_rows(name: str, value: PerChain, rows: torch.Tensor, chains: int | None = None) -> torch.Tensor:
    """The numbers of these rows, float64 on their device. Raises ValueError unless they are one, or one a chain."""
    tensor = torch.as_tensor(value, dtype=torch.float64).detach().to(rows.device)
    if tensor.dim() == 0:
        return tensor.expand(len(rows)).contiguous()
    if chains is not None and len(tensor) != chains:
        raise ValueError(f"{name}: got {len(tensor)} numbers, expected one, or one for each of {chains} chains")
    return tensor[rows]


def check_box(clip: object) -> None:
    """Raises ValueError unless ``clip`` is None or a pair lo < hi."""
    if clip is None:
        return
    if not isinstance(clip, (tuple, list)) or len(clip) != 2:
        raise ValueError(f"clip: got {described(clip)}, expected None or a pair (lo, hi) with lo < hi")
    lo, hi = (real_numbers("clip", end) for end in clip)
    if lo.dim() or hi.dim() or not lo < hi:
        raise ValueError(f"clip: got {described(clip)}, expected None or a pair (lo, hi) with lo < hi")
