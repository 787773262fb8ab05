"""The Gaussian steps of DDPM between training steps, as its bound and its losses need them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.arguments import described

from ..arguments import per_chain, whole_number
from ..schedules import Array, Schedule, VariancePreserving, posterior

Index: TypeAlias = npt.NDArray[np.int64]


class ReverseChain:
    """The Gaussian steps of DDPM on training steps ``t`` ``[K]``, increasing, and their posteriors [Ho 2020, eq. 7].

    With s the step before t, the data before the first, all ``[K]`` float64: on_D, the coefficient of x_0 in the mean
    of q(x_s | x_t, x_0) (that of x_t is the model's own, so it drops out of every KL); small = log beta~ and
    large = log beta, recomputed for the steps left [Nichol & Dhariwal 2021, sec. 4]. beta~ of the first step is 0, so
    small has the second step's there, as in openai/guided-diffusion.

    Raises TypeError or ValueError for a schedule that is not vp, or steps that are not among its own or have no noise.
    """

    def __init__(self, schedule: Schedule, timesteps: Sequence[int] | None = None) -> None:
        if not isinstance(schedule, VariancePreserving):
            raise ValueError(
                f"schedule: got {schedule!r:.80}, expected a vp schedule: the bound is of its training steps"
            )
        if timesteps is not None and (not isinstance(timesteps, Sequence) or isinstance(timesteps, str)):
            raise TypeError(f"timesteps: got {described(timesteps)}, expected training steps, or None")
        steps = range(schedule.steps) if timesteps is None else [whole_number("timesteps", t) for t in timesteps]
        self.t = np.array(sorted(steps), dtype=np.int64)
        if not len(self.t) or len(set(steps)) < len(self.t) or self.t[0] < 0 or self.t[-1] >= schedule.steps:
            raise ValueError(
                f"timesteps: got {timesteps!r:.80}, expected different numbers from 0 to {schedule.steps - 1}"
            )
        self.alpha, self.sigma = schedule.levels(self.t.astype(np.float64))
        alpha_s, sigma_s = np.append(1.0, self.alpha[:-1]), np.append(0.0, self.sigma[:-1])
        with np.errstate(invalid="ignore"):  # sigma may be 0 at the first step
            _, self.on_D, fresh = posterior(self.alpha, self.sigma, alpha_s, sigma_s)
        if (still := ~(fresh > 0)).any():
            raise ValueError(f"timesteps: got {self.t[still][0]}, which adds no noise, expected steps that do")
        self._beta_tilde = sigma_s**2 * fresh
        with np.errstate(divide="ignore"):
            self.large, self.small = np.log(self.sigma**2 * fresh), np.log(self._beta_tilde)
        self.small[0] = self.small[1] if len(self.t) > 1 else self.large[0]

    def __len__(self) -> int:
        return len(self.t)

    def log_optimal(self, x0_variance: Array | float) -> Array:
        """log sigma_*^2 ``[K]``, the variance of the least KL for e = E|x_0 - D|^2 / n at the steps [Bao 2022]:

        sigma_*^2 = beta~ + on_D^2 e; at the first step e itself, where x_s are the data (-inf if it is 0 there).
        """
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self._beta_tilde + self.on_D**2 * x0_variance))

    def log_variance(self, variance: str, k: Index, v: torch.Tensor | None) -> torch.Tensor | Array:
        """The model's log-variance at steps ``k`` ``[B]``: ``[B]`` if fixed, else like v, the network's second half.

        | variance | |
        |---|---|
        | posterior, beta | log beta~, log beta; both log beta~ of the second step at the first |
        | learned | v |
        | learned_range | f log beta + (1 - f) log beta~, f = (v + 1) / 2 [Nichol & Dhariwal 2021, eq. 15] |

        With the ideal D and ever more steps the bound converges to the exact value under beta if the data have a
        density, under posterior if they are atoms [Ho 2020, sec. 3.2]; a learned variance can serve both.
        """
        if variance == "posterior":
            return np.asarray(self.small[k])
        if variance == "beta":
            return np.asarray(np.where(k == 0, self.small[0], self.large[k]))
        assert v is not None, "the network's output was checked"
        if variance == "learned":
            return v
        low, high = (per_chain(torch.from_numpy(a[k]).to(v), v) for a in (self.small, self.large))
        return (low + high) / 2 + (high - low) / 2 * v
