"""Dual averaging of the step size towards an acceptance rate [Hoffman & Gelman 2014, section 3.2]."""

from __future__ import annotations

import torch

SHRINKAGE, DELAY, DECAY = 0.05, 10.0, 0.75  # gamma, t_0 and kappa of the paper


class DualAveraging:
    """The step sizes of a batch of chains, each adapted on its own.

    log step_m = mu - sqrt(m) / gamma H_m, H_m = (1 - 1 / (m + t_0)) H_(m-1) + (rate - a_m) / (m + t_0), with
    mu = log(10 step_0) and a_m the acceptance probability of transition m. ``final`` averages log step_m with weights
    m^-kappa. ``step`` ``[B]`` float64; ``rate``: the target acceptance.
    """

    def __init__(self, step: torch.Tensor, rate: float) -> None:
        self.step, self.rate, self._count = step, rate, 0
        self._aim, self._error, self._log = (10 * step).log(), torch.zeros_like(step), torch.zeros_like(step)

    def update(self, log_ratio: torch.Tensor) -> None:
        """Take the log acceptance ratios ``[B]`` of a transition of size ``step`` into account."""
        self._count += 1
        m = self._count
        probability = log_ratio.clamp(max=0).exp().nan_to_num(0.0)
        weight = 1 / (m + DELAY)
        self._error = (1 - weight) * self._error + weight * (self.rate - probability)
        log_step = self._aim - m**0.5 / SHRINKAGE * self._error
        self._log = torch.lerp(self._log, log_step, m**-DECAY)
        self.step = log_step.exp()

    @property
    def final(self) -> torch.Tensor:
        """The averaged step sizes ``[B]``."""
        return self._log.exp() if self._count else self.step
