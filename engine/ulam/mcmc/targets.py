"""What chains sample: an energy, a score, a denoiser at a fixed noise level."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from ..conditioning import Cond, Shared, check_cond
from ..denoiser import Denoiser
from ..estimation.estimator import Estimator, Sigma, levels
from ..evaluation import in_eval_mode
from ..gradients import without_graph
from ..programs.predictions import eps_coefficients, sigma_data_of
from ..samplers.markov.chain_state import Evaluate, Evaluated


class Target(Protocol):
    """A density p(x) = exp(-E(x)) / Z given by its score s = -grad E, and mostly by E itself."""

    has_energy: ClassVar[bool]

    def bind(self, x: torch.Tensor, rows: torch.Tensor, chains: int, backend: str | None) -> Evaluate:
        """The function of the states of these rows of a run of ``chains`` chains; x is like them."""
        ...


class Energy:
    """E(x) given by any differentiable torch function: x ``[B, *shape]`` to one number a chain, ``[B]``.

    The score -grad E is autograd's, of the sum over chains: each chain's own as long as ``fn`` treats rows
    independently. It is called once a step of a chain (more often inside HMC's leapfrog), in order, so it may draw a
    minibatch of its own at each call; an ``nn.Module`` is called in eval mode.

    Args:
        fn: the energy, ``fn(x, **cond)``.
        score: ``score(x, **cond)`` like x, in place of autograd; ``fn`` is then called only where a number is needed.
        cond: further arguments, tensors with the run's chains as leading dimension (or :func:`ulam.shared`).

    Raises:
        TypeError: what cannot be called. In a run: TypeError or ValueError for an energy of the wrong shape or type,
        or one that does not depend on x differentiably.
    """

    has_energy: ClassVar[bool] = True

    def __init__(
        self, fn: Callable[..., Any], score: Callable[..., Any] | None = None, *, cond: Cond | None = None
    ) -> None:
        _check_callable("fn", fn)
        if score is not None:
            _check_callable("score", score)
        self.fn, self.given_score, self.cond = fn, score, cond

    def __repr__(self) -> str:
        return f"Energy({_name(self.fn)})"

    def bind(self, x: torch.Tensor, rows: torch.Tensor, chains: int, backend: str | None) -> Evaluate:
        cond, modules = _of_rows(self.cond, rows, chains, x.device), _modules(self.fn)
        minus: torch.Tensor | None = None  # what the gradient is multiplied by: the score is minus the gradient

        def by_autograd(at: torch.Tensor, wanted: bool) -> Evaluated:
            nonlocal minus
            with torch.inference_mode(False), torch.enable_grad(), in_eval_mode(modules):
                leaf = at.detach().requires_grad_()
                energy = _checked_energy(self.fn(leaf, **cond), leaf)
                if not energy.requires_grad:
                    raise TypeError(NO_GRADIENT)
                if minus is None or minus.dtype != energy.dtype:
                    minus = torch.full_like(energy, -1.0, requires_grad=False)
                (score,) = torch.autograd.grad(energy, leaf, minus, allow_unused=True)
            if score is None:
                raise TypeError(NO_GRADIENT)
            return energy.detach().double() if wanted else None, score.to(at.dtype).contiguous()

        def as_given(at: torch.Tensor, wanted: bool) -> Evaluated:
            given = self.given_score
            assert given is not None
            with torch.no_grad(), in_eval_mode(modules):
                energy = _checked_energy(self.fn(at, **cond), at).double() if wanted else None
                return energy, checked_score(without_graph(lambda x: given(x, **cond), at), at)

        return by_autograd if self.given_score is None else as_given

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """-E(x) ``[B]``: log p up to the constant log Z."""
        return -_checked_energy(self.fn(x, **_of_rows(self.cond, torch.arange(len(x)), len(x), x.device)), x)


class Score:
    """s(x) = grad log p(x) given by a function ``fn(x, **cond)`` of x ``[B, *shape]``, like x; no energy.

    For the samplers without a Metropolis test: ULA, SGLD and BAOAB. ``cond`` as in :class:`Energy`.
    """

    has_energy: ClassVar[bool] = False

    def __init__(self, fn: Callable[..., Any], *, cond: Cond | None = None) -> None:
        _check_callable("fn", fn)
        self.fn, self.cond = fn, cond

    def __repr__(self) -> str:
        return f"Score({_name(self.fn)})"

    def bind(self, x: torch.Tensor, rows: torch.Tensor, chains: int, backend: str | None) -> Evaluate:
        cond, modules = _of_rows(self.cond, rows, chains, x.device), _modules(self.fn)

        def evaluate(at: torch.Tensor, wanted: bool) -> Evaluated:
            with in_eval_mode(modules):
                return None, checked_score(without_graph(lambda x: self.fn(x, **cond), at), at)

        return evaluate


class DenoiserScore:
    """The score of the noised density p_sigma, by Tweedie's formula: s(y) = (E[x | y] - y) / sigma^2, y = x + sigma z.

    Robbins 1956; Efron 2011. Any :class:`ulam.Denoiser` serves: one that predicts the score gives it without the
    detour through E[x | y], and no prediction loses digits at small sigma. Where a schedule has alpha below 1, y is
    read as x_t = alpha_t y (see :class:`ulam.estimation.estimator.Estimator`).

    Args:
        denoiser: the trained network.
        sigma: the noise level, one number or one a chain of the run.
        cond: further arguments of the network, as in :class:`Energy`.

    Levels that fall during a run are :class:`ulam.samplers.AnnealedLangevin` with :func:`ulam.sample`.
    """

    has_energy: ClassVar[bool] = False

    def __init__(self, denoiser: Denoiser, sigma: Sigma, cond: Cond | None = None) -> None:
        if not isinstance(denoiser, Denoiser):
            raise TypeError(f"denoiser: got {type(denoiser).__name__}, expected a ulam.Denoiser")
        self.denoiser, self.sigma, self.cond = denoiser, sigma, cond

    def __repr__(self) -> str:
        return f"DenoiserScore({_name(self.denoiser.net)}, sigma={self.sigma})"

    def bind(self, x: torch.Tensor, rows: torch.Tensor, chains: int, backend: str | None) -> Evaluate:
        sigma = levels(torch.empty(chains, 1), self.sigma)[rows.cpu().numpy()]
        score = _Tweedie(self.denoiser, x, sigma, _of_rows(self.cond, rows, chains, x.device))

        def evaluate(at: torch.Tensor, wanted: bool) -> Evaluated:
            return None, checked_score(without_graph(score, at), at)

        return evaluate


class _Tweedie(Estimator):
    """(D(y, sigma) - y) / sigma^2 = -eps / sigma, with eps = ex x_t + em m: coefficients without cancellation."""

    def __init__(self, denoiser: Denoiser, y: torch.Tensor, sigma: Sigma, cond: Mapping[str, torch.Tensor]) -> None:
        super().__init__(denoiser, y, sigma, cond)
        schedule = denoiser.schedule
        time = schedule.t_of_sigma(self.sigma)
        alpha, noise = schedule.levels(np.rint(time) if denoiser.time == "index" else time)
        ex, em = eps_coefficients(denoiser.predicts, alpha, noise, sigma_data_of(schedule, denoiser.predicts))
        self._on_y, self._on_m = self.per_chain(-ex * alpha / self.sigma), self.per_chain(-em / self.sigma)


NO_GRADIENT = (
    "target: the energy has no gradient with respect to x; compute it from x by differentiable torch operations, "
    "or give score="
)


def checked_score(score: object, x: torch.Tensor) -> torch.Tensor:
    """``score`` contiguous and of x's dtype. Raises TypeError or ValueError unless it is shaped like x."""
    if not isinstance(score, torch.Tensor) or not score.is_floating_point():
        raise TypeError(f"target: the score is {_kind(score)}, expected a float tensor {list(x.shape)}")
    if score.shape != x.shape:
        raise ValueError(f"target: the score has shape {list(score.shape)}, expected {list(x.shape)} like x")
    return score.detach().to(x.dtype).contiguous()


def _checked_energy(energy: object, x: torch.Tensor) -> torch.Tensor:
    if not isinstance(energy, torch.Tensor) or not energy.is_floating_point():
        raise TypeError(f"target: the energy is {_kind(energy)}, expected a float tensor [{len(x)}]")
    if energy.shape != x.shape[:1]:
        raise ValueError(f"target: the energy has shape {list(energy.shape)}, expected [{len(x)}], one number a chain")
    return energy


def _of_rows(cond: Cond | None, rows: torch.Tensor, chains: int, device: torch.device) -> dict[str, torch.Tensor]:
    """The further arguments of these rows."""
    checked = check_cond("cond", cond, chains)
    return {
        key: value.tensor.to(device) if isinstance(value, Shared) else value[rows.to(value.device)].to(device)
        for key, value in checked.items()
    }


def _modules(fn: object) -> list[torch.nn.Module]:
    return list(fn.modules()) if isinstance(fn, torch.nn.Module) else []


def _check_callable(name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a function of x [chains, *shape]")


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"


def _name(value: object) -> str:
    return getattr(value, "__name__", type(value).__name__)
