"""Cumulants of every order against those of exact posteriors, and the networks and arguments that are refused."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

import network_zoo
from derivative_cases import VE, VP, state
from network_zoo import HIDING, Hidden
from posterior_cases import MIXTURE, SCHEDULES, SIGMA, Y, exact_cumulant, ideal
from ulam import Denoiser, tweedie

DIRECTIONS = list(torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64))
PREDICTIONS = [(name, predicts) for name in SCHEDULES for predicts in ("eps", "x0", "v", "flow", "score")]


def scale(vs) -> torch.Tensor:
    """The product of the posterior's standard deviations along these directions, ``[B]``."""
    return torch.stack([exact_cumulant([v, v]).sqrt() for v in vs]).prod(0)


# ----------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(("name", "predicts"), [*PREDICTIONS, ("edm", "raw")])
def test_cumulants_to_order_4_are_those_of_the_exact_posterior(name, predicts) -> None:
    denoiser = ideal(name, predicts)
    for order in (1, 2, 3, 4):
        mixed = DIRECTIONS[:order]
        for v, vs in ((mixed, mixed), (DIRECTIONS[0], [DIRECTIONS[0]] * order)):
            found, exact = tweedie.cumulant(denoiser, Y, SIGMA, v, order=order), exact_cumulant(vs)
            allowed = 1e-10 * (scale(vs) + (exact.abs() if order == 1 else 0))
            assert ((found - exact).abs() <= allowed).all()


def test_mixed_directions_may_come_in_any_order() -> None:
    denoiser = ideal("vp", "eps")
    for order in (2, 3, 4):
        found = [
            tweedie.cumulant(denoiser, Y, SIGMA, [DIRECTIONS[i] for i in places], order=order)
            for places in itertools.permutations(range(order))
        ]
        assert ((torch.stack(found) - found[0]).abs() <= 1e-12 * scale(DIRECTIONS[:order])).all()


def test_cumulants_above_4_are_those_of_a_bernoulli() -> None:
    """x = +-1 with equal odds: log-partition log cosh(y / sigma^2), whose derivatives are those of tanh."""
    sigma = torch.tensor([0.8, 1.3], dtype=torch.float64)
    y = torch.tensor([[0.3], [-0.7]], dtype=torch.float64)
    denoiser = Denoiser(lambda x, t: torch.tanh(x / sigma[: len(x), None] ** 2), VE, "x0")
    m = torch.tanh(y / sigma[:, None] ** 2)[:, 0]
    polynomial = torch.tensor([0.0, 1.0], dtype=torch.float64)  # of m, by powers; d tanh = 1 - tanh^2
    for order in range(1, 9):
        exact = sum(c * m**k for k, c in enumerate(polynomial))
        found = tweedie.cumulant(denoiser, y, sigma, torch.ones_like(y), order=order)
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
        slope = polynomial[1:] * torch.arange(1, len(polynomial))
        polynomial = torch.cat([slope, torch.zeros(2).double()]) - torch.cat([torch.zeros(2).double(), slope])


