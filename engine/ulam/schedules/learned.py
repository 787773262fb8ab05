"""Schedules that are learned with the network [Kingma 2021]."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NoReturn, TypeAlias, cast

import numpy as np
import torch

from ulam_kernels.arguments import described
from ulam_kernels.tracing import readable
from ulam_kernels.validation import check_real, check_tensor

from .arguments import Array, Numbers, in_range
from .kinds import Continuous
from .tensors import Levels, only_inside

Gamma: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
RANGE = "learned schedules run from 0 (data) to 1 (noise)"
HALVINGS = 64  # of [0, 1]: to the last bit of a float64


@dataclass(frozen=True, repr=False, eq=False)
class Learned(Continuous):
    """alpha_t^2 = sigmoid(-gamma(t)), sigma_t^2 = sigmoid(gamma(t)): variance preserving, gamma = -log snr.

    For training: its levels are tensors, with gradients to t and to gamma's parameters, computed anew at every call.
    What keeps numbers of a schedule (samplers, likelihoods, estimates) takes :meth:`frozen`.
    """

    gamma: Gamma
    kind: ClassVar[str] = "learned"

    def levels(self, t: Numbers | torch.Tensor) -> Levels:  # type: ignore[override]
        """(alpha_t, sigma_t) float64 of a tensor t in [0, 1]. Raises TypeError for what is no tensor."""
        if not isinstance(t, torch.Tensor):
            self._refuse()
        check_tensor(t, "t")
        check_real(t, "t")
        if readable(t):
            in_range("t", t.detach(), 0, 1, RANGE)
        return self._of_tensor(t.double())

    def _of_tensor(self, t: torch.Tensor) -> Levels:
        g = gamma_at(self.gamma, t)
        return cast(Levels, only_inside((t >= 0) & (t <= 1), torch.sigmoid(-g).sqrt(), torch.sigmoid(g).sqrt()))

    def frozen(self) -> Frozen:
        """The schedule as it is now, with a copy of gamma: a constant, for samplers and all else.

        Raises ValueError where gamma does not increase.
        """
        gamma = copy.deepcopy(self.gamma)
        values = _numbers(gamma, np.linspace(0, 1, 257))
        if not (np.isfinite(values).all() and (np.diff(values) > 0).all()):
            raise ValueError("gamma: got values that do not increase from t = 0 to 1, expected -log snr, which does")
        return Frozen(f"frozen(<sha256 {hashlib.sha256(values.tobytes()).hexdigest()[:16]}>)", gamma)

    def _on_host(self, t: Numbers | torch.Tensor) -> NoReturn:
        self._refuse()

    def t_of_sigma(self, sigma: Numbers) -> NoReturn:
        self._refuse()

    def grid(self, steps: int) -> NoReturn:
        self._refuse()

    def init_scale(self, t: float) -> float:
        """1: for data of unit variance every x_t has unit variance."""
        return 1.0

    def _refuse(self) -> NoReturn:
        raise TypeError("schedule: got a learned one, whose numbers change, expected its .frozen() (or a tensor t)")


@dataclass(frozen=True, repr=False)
class Frozen(Continuous):
    """A :class:`Learned` schedule at one moment. Its grid is uniform in t, from 1 to 0."""

    gamma: Gamma = field(compare=False)
    kind: ClassVar[str] = "learned"

    def _on_host(self, t: Numbers | torch.Tensor) -> tuple[Array, Array]:
        g = _numbers(self.gamma, in_range("t", t.detach() if isinstance(t, torch.Tensor) else t, 0, 1, RANGE))
        alpha, sigma = (torch.sigmoid(torch.from_numpy(np.array(side))).sqrt().numpy() for side in (-g, g))
        return alpha[()], sigma[()]

    _of_tensor = Learned._of_tensor

    def t_of_sigma(self, sigma: Numbers) -> Array:
        ends = _numbers(self.gamma, np.array([0.0, 1.0]))
        low, high = np.exp(ends / 2)
        ratio = in_range("sigma", sigma, low, high, "the range of sigma/alpha of this schedule")
        wanted, below, above = 2 * np.log(ratio), np.zeros_like(ratio), np.ones_like(ratio)
        for _ in range(HALVINGS):
            middle = (below + above) / 2
            under = _numbers(self.gamma, middle) < wanted
            below, above = np.where(under, middle, below), np.where(under, above, middle)
        return above[()]

    def grid(self, steps: int) -> Array:
        return np.linspace(1, 0, steps)

    def init_scale(self, t: float) -> float:
        """1, as :meth:`Learned.init_scale`."""
        return 1.0


def learned(gamma: Gamma) -> Learned:
    """alpha_t^2 = sigmoid(-gamma(t)) and sigma_t^2 = sigmoid(gamma(t)), t in [0, 1] [Kingma 2021, eq. 3].

    gamma: a function or module from t ``[B]`` to -log snr ``[B]``, increasing; a module is called in its own precision.
    Train on :func:`ulam.objectives.continuous_bound`; sample with ``.frozen()``. Raises TypeError for another gamma.
    """
    if not callable(gamma):
        raise TypeError(f"gamma: got {described(gamma)}, expected a function of t")
    return Learned(f"learned({type(gamma).__name__})", gamma)


def gamma_at(gamma: Gamma, t: torch.Tensor) -> torch.Tensor:
    """gamma(t), float64 like t, in the precision of gamma's parameters where it has any."""
    parameters = gamma.parameters() if isinstance(gamma, torch.nn.Module) else iter(())
    dtype = next((p.dtype for p in parameters if p.is_floating_point()), torch.float64)
    g = gamma(t.to(dtype))
    if not isinstance(g, torch.Tensor) or g.shape != t.shape:
        raise ValueError(f"gamma: got {described(g)}, expected a tensor {list(t.shape)} like t")
    return g.double()


def _numbers(gamma: Gamma, t: Array) -> Array:
    with torch.no_grad():
        return gamma_at(gamma, torch.from_numpy(np.array(t)).reshape(-1)).reshape(np.shape(t)).numpy()
