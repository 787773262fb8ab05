"""Posteriors of natural parameters from the marginal alone, against integrals over the parameter."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import integrate, special

import network_zoo
from ulam import tweedie

Y = torch.tensor([0.05, 0.4, 1.0, 2.7, 6.0], dtype=torch.float64)
NODES = torch.linspace(-12, 12, 601, dtype=torch.float64)  # the trapezoidal rule, which converges geometrically
ODDS = torch.softmax(-NODES.square() / 2, 0)


def posterior_cumulants(likelihood, sign: float = 1.0) -> list[float]:
    """kappa_1 to kappa_4 of sign * the parameter exp(MEAN + STD z), by adaptive quadrature over z about its mean."""
    rules = {"epsabs": 0, "epsrel": 1e-12, "limit": 500}

    def integral(f):
        def integrand(z):
            value = math.exp(MEAN + STD * z)
            return f(value) * likelihood(value) * math.exp(-z * z / 2)

        return integrate.quad(integrand, -12, 12, **rules)[0]

    total = integral(lambda r: 1.0)
    centre = integral(lambda r: r) / total
    second, third, fourth = (integral(lambda r, k=k: (r - centre) ** k) / total for k in (2, 3, 4))
    return [sign * centre, second, sign * third, fourth - 3 * second**2]


MEAN, STD = 0.2, 0.4  # of the logarithm of the parameter
RATES = torch.exp(MEAN + STD * NODES)


def gamma(shape: float):
    """log m and log h of Gamma noise with this shape and a log-normal rate."""

    def log_base(y):
        return (shape - 1) * y.log()

    def log_marginal(y):
        terms = ODDS.log() + shape * RATES.log() - y[:, None] * RATES
        return torch.logsumexp(terms, 1) - math.lgamma(shape) + log_base(y)

    return log_marginal, log_base


@pytest.mark.parametrize("shape", [1.0, 0.5, 3.5], ids=["exponential", "Gamma below 1", "Gamma"])
def test_rates_of_gamma_noise_are_those_of_quadrature(shape) -> None:
    log_marginal, log_base = gamma(shape)
    exact = [posterior_cumulants(lambda r, y=y: r**shape * math.exp(-r * y), -1.0) for y in Y.tolist()]
    for order in (1, 2, 3, 4):
        found = tweedie.natural(log_marginal, Y, log_base=log_base, order=order)
        torch.testing.assert_close(
            found, torch.tensor([each[order - 1] for each in exact], dtype=torch.float64), rtol=1e-8, atol=0
        )


def test_shapes_of_gamma_noise_are_those_of_quadrature() -> None:
    """Known rate, unknown shape: T(y) = log y."""
    rate = 1.5

    def log_base(y):
        return -rate * y - y.log()

    def log_marginal(y):
        terms = ODDS.log() + RATES * (math.log(rate) + y.log()[:, None]) - torch.lgamma(RATES)
        return torch.logsumexp(terms, 1) + log_base(y)

    for y in Y.tolist():
        exact = posterior_cumulants(lambda a, y=y: math.exp(a * math.log(rate * y) - special.gammaln(a)))
        for order in (1, 2, 3, 4):
            found = tweedie.natural(
                log_marginal,
                torch.tensor([y], dtype=torch.float64),
                log_base=log_base,
                statistic=torch.log,
                order=order,
            )
            assert float(found) == pytest.approx(exact[order - 1], rel=1e-8)


def test_gaussian_noise_is_the_denoisers_formula() -> None:
    """eta = x / sigma^2; a correlated Gaussian prior, so elements are not independent."""
    sigma = 0.7
    S = torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=torch.float64)
    noisy = S + sigma**2 * torch.eye(2, dtype=torch.float64)
    posterior = S - S @ torch.linalg.solve(noisy, S)
    y = torch.tensor([[0.3, -1.0], [2.0, 0.4]], dtype=torch.float64)
    given = {
        "log_marginal": lambda y: -(y * torch.linalg.solve(noisy, y.T).T).sum(1) / 2,
        "y": y,
        "log_base": lambda y: -y.square().sum(1) / (2 * sigma**2),
    }
    mean = torch.linalg.solve(noisy, y.T).T @ S
    torch.testing.assert_close(sigma**2 * tweedie.natural(**given), mean, rtol=1e-12, atol=1e-14)
    variances = posterior.diagonal().expand(2, 2) / sigma**4
    torch.testing.assert_close(tweedie.natural(**given, order=2), variances, rtol=1e-12, atol=0)
    u, v = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = tweedie.natural(**given, order=2, v=(u, v))
    torch.testing.assert_close(both, (u @ posterior * v).sum(1) / sigma**4, rtol=1e-12, atol=1e-14)
    assert not tweedie.natural(**given, order=3).abs().gt(1e-12).any()


def mixture(T, log_volume=None):
    """log m and log h for three values of eta with p(y | eta) = exp(eta . T(y) - psi) h(y), psi any numbers."""
    eta = torch.tensor([[0.5, -1.0], [1.5, 0.2], [-0.7, 0.9]], dtype=torch.float64)
    offset = torch.tensor([0.1, -0.4, 0.3], dtype=torch.float64)

    def log_base(y):
        return -y.square().sum(1)

    return eta, offset, log_base, lambda y: torch.logsumexp(T(y) @ eta.T + offset, 1) + log_base(y)


STATISTICS = {
    "element by element": lambda y: y.exp() + y,
    "linear": lambda y: y @ torch.tensor([[1.0, 0.3], [-0.5, 2.0]], dtype=y.dtype),
    "mixing": lambda y: torch.stack([y[:, 0] + y[:, 1] ** 3 + y[:, 1], y[:, 1] - 0.1 * y[:, 0].tanh()], 1),
    "swapping": lambda y: torch.stack([y[:, 1].exp(), y[:, 0].exp()], 1),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_any_invertible_statistic_of_several_elements(name) -> None:
    """The posterior over three values of eta has probabilities softmax(eta . T + offset)."""
    T = STATISTICS[name]
    eta, offset, log_base, log_marginal = mixture(T)
    y = torch.tensor([[0.3, -0.4], [1.1, 0.8], [-0.6, 0.2]], dtype=torch.float64)
    w = torch.softmax(T(y) @ eta.T + offset, 1)
    mean = w @ eta
    given = {"log_marginal": log_marginal, "y": y, "log_base": log_base, "statistic": T}
    torch.testing.assert_close(tweedie.natural(**given), mean, rtol=1e-10, atol=1e-12)
    vs = torch.randn(3, *y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    off = [((eta - mean[:, None]) * v[:, None]).sum(2) for v in vs]
    for places in itertools.permutations(range(3)):
        found = tweedie.natural(**given, order=3, v=[vs[i] for i in places])
        torch.testing.assert_close(found, (w * off[0] * off[1] * off[2]).sum(1), rtol=1e-9, atol=1e-11)
    third = (w[:, :, None] * (eta - mean[:, None]) ** 3).sum(1)
    torch.testing.assert_close(tweedie.natural(**given, order=3), third, rtol=1e-9, atol=1e-11)


def test_a_network_as_log_marginal_in_eval_mode() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    net.double()
    y = torch.randn(4, 3, dtype=torch.float64)

    def log_marginal(y):
        return net(y)[:, 0]

    found = tweedie.natural(log_marginal, y, log_base=lambda y: torch.zeros(len(y)).double(), order=2)
    assert net.training and not found.requires_grad
    net.eval()
    hessian = torch.stack([torch.autograd.functional.hessian(lambda at: net(at)[0], one) for one in y])
    torch.testing.assert_close(found, hessian.diagonal(dim1=1, dim2=2), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("how", network_zoo.HIDING)
@pytest.mark.parametrize("name", ["log_marginal", "log_base", "statistic"])
def test_a_function_that_hides_its_derivative_is_refused(how, name) -> None:
    hiding = network_zoo.HIDING[how]
    given = {
        "log_marginal": lambda y: -y.square().sum(1),
        "log_base": lambda y: -y.sin().sum(1),
        "statistic": lambda y: y + y.exp(),
    }
    right = given[name]
    given[name] = lambda y: right(y) + 0.3 * right(hiding(y))
    with pytest.raises(TypeError, match=rf"^{name}: got <lambda>, whose derivative in x .* off finite differences"):
        tweedie.natural(y=torch.rand(3, 2, dtype=torch.float64) + 0.5, order=2, **given)


def nothing(y):
    return y.new_zeros(len(y))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"order": 0}, "order: got 0, expected 1 to 10"),
        ({"log_base": torch.log}, r"log_base: got shape \[3, 1\], expected \[3\], one an observation"),
        ({"statistic": nothing}, r"statistic: got shape \[3\], expected \[3, 1\] like y"),
        ({"log_marginal": lambda y: (y - 1).log().sum(1)}, r"log_marginal: got a value that is not finite at y\[0\]"),
        ({"statistic": torch.round}, "statistic: got a derivative of 0, expected an invertible function"),
        ({"y": torch.ones(3, 1, dtype=torch.int64)}, "y: got .*, expected a float tensor"),
        ({"v": torch.ones(3)}, "v: got shape .*, expected .* like y"),
        ({"log_marginal": None}, "log_marginal: got None, expected a function of y"),
        (
            {
                "y": torch.ones(3, 2).double(),
                "log_marginal": nothing,
                "statistic": lambda y: y.sum(1, keepdim=True) * torch.ones(2).double(),
            },
            "statistic: got a singular Jacobian, expected an invertible function",
        ),
    ],
)
def test_bad_input_is_named(given, named: str) -> None:
    y = torch.tensor([[0.5], [2.0], [3.0]], dtype=torch.float64)
    valid = {"log_marginal": lambda y: -y.square().sum(1), "y": y, "log_base": nothing}
    with pytest.raises((TypeError, ValueError), match=f"^{named}"):
        tweedie.natural(**(valid | given))


@pytest.mark.parametrize("pair", list(itertools.combinations(range(5), 2)))
def test_a_statistic_that_mixes_any_two_elements_is_seen_to(pair) -> None:
    """Of one observation too, and where both elements count with the same sign."""
    i, j = pair
    A = torch.eye(5, dtype=torch.float64)
    A[i, j], A[j, i] = 0.7, -0.2
    y = torch.tensor([[0.3, -0.8, 1.1, 0.5, -0.4]], dtype=torch.float64)
    found = tweedie.natural(
        lambda y: -y.square().sum(1) / 4,
        y,
        log_base=lambda y: -y.square().sum(1) / 2,
        statistic=lambda y: y @ A.T,
    )
    torch.testing.assert_close(found, y / 2 @ torch.linalg.inv(A), rtol=1e-12, atol=1e-14)
