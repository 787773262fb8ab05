"""Dual averaging of the step size towards an acceptance rate [Hoffman & Gelman 2014, section 3.2]."""

from __future__ import annotations

from typing import TypeAlias

import torch

SHRINKAGE, DELAY, DECAY = 0.05, 10.0, 0.75  # gamma, t_0 and kappa of the paper


Weight: TypeAlias = "float | torch.Tensor"


class DualAveraging:
    """The step sizes of a batch of chains, each adapted on its own.

    log step_m = mu - sqrt(m) / gamma H_m, H_m = (1 - 1 / (m + t_0)) H_(m-1) + (rate - a_m) / (m + t_0), with
    mu = log(ahead step_0) and a_m the acceptance probability of transition m. ``final`` averages log step_m with
    weights m^-kappa. ``step`` ``[B]`` float64; ``rate``: the target acceptance.
    """

    def __init__(self, step: torch.Tensor, rate: float, ahead: float = 10.0) -> None:
        self.step, self.rate, self._count = step, rate, 0
        self._aim, self._error, self._log = (ahead * step).log(), torch.zeros_like(step), torch.zeros_like(step)

    def update(self, log_ratio: torch.Tensor) -> None:
        """Take the log acceptance ratios ``[B]`` of a transition of size ``step`` into account."""
        self.take(log_ratio.clamp(max=0).exp().nan_to_num(0.0))

    def take(self, probability: torch.Tensor) -> None:
        """Take acceptance probabilities ``[B]`` float64 of a transition of size ``step`` into account."""
        self._count += 1
        self._take(probability, *_weights(self._count))

    def _take(self, probability: torch.Tensor, weight: Weight, gain: Weight, share: Weight) -> None:
        self._error = (1 - weight) * self._error + weight * (self.rate - probability)
        log_step = self._aim - gain * self._error
        self._log = torch.lerp(self._log, log_step, share)
        self.step = log_step.exp()

    @property
    def final(self) -> torch.Tensor:
        """The averaged step sizes ``[B]``."""
        return self._log.exp() if self._count else self.step


class DualAveragingEach(DualAveraging):
    """:class:`DualAveraging` of chains of which each is at a transition of its own; at most ``most`` transitions."""

    def __init__(self, step: torch.Tensor, rate: float, most: int) -> None:
        super().__init__(step, rate)
        self._counts = torch.zeros_like(step, dtype=torch.int64)
        numbers = torch.tensor([_weights(m) for m in range(1, most + 1)], dtype=torch.float64)
        self._weights = numbers.T.contiguous().to(step.device)

    def update_where(self, where: torch.Tensor, probability: torch.Tensor) -> None:
        """Take the acceptance probabilities ``[B]`` float64 of these chains' transitions ``[B]`` bool into account."""
        old = self._error, self._log, self.step
        self._take(probability, *self._weights[:, self._counts.clamp(max=self._weights.shape[1] - 1)])
        new = self._error, self._log, self.step
        self._error, self._log, self.step = (torch.where(where, a, b) for a, b in zip(new, old, strict=True))
        self._counts += where

    @property
    def final(self) -> torch.Tensor:
        return self._log.exp()


def _weights(m: int) -> tuple[float, float, float]:
    """Of transition m: 1 / (m + t_0), sqrt(m) / gamma and m^-kappa."""
    return 1 / (m + DELAY), m**0.5 / SHRINKAGE, m**-DECAY
