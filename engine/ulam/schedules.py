"""Noise schedules: x_t = alpha_t x_0 + sigma_t eps, eps ~ N(0, I), in float64 on the host.

`t` is what a network is told. Its meaning depends on the kind of schedule:

| kind | t | alpha_t | sigma_t |
|---|---|---|---|
| vp | training index in [0, T-1], may be fractional | sqrt(abar_t) | sqrt(1 - abar_t) |
| ve, edm | the noise level sigma >= 0 | 1 | t |
| flow | t in [0, 1] | 1 - t | t |
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Array: TypeAlias = npt.NDArray[np.float64]
Numbers: TypeAlias = float | Sequence[float] | npt.NDArray[Any] | torch.Tensor


@dataclass(frozen=True, repr=False)
class Schedule(ABC):
    """One noise schedule: immutable, hashable, equal to any schedule built by the same constructor call."""

    constructor: str
    kind: ClassVar[str]

    @abstractmethod
    def levels(self, t: Numbers) -> tuple[Array, Array]:
        """(alpha_t, sigma_t), each with the shape of `t`. Raises ValueError where `t` is out of range."""

    @abstractmethod
    def t_of_sigma(self, sigma: Numbers) -> Array:
        """The t whose ratio sigma_t / alpha_t is `sigma`, shaped like `sigma`."""

    @property
    def steps(self) -> int | None:
        """The number of training steps, or None where time is continuous."""
        return None

    def alpha(self, t: Numbers) -> Array:
        """alpha_t, shaped like `t`."""
        return self.levels(t)[0]

    def sigma(self, t: Numbers) -> Array:
        """sigma_t, shaped like `t`."""
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

    def levels(self, t: Numbers) -> tuple[Array, Array]:
        t = _in_range("t", t, 0, self.steps - 1, f"this schedule has {self.steps} training steps")
        below = np.floor(t).astype(np.int64)
        alpha, sigma = np.sqrt(self.alphas_cumprod[below]), np.sqrt(self.variances[below])
        fractional = t > below
        if not fractional.any():
            return alpha, sigma
        if self.alphas_cumprod[-1] == 0 and np.max(t, where=fractional, initial=0) > self.steps - 2:
            raise ValueError(
                f"t must be a whole number above {self.steps - 2} (zero terminal SNR: the last "
                f"sigma/alpha is infinite), got {np.max(t, where=fractional, initial=0):g}"
            )
        with np.errstate(invalid="ignore"):
            ratio = np.interp(t, np.arange(self.steps), self.ratios)
            between = 1 / np.hypot(1, ratio)
            return np.where(fractional, between, alpha)[()], np.where(fractional, ratio * between, sigma)[()]

    def t_of_sigma(self, sigma: Numbers) -> Array:
        ratios = self.ratios
        finite = ratios[np.isfinite(ratios)]
        sigma = _numbers("sigma", sigma)
        last = np.isposinf(sigma) & (len(finite) < len(ratios))
        inside = np.where(last, finite[-1], sigma)
        _in_range("sigma", inside, finite[0], finite[-1], "the range of sigma/alpha here")
        return np.where(last, self.steps - 1, np.interp(inside, finite, np.arange(len(finite))))[()]

    def init_scale(self, t: float) -> float:
        """1: for data of unit variance every x_t has unit variance."""
        return 1.0


class Continuous(Schedule):
    """A schedule without training steps: it has a grid of its own."""

    @abstractmethod
    def grid(self, steps: int) -> Array:
        """`steps` decreasing times, the data (alpha = 1, sigma = 0) not included."""


@dataclass(frozen=True, repr=False)
class VarianceExploding(Continuous):
    """x_t = x_0 + t eps: t is sigma [Song 2021b]. Its grid is geometric from sigma_max to sigma_min."""

    sigma_min: float
    sigma_max: float
    kind: ClassVar[str] = "ve"

    def levels(self, t: Numbers) -> tuple[Array, Array]:
        # Not limited to [sigma_min, sigma_max]: churn steps above sigma_max, a grid may end below sigma_min.
        t = _in_range("t", t, 0, np.inf, f"{self.kind} schedules are told sigma", finite=True)
        return np.ones_like(t)[()], t

    def t_of_sigma(self, sigma: Numbers) -> Array:
        return self.levels(sigma)[1]

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

    def levels(self, t: Numbers) -> tuple[Array, Array]:
        t = _in_range("t", t, 0, 1, "flow schedules run from 0 (data) to 1 (noise)")
        return (1 - t)[()], t

    def t_of_sigma(self, sigma: Numbers) -> Array:
        sigma = _in_range("sigma", sigma, 0, np.inf, "a ratio sigma/alpha")
        with np.errstate(divide="ignore"):
            return np.divide(1, 1 + 1 / sigma)  # sigma / (1 + sigma), right at 0 and inf too

    def grid(self, steps: int) -> Array:
        u = np.arange(steps, 0, -1) / steps
        return self.shift * u / (1 + (self.shift - 1) * u)


# ---------------------------------------------------------------------------------------------- constructors


def vp_linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> VariancePreserving:
    """betas linear from beta_start to beta_end [Ho 2020, section 4]."""
    steps, start, end = _steps(steps), _beta("beta_start", beta_start), _beta("beta_end", beta_end)
    call = _call("vp_linear", steps=steps, beta_start=start, beta_end=end)
    return _from_betas(np.linspace(start, end, steps), call)


def vp_scaled_linear(steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> VariancePreserving:
    """sqrt(beta) linear [latent diffusion, Rombach 2022]."""
    steps, start, end = _steps(steps), _beta("beta_start", beta_start), _beta("beta_end", beta_end)
    call = _call("vp_scaled_linear", steps=steps, beta_start=start, beta_end=end)
    return _from_betas(np.linspace(start**0.5, end**0.5, steps) ** 2, call)


def vp_cosine(steps: int = 1000) -> VariancePreserving:
    """abar_t = f(t)/f(0), f(t) = cos^2((t/T + s)/(1 + s) pi/2), s = 0.008, betas at most 0.999
    [Nichol & Dhariwal 2021, eq. 17]."""
    steps = _steps(steps)
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return _from_betas(np.minimum(1 - f[1:] / f[:-1], 0.999), _call("vp_cosine", steps=steps))


def from_betas(betas: Numbers) -> VariancePreserving:
    """A VP schedule from its betas [T], each in (0, 1); the last may be exactly 1 (zero terminal SNR)."""
    beta = _vector("betas", betas)
    early = np.arange(len(beta)) < len(beta) - 1
    wrong = (beta <= 0) | (beta > 1) | ((beta == 1) & early)
    _reject("betas", beta, wrong, "lie in (0, 1) (the last may be 1: zero terminal SNR)")
    return _from_betas(beta, f"from_betas({_literal(beta)})")


def from_alphas_cumprod(alphas_cumprod: Numbers) -> VariancePreserving:
    """A VP schedule from abar [T], strictly decreasing in (0, 1]; the last may be 0 (zero terminal SNR)."""
    abar = _vector("alphas_cumprod", alphas_cumprod)
    early = np.arange(len(abar)) < len(abar) - 1
    wrong = (abar < 0) | (abar > 1) | ((abar == 0) & early)
    _reject("alphas_cumprod", abar, wrong, "lie in (0, 1] (the last may be 0: zero terminal SNR)")
    _reject("alphas_cumprod", abar, np.append(False, abar[1:] >= abar[:-1]), "be strictly decreasing")
    before = np.append(1.0, abar[:-1])
    betas = (before - abar) / before
    return VariancePreserving(f"from_alphas_cumprod({_literal(abar)})", *map(_read_only, (betas, abar, 1 - abar)))


def ve(sigma_min: float, sigma_max: float) -> VarianceExploding:
    """Variance exploding between two noise levels, 0 < sigma_min < sigma_max [Song 2021b]."""
    low, high = _sigma_ends(sigma_min, sigma_max)
    return VarianceExploding(_call("ve", sigma_min=low, sigma_max=high), low, high)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5, rho: float = 7.0) -> EDM:
    """The schedule of Karras et al. 2022 (table 1), on which `predicts="raw"` means their preconditioning."""
    low, high = _sigma_ends(sigma_min, sigma_max)
    data, power = _positive("sigma_data", sigma_data), _positive("rho", rho)
    return EDM(_call("edm", sigma_min=low, sigma_max=high, sigma_data=data, rho=power), low, high, data, power)


def flow(shift: float = 1.0) -> FlowMatching:
    """Straight paths from data (t = 0) to noise (t = 1); `shift` > 1 puts more of the grid near the noise."""
    shift = _positive("shift", shift)
    return FlowMatching(_call("flow", shift=shift), shift)


# ----------------------------------------------------------------------------------------------- transitions


def correlation(alpha_t: Array, sigma_t: Array, alpha_s: Array, sigma_s: Array) -> Array:
    """q = alpha_t sigma_s / (alpha_s sigma_t), the correlation of x_s and x_t given x_0 [Kingma 2021].

    For s before t it lies in [0, 1]: 0 where s is the data or alpha_t = 0. Needs sigma_t > 0, alpha_s > 0.
    """
    return np.minimum(alpha_t * sigma_s / (alpha_s * sigma_t), 1.0)


def posterior(alpha_t: Array, sigma_t: Array, alpha_s: Array, sigma_s: Array) -> tuple[Array, Array, Array]:
    """q(x_s | x_t, x_0) for s before t: (coefficient of x_t, coefficient of x_0, 1 - q^2).

    With q = `correlation(...)`, on any Gaussian path:
        mean = (sigma_s / sigma_t) q x_t + alpha_s (1 - q^2) x_0,  variance = sigma_s^2 (1 - q^2),
    and Var[x_t | x_s] = sigma_t^2 (1 - q^2). On a VP schedule these are mu~, beta~ and beta of DDPM
    [Ho 2020, eq. 6-7; Kingma 2021, eq. 26-29].
    """
    q = correlation(alpha_t, sigma_t, alpha_s, sigma_s)
    fresh = (1 - q) * (1 + q)
    return sigma_s / sigma_t * q, alpha_s * fresh, fresh


# ------------------------------------------------------------------------------------------------ validation


def check_schedule(schedule: object) -> None:
    """Raises TypeError for what is no schedule."""
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be a ulam schedule such as vp_linear(1000), got {schedule!r:.60}")


def _from_betas(betas: Array, constructor: str) -> VariancePreserving:
    """1 - abar_t is the sum of beta_i abar_{i-1}, all positive: no cancellation where abar_t is near 1."""
    abar = np.cumprod(1 - betas)
    if (abar[:-1] == 0).any():
        raise ValueError(
            f"betas must leave alphas_cumprod above 0 before the last step, "
            f"it underflows at index {int(np.argmin(abar > 0))}"
        )
    variances = np.minimum(np.cumsum(betas * np.append(1.0, abar[:-1])), 1.0)
    return VariancePreserving(constructor, *map(_read_only, (betas, abar, variances)))


def _call(name: str, **arguments: float) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def _literal(values: Array) -> str:
    """The values where they are few, else their count and digest, so that the repr stays an identity."""
    if len(values) <= 8:
        return repr(values.tolist())
    return f"<{len(values)} values, sha256 {hashlib.sha256(values.tobytes()).hexdigest()[:16]}>"


def _read_only(values: Array) -> Array:
    values = np.ascontiguousarray(values)
    values.flags.writeable = False
    return values


def _number(name: str, value: object) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(float(value)):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


def _positive(name: str, value: object) -> float:
    number = _number(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be above 0, got {value!r}")
    return number


def _steps(steps: object) -> int:
    if isinstance(steps, (bool, np.bool_)) or not isinstance(steps, (int, np.integer)):
        raise TypeError(f"steps must be an integer, got {steps!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps!r}")
    return int(steps)


def _beta(name: str, value: object) -> float:
    number = _number(name, value)
    if not 0 < number < 1:
        raise ValueError(f"{name} must lie in (0, 1), got {value!r}")
    return number


def _sigma_ends(sigma_min: object, sigma_max: object) -> tuple[float, float]:
    low, high = _positive("sigma_min", sigma_min), _positive("sigma_max", sigma_max)
    if low >= high:
        raise ValueError(f"sigma_min must be below sigma_max, got {low!r} and {high!r}")
    return low, high


def _numbers(name: str, values: object) -> Array:
    """Numbers (scalar, sequence, array, tensor) as a fresh float64 array; bools and strings are refused."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.double().numpy() if values.is_floating_point() else values.numpy()
    try:
        raw = np.asarray(values)
    except ValueError:
        raise TypeError(f"{name} must be numbers in a regular array, got ragged values") from None
    if raw.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be numbers, got {type(values).__name__} of dtype {raw.dtype}")
    return np.array(raw, dtype=np.float64)


def _vector(name: str, values: object) -> Array:
    vector = _numbers(name, values)
    if vector.ndim != 1 or len(vector) == 0:
        raise ValueError(f"{name} must be one-dimensional and not empty, got shape {vector.shape}")
    _reject(name, vector, ~np.isfinite(vector), "be finite")
    return vector


def _reject(name: str, values: Array, bad: npt.NDArray[np.bool_], rule: str) -> None:
    if bad.any():
        index = int(np.argmax(bad))
        raise ValueError(f"{name} must {rule}, got {values[index]!s} at index {index}")


def _in_range(name: str, values: object, low: float, high: float, why: str, finite: bool = False) -> Array:
    array = _numbers(name, values)
    bad = ~((array >= low) & (array <= high)) | (finite & ~np.isfinite(array))
    if bad.any():
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}] ({why}), got {array[bad].flat[0]!s}")
    return array
