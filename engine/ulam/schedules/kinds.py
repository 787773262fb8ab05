"""Noise schedules: x_t = alpha_t x_0 + sigma_t eps, eps ~ N(0, I), in float64 on the host.

`t` is what a network is told. Its meaning depends on the kind of schedule:

| kind | t | alpha_t | sigma_t |
|---|---|---|---|
| vp | training index in [0, T-1], may be fractional | sqrt(abar_t) | sqrt(1 - abar_t) |
| ve, edm | the noise level sigma >= 0 | 1 | t |
| flow | t in [0, 1] | 1 - t | t |
| subvp | t in [0, 1] | exp(-integral of beta / 2) | 1 - alpha_t^2 |
| learned | t in [0, 1] | sqrt(sigmoid(-gamma(t))) | sqrt(sigmoid(gamma(t))) |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, cast, overload

import numpy as np
import torch

from ulam_kernels.arguments import described
from ulam_kernels.tracing import constant_beside, graph_constant, plain_tensors

from .arguments import Array, Numbers, in_range, numbers
from .tensors import Levels, only_inside, tensor_levels, with_value


@dataclass(frozen=True, repr=False)
class Schedule(ABC):
    """One noise schedule: immutable, hashable, equal to any schedule built by the same constructor call."""

    constructor: str
    kind: ClassVar[str]

    @overload
    def levels(self, t: torch.Tensor) -> Levels: ...
    @overload
    def levels(self, t: Numbers) -> tuple[Array, Array]: ...
    def levels(self, t: Numbers | torch.Tensor) -> tuple[Array, Array] | Levels:
        """(alpha_t, sigma_t), each with the shape of `t`. Raises ValueError where `t` is out of range.

        Numbers and NumPy give NumPy. A torch tensor gives float64 tensors on its device, differentiable in t, with the
        same bits on the CPU. torch.compile and torch.func take it; there, and on a GPU, no number is read on the
        host, and a t out of range gives NaN.
        """
        if isinstance(t, torch.Tensor):
            return tensor_levels(t, self._on_host, self._of_tensor)
        return self._on_host(t)

    @abstractmethod
    def _on_host(self, t: Numbers | torch.Tensor) -> tuple[Array, Array]:
        """:meth:`levels` in NumPy, after a check of the range."""

    @abstractmethod
    def _of_tensor(self, t: torch.Tensor) -> Levels:
        """:meth:`levels` of float64 t in torch, NaN out of range."""

    @abstractmethod
    def t_of_sigma(self, sigma: Numbers) -> Array:
        """The t whose ratio sigma_t / alpha_t is `sigma`, shaped like `sigma`."""

    @property
    def steps(self) -> int | None:
        """The number of training steps, or None where time is continuous."""
        return None

    @overload
    def alpha(self, t: torch.Tensor) -> torch.Tensor: ...
    @overload
    def alpha(self, t: Numbers) -> Array: ...
    def alpha(self, t: Numbers | torch.Tensor) -> Array | torch.Tensor:
        """alpha_t, shaped like `t`, see :meth:`levels`."""
        return self.levels(t)[0]

    @overload
    def sigma(self, t: torch.Tensor) -> torch.Tensor: ...
    @overload
    def sigma(self, t: Numbers) -> Array: ...
    def sigma(self, t: Numbers | torch.Tensor) -> Array | torch.Tensor:
        """sigma_t, shaped like `t`, see :meth:`levels`."""
        return self.levels(t)[1]

    def init_scale(self, t: float) -> float:
        """The standard deviation that a sampler starts from at `t`."""
        return float(self.sigma(t))

    def __repr__(self) -> str:
        return self.constructor


@dataclass(frozen=True, repr=False)
class VariancePreserving(Schedule):
    """alpha^2 + sigma^2 = 1 on T training steps [Ho 2020]; `variances` is 1 - alphas_cumprod, all three [T].

    Between training steps sigma/alpha is interpolated linearly (as diffusers' sigma-based schedulers do) and
    alpha, sigma follow from alpha^2 + sigma^2 = 1.
    """

    betas: Array = field(compare=False)
    alphas_cumprod: Array = field(compare=False)
    variances: Array = field(compare=False)
    kind: ClassVar[str] = "vp"

    @property
    def steps(self) -> int:
        return len(self.betas)

    @property
    def ratios(self) -> Array:
        """sigma/alpha at every training step, increasing; the last is inf at zero terminal SNR."""
        with np.errstate(divide="ignore"):
            return np.sqrt(self.variances) / np.sqrt(self.alphas_cumprod)

    def _on_host(self, t: Numbers | torch.Tensor) -> tuple[Array, Array]:
        t = in_range("t", t, 0, self.steps - 1, f"this schedule has {self.steps} training steps")
        below = np.floor(t).astype(np.int64)
        alpha, sigma = np.sqrt(self.alphas_cumprod[below]), np.sqrt(self.variances[below])
        fractional = t > below
        if not fractional.any():
            return alpha, sigma
        if self.alphas_cumprod[-1] == 0 and np.max(t, where=fractional, initial=0) > self.steps - 2:
            raise ValueError(
                f"t: got {np.max(t, where=fractional, initial=0):g}, expected whole numbers above {self.steps - 2} "
                "(zero terminal SNR: the last sigma/alpha is infinite)"
            )
        with np.errstate(invalid="ignore"):
            ratio = np.interp(t, np.arange(self.steps), self.ratios)
            between = 1 / np.hypot(1, ratio)
            return np.where(fractional, between, alpha)[()], np.where(fractional, ratio * between, sigma)[()]

    def _of_tensor(self, t: torch.Tensor) -> Levels:
        # the name is an argument so that torch.compile guards it
        columns, last = graph_constant(_levels_of_steps, self, t.device, self.constructor)
        if not torch.compiler.is_compiling():
            columns = constant_beside(columns, t)
        inside = (t >= 0) & (t <= last)
        inner = torch.where(inside, t, 0.0)
        below = inner.detach().floor().long()
        low = below.clamp(max=max(last - 1, 0))
        # an index of a dimension more: vmap reads numbers that index on the host
        first, second, value = (columns[:, i[..., None]].squeeze(-1) for i in (low, (low + 1).clamp(max=last), below))
        ratio = (second[2] - first[2]) * (inner - low) + first[2]
        alpha = 1 / torch.hypot(torch.ones_like(ratio), ratio)
        fractional = inner.detach() > below
        levels = (
            torch.where(fractional, between, with_value(between, exact))
            for between, exact in ((alpha, value[0]), (ratio * alpha, value[1]))
        )
        return cast(Levels, only_inside(inside, *levels))

    def t_of_sigma(self, sigma: Numbers) -> Array:
        ratios = self.ratios
        finite = ratios[np.isfinite(ratios)]
        sigma = numbers("sigma", sigma)
        last = np.isposinf(sigma) & (len(finite) < len(ratios))
        inside = np.where(last, finite[-1], sigma)
        in_range("sigma", inside, finite[0], finite[-1], "the range of sigma/alpha of this schedule")
        return np.where(last, self.steps - 1, np.interp(inside, finite, np.arange(len(finite))))[()]

    def init_scale(self, t: float) -> float:
        """1: for data of unit variance every x_t has unit variance."""
        return 1.0


class Continuous(Schedule):
    """A schedule without training steps, which has a grid of its own."""

    @abstractmethod
    def grid(self, steps: int) -> Array:
        """`steps` decreasing times, the data (alpha = 1, sigma = 0) not included."""


@dataclass(frozen=True, repr=False)
class VarianceExploding(Continuous):
    """x_t = x_0 + t eps: t is sigma [Song 2021b]. Its grid is geometric from sigma_max to sigma_min."""

    sigma_min: float
    sigma_max: float
    kind: ClassVar[str] = "ve"

    def _on_host(self, t: Numbers | torch.Tensor) -> tuple[Array, Array]:
        # Beyond [sigma_min, sigma_max] too: churn goes above sigma_max, and a grid may end below sigma_min.
        t = in_range("t", t, 0, np.inf, f"{self.kind} schedules are told sigma", finite=True)
        return np.ones_like(t)[()], t

    def _of_tensor(self, t: torch.Tensor) -> Levels:
        return cast(Levels, only_inside((t >= 0) & t.isfinite(), torch.ones_like(t), t))

    def t_of_sigma(self, sigma: Numbers) -> Array:
        return self._on_host(sigma)[1]

    def grid(self, steps: int) -> Array:
        return np.geomspace(self.sigma_max, self.sigma_min, steps)


@dataclass(frozen=True, repr=False)
class EDM(VarianceExploding):
    """Karras et al. 2022: VE with data of standard deviation `sigma_data` and the grid of their eq. 5."""

    sigma_data: float
    rho: float
    kind: ClassVar[str] = "edm"

    def grid(self, steps: int) -> Array:
        ends = np.array([self.sigma_max, self.sigma_min]) ** (1 / self.rho)
        return np.append(self.sigma_max, np.linspace(ends[0], ends[1], steps)[1:] ** self.rho)


@dataclass(frozen=True, repr=False)
class FlowMatching(Continuous):
    """x_t = (1 - t) x_0 + t eps [Lipman 2023; Liu 2023].

    Its grid is u = 1, 1 - 1/n, ..., 1/n mapped by t = shift u / (1 + (shift - 1) u) [Esser 2024, eq. 23].
    """

    shift: float
    kind: ClassVar[str] = "flow"

    def _on_host(self, t: Numbers | torch.Tensor) -> tuple[Array, Array]:
        t = in_range("t", t, 0, 1, "flow schedules run from 0 (data) to 1 (noise)")
        return (1 - t)[()], t

    def _of_tensor(self, t: torch.Tensor) -> Levels:
        return cast(Levels, only_inside((t >= 0) & (t <= 1), 1 - t, t))

    def t_of_sigma(self, sigma: Numbers) -> Array:
        sigma = in_range("sigma", sigma, 0, np.inf, "a ratio sigma/alpha")
        with np.errstate(divide="ignore"):
            return np.divide(1, 1 + 1 / sigma)  # sigma / (1 + sigma), right at 0 and inf too

    def shifted(self, u: Array) -> Array:
        """Times at u in [0, 1]; the last is 1 to the bit, at which there is no signal at all."""
        return np.where(u == 1, 1.0, self.shift * u / (1 + (self.shift - 1) * u))

    def grid(self, steps: int) -> Array:
        return self.shifted(np.arange(steps, 0, -1) / steps)


@dataclass(frozen=True, repr=False)
class SubVP(Continuous):
    """The sub-VP SDE with beta(t) = beta_min + t (beta_max - beta_min) [Song 2021b, eq. 14 and 29].

    Its grid is uniform in t, from 1 to t_min.
    """

    beta_min: float
    beta_max: float
    t_min: float
    kind: ClassVar[str] = "subvp"

    def _on_host(self, t: Numbers | torch.Tensor) -> tuple[Array, Array]:
        t = in_range("t", t, 0, 1, "sub-VP schedules run from 0 (data) to 1 (noise)")
        log_alpha = -t * (self.beta_min / 2 + t * (self.beta_max - self.beta_min) / 4)
        return np.exp(log_alpha)[()], -np.expm1(2 * log_alpha)[()]

    def _of_tensor(self, t: torch.Tensor) -> Levels:
        log_alpha = -t * (self.beta_min / 2 + t * (self.beta_max - self.beta_min) / 4)
        return cast(Levels, only_inside((t >= 0) & (t <= 1), log_alpha.exp(), -torch.expm1(2 * log_alpha)))

    def t_of_sigma(self, sigma: Numbers) -> Array:
        largest = float(self.sigma(1.0) / self.alpha(1.0))
        ratio = in_range("sigma", sigma, 0, largest, "the range of sigma/alpha of this schedule")
        minus_log_alpha = np.arcsinh(ratio / 2)  # alpha = 2 / (ratio + sqrt(ratio^2 + 4))
        start, slope = self.beta_min / 2, self.beta_max - self.beta_min
        root = np.sqrt(start**2 + slope * minus_log_alpha)
        return np.minimum(2 * minus_log_alpha / (start + root), 1.0)[()]

    def init_scale(self, t: float) -> float:
        """1: the end of the process is standard normal."""
        return 1.0

    def grid(self, steps: int) -> Array:
        return np.linspace(1, self.t_min, steps)


def _levels_of_steps(schedule: VariancePreserving, device: torch.device, _: str) -> tuple[torch.Tensor, int]:
    """alpha, sigma and their ratio at every training step, ``[3, T]``, and the last step."""
    return _columns(schedule, device), schedule.steps - 1


@lru_cache(maxsize=8)
def _columns(schedule: VariancePreserving, device: torch.device) -> torch.Tensor:
    """A plain tensor, whatever is recorded now."""
    values = np.stack([np.sqrt(schedule.alphas_cumprod), np.sqrt(schedule.variances), schedule.ratios])
    with plain_tensors():
        return torch.from_numpy(values).to(device)


def check_schedule(schedule: object) -> None:
    """Raises TypeError unless it is a schedule."""
    if not isinstance(schedule, Schedule):
        if callable(schedule) and (name := getattr(schedule, "__name__", "")).isidentifier():
            raise TypeError(f"schedule: got {name} itself, expected what it returns: {name}(...)")
        raise TypeError(f"schedule: got {described(schedule)}, expected a ulam schedule such as vp_linear(1000)")
