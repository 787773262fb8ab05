"""Tweedie's formula in any continuous exponential family, from the density of the observations.

For p(y | eta) = exp(eta . T(y) - psi(eta)) h(y) and any law of eta, the density of y alone is m(y), and

    log m(y) - log h(y) = log E[exp(eta . T(y) - psi(eta))]

is, as a function of T(y), the log-partition function of the posterior of eta: its derivatives in T are the posterior's
cumulants [Robbins 1956; Efron 2011, eq. 2.4 to 2.6, where T(y) = y].

| noise | eta | T(y) | log h(y), up to a constant |
|---|---|---|---|
| y = x + sigma z, z normal | x / sigma^2 | y | -abs(y)^2 / (2 sigma^2) |
| exponential with rate r | -r | y | 0 |
| Gamma with known shape a and rate r | -r | y | (a - 1) log y |
| Gamma with shape a and known rate r | a | log y | -r y - log y |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ulam_kernels.arguments import described
from ulam_kernels.tracing import outside_graphs
from ulam_kernels.validation import check_data

from ..estimation.autograd import PlainFormulas, derivative
from ..estimation.differences import check_derivative, direction_at
from ..evaluation import check_like, in_eval_mode, modules_in
from ..gradients import check_no_gradient, plain
from .directions import Directions, check_few, check_order, check_wide, each_direction, units

Function = Callable[[torch.Tensor], torch.Tensor]


@outside_graphs
def natural(
    log_marginal: Function,
    y: torch.Tensor,
    *,
    log_base: Function,
    statistic: Function | None = None,
    order: int = 1,
    v: Directions | None = None,
) -> torch.Tensor:
    """The k-th cumulant of every element of eta given y, like y: the mean for ``order`` 1, the variance for 2.
    [Robbins 1956; Efron 2011, eq. 2.4 to 2.6.]

    With directions v, one or k of them, the cumulant kappa_k[v_1' eta, ..., v_k' eta] of :func:`cumulant`, ``[B]``.

    Above order 1 without v, and for a statistic that mixes elements, the passes are as many as a chain has elements.
    Derivatives are automatic, in reverse mode, and compared with finite differences at the first use of a module, and
    at every use of a plain function. Modules are called in eval mode. Results have the dtype of y and no gradient.

    Args:
        log_marginal: log m, a function of y ``[B, *shape]`` to ``[B]``, up to a constant: a density's, or a network.
        y: observations inside the support, ``[B, *shape]``; ``[B]`` for scalars.
        log_base: log h, a function of y to ``[B]`` (the sum over independent elements), up to a constant.
        statistic: T, an invertible differentiable function of y to the shape of y, element by element or not; y itself
            by default. One that mixes elements takes at most 4096 of them.
        order: k, 1 to 10.
        v: directions in the space of eta, like y.

    Raises:
        TypeError, ValueError: an invalid argument; a function that hides its dependence on y or has no derivative, is
            not finite at y, or (statistic) is not invertible there.
        RuntimeError: y or v requires grad while gradients are recorded.
    """
    for name, function in (("log_marginal", log_marginal), ("log_base", log_base), ("statistic", statistic)):
        if not callable(function) and (name != "statistic" or function is not None):
            raise TypeError(f"{name}: got {described(function)}, expected a function of y")
    if isinstance(v, (tuple, list)):
        check_no_gradient("tweedie.natural", **{f"v[{k}]": each for k, each in enumerate(v)})
    check_no_gradient("tweedie.natural", y=y, v=v)
    _check_observations(y)
    order = check_order(order)
    vs = None if v is None else each_direction(v, y, order)
    functions = {"log_marginal": log_marginal, "log_base": log_base} | ({"statistic": statistic} if statistic else {})
    modules = [module for function in functions.values() for module in modules_in(function)]
    with torch.inference_mode(False), torch.enable_grad(), in_eval_mode(modules):
        at = plain(y).clone().requires_grad_()
        for name, function in functions.items():
            _check_function(name, function, at.detach(), order)
        posterior = _Posterior(functions, at, order)
        return posterior.along(vs) if vs else posterior.of_elements()


class _Posterior:
    """Derivatives of log m - log h at y in the statistic."""

    def __init__(self, functions: dict[str, Function], y: torch.Tensor, order: int) -> None:
        self._y, self._order = y, order
        with PlainFormulas():
            values = {name: function(y) for name, function in functions.items()}
        self._slope = derivative((values["log_marginal"] - values["log_base"]).sum(), y, graph=order > 1)
        self._to_y, self._to_eta = _inverse_jacobian(values.get("statistic", y), y)

    def of_elements(self) -> torch.Tensor:
        """The cumulant of every element, like y."""
        if self._order == 1:
            return self._to_eta(self._slope).detach()
        rows = [self.along([unit.clone()] * self._order) for unit in units(self._y.detach())]
        return torch.stack(rows, 1).view_as(self._y)

    def along(self, vs: list[torch.Tensor]) -> torch.Tensor:
        """The cumulant along these directions, ``[B]``; a derivative along v in T is one along J^-1 v in y."""
        slope, *others = self._slope, *vs
        for k, v in enumerate(others):
            value = (slope * self._to_y(v)).reshape(len(v), -1).sum(1)
            slope = derivative(value.sum(), self._y, graph=True) if k + 1 < len(others) else slope
        return value.detach()


def _inverse_jacobian(T: torch.Tensor, y: torch.Tensor) -> tuple[Function, Function]:
    """v to J^-1 v and g to J^-T g for the Jacobian J of the statistic T of y, differentiable in y."""
    right = "an invertible function of y"
    diagonal = derivative(T.sum(), y, graph=True)
    if not diagonal.isfinite().all():
        raise ValueError(f"statistic: got a derivative that is not finite, expected {right}")
    if all(torch.equal(derivative((T * probe).sum(), y), probe * diagonal) for probe in _probes(y)):
        if not diagonal.all():
            raise ValueError(f"statistic: got a derivative of 0, expected {right}")
        return (lambda v: v / diagonal), (lambda g: g / diagonal)
    check_wide(y)
    check_few(y, "y", "a statistic that acts element by element for more")
    flat = T.reshape(len(y), -1)
    rows = [derivative(flat[:, i].sum(), y, graph=True).reshape(len(y), -1) for i in range(flat.shape[1])]
    J = torch.stack(rows, 1)
    if (torch.linalg.matrix_rank(J.detach().double()) < J.shape[1]).any():
        raise ValueError(f"statistic: got a singular Jacobian, expected {right}")

    def solve(matrix: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.linalg.solve(matrix, v.reshape(len(y), -1, 1))
        return found.view_as(y)

    return (lambda v: solve(J, v)), (lambda g: solve(J.mT, g))


def _probes(y: torch.Tensor) -> Iterator[torch.Tensor]:
    """Factors that tell the elements of a chain apart, so that they show whether a statistic mixes them.

    Two elements that have the same factor in all of them, as one in a million pairs has, look like one. They are powers
    of 2, so products with them are exact.
    """
    for k in range(4):
        drawn = torch.randint(0, 32, y.shape, generator=torch.Generator().manual_seed(k))
        yield torch.exp2(drawn // 2 - 8.0).mul(1 - drawn % 2 * 2).to(y)


def _check_observations(y: object) -> None:
    if not isinstance(y, torch.Tensor) or not y.is_floating_point():
        raise TypeError(f"y: got {described(y)}, expected a float tensor [B, *shape]")
    check_data(y, "y")
    if not y.dim() or not y.numel():
        raise ValueError(f"y: got shape {list(y.shape)}, expected [B, *shape], not empty")


def _check_function(name: str, function: Function, y: torch.Tensor, order: int) -> None:
    """Raises TypeError or ValueError unless a function of y has the right shape, finite values, and its derivatives."""
    shape, why = (y.shape, " like y") if name == "statistic" else (y.shape[:1], ", one an observation")

    def checked(at: torch.Tensor) -> torch.Tensor:
        return check_like(function(at), shape, name, why=why)

    wrong = ~checked(y.clone().requires_grad_()).detach().isfinite()
    if wrong.any():
        where = int(wrong.nonzero()[0, 0])
        raise ValueError(f"{name}: got a value that is not finite at y[{where}], expected y inside the support")
    step = direction_at(y)
    step = torch.where(y == 0, step, step.sign() * torch.minimum(step.abs(), y.abs()))  # to stay in the support
    check_derivative(checked, y, function, name, step, order)
