"""Measures what a trained denoiser should satisfy at every noise level: `ulam check`, and :func:`measure` in Python.

For D(y, sigma) = E[x | y] of y = x + sigma z, the error can be estimated without x, the derivative is the posterior
variance, the residual is orthogonal to every function of y, and the Jacobian is a Hessian. A fully trained network
satisfies all of these nearly; one that is broken, overfitted or told the wrong time fails some.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ulam_kernels.arguments import described
from ulam_kernels.tracing import check_not_recorded, outside_graphs
from ulam_kernels.validation import check_data

from ..arguments import per_chain, whole_number
from ..conditioning import Shared, rows_at, rowwise
from ..denoiser import Denoiser
from ..gradients import check_no_gradient
from ..noise import CHECK, normal_for
from .derivatives import Derivatives
from .estimator import Estimator, Inputs, noise_levels
from .probes import dot, probes
from .uncertainty import WithError

CHANCE = 4.0  # standard errors allowed for chance
SURE, CALIBRATION, SLOPE, ASYMMETRY = 0.05, 0.25, 0.05, 0.4  # allowed beyond chance


@dataclass(frozen=True)
class Measured(WithError[float]):
    """A mean and its standard error."""

    def __str__(self) -> str:
        return f"{self.value:.4g}({self.stderr:.1g})"

    def off(self, target: float) -> float:
        """The distance from ``target`` less ``CHANCE`` standard errors: at most 0 within chance, nan for nan."""
        return abs(self.value - target) - CHANCE * self.stderr


@dataclass(frozen=True)
class MeasuredLevel:
    """One noise level; errors are mean squares per element. None for what needs clean data where there are none.

    sure: |D - y|^2 / n - sigma^2 + 2 sigma^2 div D / n [Stein 1981].
    error: |D - x|^2 / n.
    gap: sure - error, chain by chain.
    predicted: sigma^2 div D / n, the posterior variance that D implies [Efron 2011].
    calibration: predicted / error (without clean data predicted / sure); 1 for a posterior mean.
    slope: E[(x - c) . (D - c)] / E|D - c|^2 for the mean c of the data; 1 where x - D is orthogonal to D, below 1 where
        D goes too far.
    asymmetry: |J - J'| / (2 |J|) in Frobenius norm for J = dD/dy; 0 where D - y is a gradient, at most 1.
    linear: the error of the best linear denoiser that treats elements one by one.
    derivatives: the mode of automatic differentiation that ran, forward or reverse.
    """

    sigma: float
    chains: int
    sure: Measured
    predicted: Measured
    calibration: Measured
    asymmetry: Measured
    error: Measured | None = None
    gap: Measured | None = None
    slope: Measured | None = None
    linear: float | None = None
    derivatives: str = ""

    @property
    def verdicts(self) -> dict[str, tuple[bool, str]]:
        """For each test whether it passed, and in words."""
        found = {}
        if self.error is not None and self.gap is not None:
            agree = self.gap.off(0) <= SURE * self.error.value
            found["sure"] = agree, "SURE and true error agree" if agree else "SURE is not the true error"
        within = self.calibration.off(1) <= CALIBRATION
        confident = "over-confident" if self.calibration.value < 1 else "under-confident"
        found["calibration"] = (
            within,
            "calibrated" if within else f"{confident} (variance {self.calibration.value:.2f} of the error)",
        )
        if self.slope is not None:
            right = self.slope.off(1) <= SLOPE
            falls = "goes too far" if self.slope.value < 1 else "falls short"
            found["slope"] = right, "residual orthogonal" if right else f"{falls} (slope {self.slope.value:.3f})"
        gradient = self.asymmetry.off(0) <= ASYMMETRY
        found["symmetry"] = (
            gradient,
            "score is a gradient" if gradient else f"score is no gradient ({self.asymmetry.value:.2f})",
        )
        if self.error is not None and self.linear is not None:
            better = self.error.off(0) <= self.linear
            found["linear"] = better, "better than linear" if better else "worse than a linear denoiser"
        return found

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return all(passed for passed, _ in self.verdicts.values())


@outside_graphs
def measure(
    denoiser: Denoiser,
    x: torch.Tensor,
    sigmas: Sequence[float],
    cond: Inputs | None = None,
    *,
    noisy: bool = False,
    batch: int = 128,
    seed: int = 0,
) -> Iterator[MeasuredLevel]:
    """Measure ``denoiser`` on y = x + sigma z at every noise level of ``sigmas``, each yielded when it is done.

    z is noise-v1. Chains come in pairs whose noises are opposite in direction and in length (the chi-square quantiles
    p and 1 - p), each exactly normal: of |z|^2 / n - 1, the larger part of SURE's spread, only the skewness is left.
    Errors are over pairs. It takes two Jacobian-vector products per chain, or two vector-Jacobian products
    (:mod:`ulam.estimation.derivatives`).

    Args:
        x: clean data ``[N, *shape]`` that the network was not trained on, N even, at least 4.
        cond: the network's further arguments, tensors ``[N, ...]``.
        noisy: x are themselves observations with noise of the one level in ``sigmas``: nothing is added, and what needs
            clean data is left out.
        batch: chains per call of the network; even.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message; a network that hides its dependence on x or
            has no derivative. RuntimeError: x or cond requires grad while gradients are recorded.
    """
    check_not_recorded("measure")
    check_no_gradient("check.measure", cond, x=x)
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.dim() < 2:
        raise TypeError(f"x: got {described(x)}, expected a float tensor [N, *shape]")
    check_data(x, "x")
    if len(x) < 4 or len(x) % 2:
        raise ValueError(f"x: got {len(x)} examples, expected an even number, at least 4")
    if whole_number("batch", batch) < 2 or batch % 2:
        raise ValueError(f"batch: got {batch}, expected an even number, at least 2")
    if not len(sigmas) or (noisy and len(sigmas) > 1):
        right = "the one level of the data" if noisy else "at least one"
        raise ValueError(f"sigmas: got {len(sigmas)} noise levels, expected {right}")
    given = rowwise(cond)
    for name, value in given.items():
        if isinstance(value, Shared):
            continue
        check_data(value, f"cond[{name!r}]")
        if len(value) != len(x):
            raise ValueError(f"cond[{name!r}]: got {len(value)} rows, expected {len(x)}, one an example")
    checked = [float(noise_levels(x[:1], sigma)[0]) for sigma in sigmas]
    return (_level(denoiser, x, sigma, given, noisy, batch, seed, row) for row, sigma in enumerate(checked))


@outside_graphs
def _level(
    denoiser: Denoiser, x: torch.Tensor, sigma: float, cond: Inputs, noisy: bool, batch: int, seed: int, row: int
) -> MeasuredLevel:
    centre = x.mean(0)
    parts = []
    for place, begin in enumerate(range(0, len(x), batch)):
        part = x[begin : begin + batch]
        y = part if noisy else part + sigma * _noise(part, begin // 2, seed, row)
        given = rows_at(cond, slice(begin, begin + batch))
        first = 2 * (row * math.ceil(len(x) / batch) + place)
        derivatives = Derivatives(Estimator(denoiser, y, sigma, given), y)
        parts.append(_quantities(derivatives, y, part, centre, seed, first))
    of = {name: torch.cat([part[name] for part in parts]).view(-1, 1 if noisy else 2).mean(1) for name in parts[0]}
    n, power = x[0].numel(), sigma**2
    predicted = power * of["divergence"] / n
    sure = of["moved"] / n - power + 2 * predicted
    odd = _ratio(of["odd"], of["all"])
    root = math.sqrt(odd.value)
    error = None if noisy else of["error"] / n
    variance = x.double().var(0)
    return MeasuredLevel(
        sigma=sigma,
        chains=len(x),
        sure=_mean(sure),
        predicted=_mean(predicted),
        calibration=_ratio(predicted, sure if error is None else error),
        asymmetry=Measured(root, odd.stderr / (2 * root) if root else 0.0),
        error=None if error is None else _mean(error),
        gap=None if error is None else _mean(sure - error),
        slope=None if noisy else _ratio(of["along"], of["length"]),
        linear=None if noisy else float((power * variance / (power + variance)).mean()),
        derivatives=derivatives.mode,
    )


def _quantities(
    derivatives: Derivatives, y: torch.Tensor, x: torch.Tensor, centre: torch.Tensor, seed: int, first: int
) -> dict[str, torch.Tensor]:
    """The terms of the estimates, ``[B]`` float64 each, with two Rademacher probes u and v."""
    u, v = probes(y, 2, seed=seed, first=first)
    of_u, of_v, D = derivatives.image(u), derivatives.image(v), derivatives.value()
    cross, back = dot(u, of_v), dot(v, of_u)
    return {
        "moved": dot(D - y, D - y),
        "error": dot(D - x, D - x),
        "along": dot(x - centre, D - centre),
        "length": dot(D - centre, D - centre),
        "divergence": (dot(u, of_u) + dot(v, of_v)) / 2,
        "odd": (cross - back) ** 2,
        "all": 2 * (cross**2 + back**2),
    }


def _noise(x: torch.Tensor, pair: int, seed: int, row: int) -> torch.Tensor:
    """Noise for the chains of x, the first two of which are pair number ``pair``."""
    pairs = range(pair, pair + len(x) // 2)
    z = normal_for(CHECK, tuple(x.shape[1:]), seed=seed, chains=pairs, row=row, device=x.device)
    length, n = dot(z, z).cpu().numpy(), z[0].numel()
    from scipy.special import chdtr, chdtri  # slow to import

    mirrored = np.sqrt(chdtri(n, chdtr(n, length)) / length)
    scale = per_chain(torch.from_numpy(mirrored).to(z), z)
    return torch.stack([z, -scale * z], dim=1).flatten(0, 1).to(x.dtype)


def _mean(values: torch.Tensor) -> Measured:
    return Measured(float(values.mean()), float(values.std()) / len(values) ** 0.5)


def _ratio(above: torch.Tensor, below: torch.Tensor) -> Measured:
    """mean(above) / mean(below) with its error to first order."""
    if not float(below.mean()):
        return Measured(math.inf if float(above.mean()) else 0.0, 0.0)
    value = float(above.mean() / below.mean())
    return Measured(value, float((above - value * below).std() / below.mean().abs()) / len(above) ** 0.5)