def test_the_cumulants_agree_with_the_other_estimates() -> None:
    denoiser, v = ideal("flow", "v"), DIRECTIONS[0]
    third = (tweedie.third_cumulant(denoiser, Y, SIGMA, v) * v).sum(1)
    torch.testing.assert_close(tweedie.cumulant(denoiser, Y, SIGMA, v, order=3), third, rtol=1e-12, atol=1e-14)
    covariance = tweedie.covariance(denoiser, Y, SIGMA)
    along = torch.einsum("bi,bij,bj->b", v, covariance, DIRECTIONS[1])
    torch.testing.assert_close(
        tweedie.cumulant(denoiser, Y, SIGMA, [v, DIRECTIONS[1]], order=2), along, rtol=1e-12, atol=1e-14
    )
    torch.testing.assert_close(
        covariance.diagonal(dim1=1, dim2=2), tweedie.covariance_diagonal(denoiser, Y, SIGMA), rtol=1e-12, atol=0
    )
    w, means, covariances = MIXTURE.parts(Y, SIGMA)
    off = (means - (w[..., None] * means).sum(1, keepdim=True))[..., None]
    exact = (w[..., None, None] * (covariances + off @ off.mT)).sum(1)
    torch.testing.assert_close(covariance, exact, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_the_covariance_is_the_symmetric_part_in_both_modes(mode) -> None:
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    denoiser = Denoiser(lambda x, t: (x.flatten(1) @ matrix.T).view_as(x), VE, "x0", derivatives=mode)
    y = torch.ones(2, 3, 2, dtype=torch.float64)
    expected = torch.stack([level**2 * (matrix + matrix.T) / 2 for level in (0.5, 2.0)])
    torch.testing.assert_close(tweedie.covariance(denoiser, y, torch.tensor([0.5, 2.0])), expected)
    u, v = torch.randn(2, 2, 3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = tweedie.cumulant(denoiser, y, 0.5, (u, v), order=2)  # the output along u
    torch.testing.assert_close(found, 0.25 * ((v.flatten(1) @ matrix.T) * u.flatten(1)).sum(1))


def test_conditioning_and_a_level_for_every_chain() -> None:
    def net(x, t, c):
        return torch.sin(x * c[:, None]) / t[:, None].to(x.dtype)

    y = torch.tensor([[0.3], [0.8], [-0.4]], dtype=torch.float64)
    c, sigma = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([0.5, 1.0, 2.0]).double()
    found = tweedie.cumulant(Denoiser(net, VE, "x0"), y, sigma, torch.ones_like(y), {"c": c}, order=4)
    torch.testing.assert_close(found, -(sigma**5) * c**3 * torch.cos(y[:, 0] * c), rtol=1e-12, atol=0)
    alone = tweedie.cumulant(Denoiser(net, VE, "x0"), y[1:2], 1.0, torch.ones(1, 1).double(), {"c": c[1:2]}, order=4)
    torch.testing.assert_close(alone, found[1:2], rtol=1e-12, atol=0)


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("how", HIDING)
@pytest.mark.parametrize("order", [2, 3, 4])
def test_a_network_that_hides_its_derivative_is_refused_at_every_order(how, order) -> None:
    torch.manual_seed(0)
    net = Hidden(HIDING[how], 0.3, False).double()
    y, v = state(net)
    with pytest.raises(TypeError, match=r"^net: got Hidden, whose .*derivative in x .* off finite"):
        tweedie.cumulant(Denoiser(net, VP, derivatives="reverse"), y, 0.5, v, order=order)


class WrongThird(torch.autograd.Function):
    """tanh whose second derivative is taken for a constant, as torch does in some norms."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        t = torch.tanh(x.detach())
        return g * (1 - t**2 - 2 * t * (1 - t**2) * (x - x.detach()))


def test_a_wrong_derivative_of_high_order_is_refused_where_it_begins() -> None:
    net = network_zoo.MLP(WrongThird.apply).double()
    right = network_zoo.MLP(F.tanh).double()
    right.load_state_dict(net.state_dict())
    y, v = state(net)
    for order in (2, 3):
        wrong = tweedie.cumulant(Denoiser(net, VP), y, 0.5, v, order=order)
        torch.testing.assert_close(wrong, tweedie.cumulant(Denoiser(right, VP), y, 0.5, v, order=order))
    for order in (4, 5):
        with pytest.raises(TypeError, match=r"^net: got MLP, whose third derivative in x .* off finite differences"):
            tweedie.cumulant(Denoiser(net, VP), y, 0.5, v, order=order)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda d: tweedie.cumulant(d, Y, 1.0, Y, order=0), "order: got 0, expected 1 to 10"),
        (lambda d: tweedie.cumulant(d, Y, 1.0, Y, order=11), "order: got 11, expected 1 to 10"),
        (lambda d: tweedie.cumulant(d, Y, 1.0, [Y, Y], order=3), "v: got 2 directions, expected 3"),
        (lambda d: tweedie.cumulant(d, Y, 1.0, [Y, Y[:2]], order=2), r"v\[1\]: got shape \[2, 3\], expected \[3, 3\]"),
        (lambda d: tweedie.cumulant(d, Y, 1.0, [Y, Y.float()], order=2), r"v\[1\]: got torch.float32, expected"),
        (lambda d: tweedie.cumulant(d, Y, 1.0, "v", order=2), "v: got 'v', expected a tensor like y, or a sequence"),
        (
            lambda d: tweedie.covariance(d, torch.ones(1, 3, 40, 40), 1.0),
            "y: got 4800 elements a chain, expected at most 4096: .*covariance_product",
        ),
    ],
)
def test_bad_input_is_named(call, named: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{named}"):
        call(Denoiser(lambda x, t: x, VE, predicts="x0"))


def test_cumulants_give_no_gradient() -> None:
    denoiser, v = Denoiser(lambda x, t: torch.tanh(x), VE, predicts="x0"), torch.ones_like(Y)
    assert not tweedie.cumulant(denoiser, Y, 1.0, v, order=3).requires_grad
    for given, name in (((Y.clone().requires_grad_(), v), "y"), ((Y, [v, v.clone().requires_grad_(), v]), r"v\[1\]")):
        with pytest.raises(RuntimeError, match=f"^{name}: got a tensor that requires grad, but tweedie.cumulant"):
            tweedie.cumulant(denoiser, given[0], 1.0, given[1], order=3)
        with torch.no_grad():
            tweedie.cumulant(denoiser, given[0], 1.0, given[1], order=3)
