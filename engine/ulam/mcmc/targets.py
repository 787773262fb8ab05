"""What chains sample: an energy, a score, or a denoiser at a fixed noise level."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from ulam_kernels.arguments import choice, described
from ulam_kernels.tracing import transformed

from ..arguments import check_states, whole_number
from ..conditioning import Cond, Shared, check_cond
from ..denoiser import Denoiser
from ..estimation.estimator import Estimator, Sigma, noise_levels
from ..evaluation import check_like, in_eval_mode, modules_in
from ..gradients import plain, without_graph
from ..programs.predictions import eps_coefficients
from ..samplers.mcmc.chain_state import Evaluate, Evaluated
from .energy_kernel import CHOICES, EnergyKernel
from .pieces import Pieces

MOST_ROWS = 1 << 20  # at a time


class Target(Protocol):
    """A density p(x) = exp(-E(x)) / Z given by its score s = -grad E and, where ``has_energy``, by E.

    One that knows the shape of its states has it as ``shape``.
    """

    has_energy: ClassVar[bool]

    def bind(self, x: torch.Tensor, rows: torch.Tensor, chains: int, backend: str | None) -> Evaluate:
        """Energy and score as a function of the states of these rows of a run of ``chains`` chains; x is like them.

        Called for each batch, and by NUTS for parts of a batch whose other chains are done; a target that has a
        ``rebind`` of the same arguments has that called for the parts.
        """
        ...


class Energy:
    """An energy E(x) given by any differentiable torch function of x ``[B, *shape]``, one number a chain ``[B]``.

    The score -grad E is autograd's, of the sum over chains: each chain gets its own as long as ``fn`` treats rows
    independently. ``fn`` is called once per step (more often inside HMC's leapfrog), in order, so it may draw a
    minibatch of its own at each call; an ``nn.Module`` is called in eval mode. Where some chains are done NUTS calls it
    for the others, with ``cond`` of theirs (``slots=`` of the run keeps batches whole).

    Args:
        fn: the energy, ``fn(x, **cond)``.
        score: ``score(x, **cond)`` like x, in place of autograd; ``fn`` is then called only where the energy is needed.
        cond: further arguments, tensors whose first dimension is the run's chains (or :func:`ulam.shared`).
        dtype: float32 or float64, in which ``fn`` and ``score`` are given x, whatever that of the states; by default
            that of the states. An energy of 10^4 has neighbours 0.001 apart in float32. ``cond`` and what ``fn`` refers
            to stay in theirs.
        rows: in a run call ``fn`` for so many chains at a time, the last of them repeated where fewer are left: a
            gradient then needs the memory of so many, and a chain has the same bits in any company also where ``fn``
            rounds by the size of its batch; by the place in it too, as torch's cosh, sinh, sigmoid and softplus do on
            some processors, where ``rows`` is a multiple of 32. None calls it for all chains at once.
        chain_kernel: "on" evaluates energy and score of small networks on the CPU in one native call in float32, by the
            layers' own reverse pass in place of autograd (:func:`ulam.chain_kernel.compile_energy`); bits then differ
            from autograd's by rounding, and do not depend on the batch. "auto" does so where the energy fits;
            ``report["chain_kernel"]`` of a run says whether it did, or why not. "off", the default: autograd.

    Raises:
        TypeError, ValueError: an argument that is not callable, another dtype, no whole number of rows. In a run:
            TypeError or ValueError for an energy of the wrong shape or dtype, or one that is not differentiable in x;
            TypeError, which names the operation, for one that ``chain_kernel="on"`` does not hold.
    """

    has_energy: ClassVar[bool] = True

    def __init__(
        self,
        fn: Callable[..., Any],
        score: Callable[..., Any] | None = None,
        *,
        cond: Cond | None = None,
        dtype: torch.dtype | None = None,
        rows: int | None = None,
        chain_kernel: str = "off",
    ) -> None:
        _check_callable("fn", fn)
        if score is not None:
            _check_callable("score", score)
        if dtype is not None and (not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.float64)):
            raise ValueError(f"dtype: got {described(dtype)}, expected torch.float32, torch.float64 or None")
        self.rows = None if rows is None else whole_number("rows", rows)
        if self.rows is not None and not 1 <= self.rows <= MOST_ROWS:
            raise ValueError(f"rows: got {rows}, expected 1 to {MOST_ROWS}, or None")
        self.fn, self.given_score, self.cond, self.dtype = fn, score, cond, dtype
        if choice(chain_kernel, "chain_kernel", CHOICES) != "off" and (score is not None or dtype is not None):
            given = "score" if score is not None else "dtype"
            raise ValueError(f"{given}: got one beside chain_kernel={chain_kernel!r}, expected None, or 'off'")
        self.energy_kernel = None if chain_kernel == "off" else EnergyKernel(fn, chain_kernel == "on")

    def __repr__(self) -> str:
        return f"Energy({name_of(self.fn)})"

    def bind(self, x: torch.Tensor, rows: torch.Tensor, chains: int, backend: str | None) -> Evaluate:
        kernel = self.energy_kernel
        if kernel is not None and (found := kernel.bind(x, rows, chains, self.cond, backend)) is not None:
            return found
        modules = modules_in((self.fn, self.given_score))

        def bound(some: torch.Tensor) -> Evaluate:
            return self._bound(_select_cond(self.cond, some, chains, x.device), modules)

        return bound(rows) if self.rows is None else Pieces(bound, rows, self.rows)

    def _bound(self, cond: Mapping[str, torch.Tensor], modules: list[torch.nn.Module]) -> Evaluate:
        minus: torch.Tensor | None = None  # -1 a chain: the score is minus the gradient

        def by_autograd(at: torch.Tensor, wanted: bool) -> Evaluated:
            nonlocal minus
            with torch.inference_mode(False), torch.enable_grad(), in_eval_mode(modules):
                leaf = at.detach().requires_grad_()
                energy = _checked_energy(self.fn(self._in_dtype(leaf), **cond), leaf)
                if not energy.requires_grad:
                    raise TypeError(NO_GRADIENT.format("target"))
                if minus is None or minus.dtype != energy.dtype:
                    minus = torch.full_like(energy, -1.0, requires_grad=False)
                (score,) = torch.autograd.grad(energy, leaf, minus, allow_unused=True)
            if score is None:
                raise TypeError(NO_GRADIENT.format("target"))
            return energy.detach().double() if wanted else None, score.to(at.dtype).contiguous()

        def as_given(at: torch.Tensor, wanted: bool) -> Evaluated:
            given = self.given_score
            assert given is not None
            with torch.no_grad(), in_eval_mode(modules):
                energy = _checked_energy(self.fn(self._in_dtype(at), **cond), at).double() if wanted else None
                return energy, checked_score(without_graph(lambda x: given(self._in_dtype(x), **cond), at), at)

        return by_autograd if self.given_score is None else as_given

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """E(x) ``[B]`` of x ``[B, *shape]``, what ``fn`` gives."""
        return _checked_energy(self.fn(self._in_dtype(x), **self._cond_like(x)), x, "fn")

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """-E(x) ``[B]``: log p(x) + log Z, the log-density but for the constant log Z, which is not known."""
        return -self(x)

    def score(self, x: torch.Tensor) -> torch.Tensor:
        """s(x) = -grad E(x) = grad log p(x), like x ``[B, *shape]``; log Z is not in it.

        Where gradients are recorded it is differentiable any number of times, in x and in the parameters of ``fn``, so
        that every loss of a score trains an energy: ``implicit_score_matching(energy.score, x)``. It goes through
        ``torch.func`` and ``torch.compile``. A module runs in the mode that it is in.

        Raises TypeError or ValueError for an energy of the wrong shape or dtype, or without a gradient in x.
        """
        return self._score(x, self._cond_like(x))

    def score_of_rows(self, x: torch.Tensor, rows: torch.Tensor, chains: int) -> torch.Tensor:
        """:meth:`score` of these rows of a run of ``chains`` chains, a module in eval mode: as differentiable as it."""
        with in_eval_mode(modules_in((self.fn, self.given_score))):
            return self._score(x, _select_cond(self.cond, rows, chains, x.device))

    def _score(self, x: torch.Tensor, cond: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if self.given_score is not None:
            score = self.given_score(self._in_dtype(x), **cond)
            return checked_float(score, x.shape, "scores", " like x", "score").to(x.dtype)

        def total(at: torch.Tensor) -> torch.Tensor:
            energy = _checked_energy(self.fn(self._in_dtype(at), **cond), at, "fn")
            if not energy.requires_grad:
                raise TypeError(NO_GRADIENT.format("fn"))
            return energy.sum()

        gradient: torch.Tensor
        if torch.compiler.is_compiling() or transformed() is not None:
            gradient = torch.func.grad(total)(x)
            return -gradient
        if torch.is_grad_enabled():
            with suppress(RuntimeError):  # such as of an autograd.Function that torch.func does not take
                gradient = torch.func.grad(total)(x)  # requires grad only where x or a parameter does
                if gradient.any():  # else x may be hidden by a leaf made inside
                    return -gradient
        return _by_autograd(total, x)

    def _in_dtype(self, x: torch.Tensor) -> torch.Tensor:
        """x in the dtype that the functions are given."""
        return x if self.dtype is None else x.to(self.dtype)

    def _cond_like(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        check_states(x)
        return {} if self.cond is None else _select_cond(self.cond, torch.arange(len(x)), len(x), x.device)


def _by_autograd(total: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """-grad total(x), differentiable where gradients are recorded."""
    recorded = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        at = x if recorded and x.requires_grad else plain(x).requires_grad_()
        (gradient,) = torch.autograd.grad(total(at), at, create_graph=recorded, allow_unused=True)
    if gradient is None:
        raise TypeError(NO_GRADIENT.format("fn"))
    return -gradient if not recorded or x.requires_grad or _has_graph(total, x) else -gradient.detach()


def _has_graph(total: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> bool:
    """Whether an energy requires grad where x does not: it has parameters that do."""
    try:
        return total(x.detach()).requires_grad
    except TypeError:
        return False


class Score:
    """A score s(x) = grad log p(x), like x, given by a function ``fn(x, **cond)`` of x ``[B, *shape]``; no energy.

    For samplers without a Metropolis test: ULA, SGLD and BAOAB. ``cond``: see :class:`Energy`. Raises TypeError for an
    ``fn`` that is not callable; in a run, TypeError or ValueError for a score that is not shaped like x.
    """

    has_energy: ClassVar[bool] = False

    def __init__(self, fn: Callable[..., Any], *, cond: Cond | None = None) -> None:
        _check_callable("fn", fn)
        self.fn, self.cond = fn, cond

    def __repr__(self) -> str:
        return f"Score({name_of(self.fn)})"

    def bind(self, x: torch.Tensor, rows: torch.Tensor, chains: int, backend: str | None) -> Evaluate:
        cond, modules = _select_cond(self.cond, rows, chains, x.device), modules_in(self.fn)

        def evaluate(at: torch.Tensor, wanted: bool) -> Evaluated:
            with in_eval_mode(modules):
                return None, checked_score(without_graph(lambda x: self.fn(x, **cond), at), at)

        return evaluate


class DenoiserScore:
    """The score of the noised density p_sigma, by Tweedie's formula: s(y) = (E[x | y] - y) / sigma^2, y = x + sigma z.

    [Robbins 1956; Efron 2011.] Any :class:`ulam.Denoiser` serves: one that predicts the score gives it without the
    detour through E[x | y], and no prediction loses digits at small sigma. Where a schedule has alpha below 1, y is
    read as x_t = alpha_t y (see :class:`ulam.estimation.estimator.Estimator`). For noise levels that fall during a run
    use :class:`ulam.samplers.AnnealedLangevin` with :func:`ulam.sample`.

    With a data term l chains sample p_sigma(y) exp(l(y)) / Z, such as the posterior given an observation of y, whose
    log-likelihood l is: s(y) + grad l(y).

    Args:
        denoiser: the trained network.
        sigma: the noise level, one number or one a chain of the run.
        cond: further arguments of the network, see :class:`Energy`.
        data_term: a function of the chains' states y ``[B, *shape]`` (not of x_t = alpha_t y): l(y), one number a chain
            ``[B]``, which autograd differentiates, or grad l(y), like y, which is added as it is.

    Raises:
        TypeError: a denoiser that is not one. In a run: TypeError or ValueError for the other arguments.
    """

    has_energy: ClassVar[bool] = False

    def __init__(
        self,
        denoiser: Denoiser,
        sigma: Sigma,
        cond: Cond | None = None,
        *,
        data_term: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        if not isinstance(denoiser, Denoiser):
            raise TypeError(f"denoiser: got {described(denoiser)}, expected a ulam.Denoiser")
        if data_term is not None:
            _check_callable("data_term", data_term)
        self.denoiser, self.sigma, self.cond, self.data_term = denoiser, sigma, cond, data_term

    def __repr__(self) -> str:
        return f"DenoiserScore({name_of(self.denoiser.net)}, sigma={self.sigma})"

    def bind(self, x: torch.Tensor, rows: torch.Tensor, chains: int, backend: str | None) -> Evaluate:
        sigma = noise_levels(torch.empty(chains, 1), self.sigma)[rows.cpu().numpy()]
        score = _Tweedie(self.denoiser, x, sigma, _select_cond(self.cond, rows, chains, x.device))

        def evaluate(at: torch.Tensor, wanted: bool) -> Evaluated:
            found = checked_score(without_graph(score, at), at)
            return None, found if self.data_term is None else found + _gradient(self.data_term, at)

        return evaluate


def _gradient(data_term: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    """grad l, like the states ``at``: what ``data_term`` gives, or where that is one number a chain its gradient."""
    with torch.inference_mode(False), torch.enable_grad(), in_eval_mode(modules_in(data_term)):
        leaf = plain(at).requires_grad_()
        found = data_term(leaf)
        if not isinstance(found, torch.Tensor) or found.shape != at.shape[:1]:
            return checked_float(
                found, at.shape, "gradients", f" like y, or {list(at.shape[:1])}", "data_term"
            ).detach()
        found = checked_float(found, at.shape[:1], "log-likelihoods", "", "data_term")
        gradient = None
        if found.requires_grad:
            (gradient,) = torch.autograd.grad(found.sum(), leaf, allow_unused=True)
    if gradient is None:
        right = "one computed from y by differentiable torch operations, or its gradient"
        raise TypeError(f"data_term: got a log-likelihood without a gradient in y, expected {right}")
    return gradient


class _Tweedie(Estimator):
    """(D(y, sigma) - y) / sigma^2 = -eps / sigma, with eps = ex x_t + em m: coefficients without cancellation."""

    def __init__(self, denoiser: Denoiser, y: torch.Tensor, sigma: Sigma, cond: Mapping[str, torch.Tensor]) -> None:
        super().__init__(denoiser, y, sigma, cond)
        schedule = denoiser.schedule
        time = schedule.t_of_sigma(self.sigma)
        alpha, noise = schedule.levels(np.rint(time) if denoiser.told_steps else time)
        ex, em = eps_coefficients(denoiser.predicts, alpha, noise, schedule)
        self._on_y, self._on_m = (self._on_output(c / self.sigma) for c in (-ex * alpha, -em))


NO_GRADIENT = (
    "{}: got an energy without a gradient in x, expected one computed from x by differentiable torch operations "
    "(or give score=)"
)


def checked_score(score: object, x: torch.Tensor) -> torch.Tensor:
    """``score``, contiguous and in x's dtype. Raises TypeError or ValueError unless it is floats shaped like x."""
    return checked_float(score, x.shape, "scores", " like x").detach().to(x.dtype).contiguous()


def _checked_energy(energy: object, x: torch.Tensor, name: str = "target") -> torch.Tensor:
    return checked_float(energy, x.shape[:1], "energies", ", one number a chain", name)


def checked_float(value: object, shape: tuple[int, ...], kind: str, why: str, name: str = "target") -> torch.Tensor:
    tensor = check_like(value, shape, name, kind, why)
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: got {kind} of {tensor.dtype}, expected floats")
    return tensor


def _select_cond(cond: Cond | None, rows: torch.Tensor, chains: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Those of the further arguments that belong to these rows."""
    checked = check_cond("cond", cond, chains)
    return {
        key: value.tensor.to(device) if isinstance(value, Shared) else value[rows.to(value.device)].to(device)
        for key, value in checked.items()
    }


def _check_callable(name: str, value: object) -> None:
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"{name}: got {described(value)}, expected a function of x [chains, *shape]")


def name_of(value: object) -> str:
    return getattr(value, "__name__", type(value).__name__)
