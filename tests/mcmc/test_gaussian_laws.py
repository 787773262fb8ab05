"""Densities that know themselves under noise: their noised laws and ideal denoisers, against quadrature and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch.func import jacfwd, jacrev, vmap

import ulam
from gmm import Mixture
from ulam import mcmc, ops, schedules, tweedie

ORACLE = Mixture((0.5, 0.3, 0.2), (-1.5, 1.0, 0.6), (0.35, 0.2, 0.5))
LINE = mcmc.GaussianMixture([[-1.5], [1.0], [0.6]], [0.35, 0.2, 0.5], [0.5, 0.3, 0.2])
PLANE = mcmc.GaussianMixture([[-1.5, 0.2], [1.0, 1.0]], [0.35, 0.6], [0.7, 0.3])
DENSE = mcmc.Gaussian([0.3, -0.2], [[1.0, 0.4], [0.4, 0.5]])
DIAGONAL = mcmc.Gaussian([0.3, -0.2], [1.0, 0.5])
LAWS = {"mixture": PLANE, "dense": DENSE, "diagonal": DIAGONAL}
SCHEDULES = {
    "vp": (schedules.vp_linear(1000), (0, 3.7, 500.25, 999)),
    "terminal": (schedules.zero_terminal_snr(schedules.vp_linear(1000)), (0, 998, 999)),
    "ve": (schedules.ve(0.01, 50.0), (0.01, 0.3, 50.0)),
    "edm": (schedules.edm(), (0.01, 1.0, 80.0)),
    "flow": (schedules.flow(), (0.0, 0.001, 0.5, 1.0)),
    "sub-vp": (schedules.sub_vp(), (0.01, 0.4, 1.0)),
}
X = torch.tensor([[0.1, -0.4], [1.5, 0.7], [-1.2, 0.1], [0.0, 3.0], [-2.0, -1.0]], dtype=torch.float64)


@pytest.mark.parametrize("name", LAWS)
def test_a_noised_density_is_the_convolution_with_the_noise(name):
    """By quadrature over x on a grid: p(y) = E_z p(y - sigma z)."""
    law, sigma = LAWS[name], 0.5
    line = torch.linspace(-6, 6, 241, dtype=torch.float64)
    at = torch.stack(torch.meshgrid(line, line, indexing="ij"), 2).view(-1, 2)
    p, cell = law.log_prob(at).exp(), float(line[1] - line[0]) ** 2
    kernel = (-(X[:, None] - at).square().sum(2) / (2 * sigma**2)).exp() / (2 * np.pi * sigma**2)
    exact = (kernel * p).sum(1) * cell
    moved = (kernel * p)[:, :, None] * (at - X[:, None]) / sigma**2
    noised = law.noised(sigma)
    assert type(noised) is type(law)
    torch.testing.assert_close(noised.log_prob(X).exp(), exact, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(noised.score(X), moved.sum(1) * cell / exact[:, None], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", LAWS)
def test_levels_one_a_chain_are_those_of_each_alone(name):
    law, levels = LAWS[name], torch.tensor([0.01, 0.3, 1.0, 5.0, 100.0])
    together = law.noised(levels)
    for k, sigma in enumerate(levels.double().tolist()):
        alone = law.noised(sigma)
        torch.testing.assert_close(together.log_prob(X)[k], alone.log_prob(X)[k], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(together.score(X)[k], alone.score(X)[k], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_noised_draws_have_the_noised_law(name):
    """The probability integral transform of a projection: draws of x plus noise against the noised density's own."""
    law = LAWS[name]
    noisy = law.sample(4000, seed=1) + 0.7 * ulam.noise.normal((2,), seed=2, chains=4000)
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)
    own = law.noised(0.7).sample(4000, seed=5)
    assert scipy.stats.ks_2samp((noisy @ direction).numpy(), (own @ direction).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("name", SCHEDULES)
def test_ideal_networks_are_the_conditional_expectations(name):
    """At every kind of time of every kind of schedule, whatever is predicted, against formulas in NumPy."""
    schedule, times = SCHEDULES[name]
    for t in times:
        alpha, sigma = (float(level) for level in schedule.levels(t))
        x = np.linspace(-3, 3, 41) * np.hypot(alpha, sigma)
        for predicts in ("eps", "x0", "v", "flow", "score") + ("raw",) * (name == "edm"):
            if sigma == 0 and predicts == "score":
                continue  # the oracle's x0 and eps divide by nothing, its score by the data's own variance
            scale = np.hypot(sigma, schedule.sigma_data) if predicts == "raw" else 1.0
            net = LINE.denoiser(schedule, predicts).net
            given = torch.from_numpy(x / scale)[:, None], torch.full((41,), t, dtype=torch.float64)
            exact = ORACLE.output(predicts, x, alpha, sigma, getattr(schedule, "sigma_data", 0.5))
            off = abs(net(*given)[:, 0].numpy() - exact)
            assert off.max() < 1e-12 * max(1.0, abs(exact).max(), 1 / max(sigma, 0.01)), (predicts, t)


def test_the_mean_of_the_step_back_is_that_of_the_estimate():
    schedule = schedules.vp_cosine(50)
    t = torch.tensor([0, 1, 20, 48, 49])
    D = PLANE.denoiser(schedule, "x0").net(X, t)
    exact = ops.posterior_mean(X, D, t, schedule, "x0")
    torch.testing.assert_close(PLANE.denoiser(schedule, "mean").net(X, t), exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_the_ideal_denoiser_is_tweedies_formula_with_its_covariance(name):
    """D = y + sigma^2 s and sigma^2 dD/dy = sigma^2 (I + sigma^2 Hess log p), on all schedules that reach the level."""
    law, sigma = LAWS[name], 0.8
    noised = law.noised(sigma)
    exact = X + sigma**2 * noised.score(X)
    hessian = vmap(jacrev(lambda row: noised.score(row[None])[0]))(X)
    v = torch.tensor([[1.0, -0.5]], dtype=torch.float64).expand(5, 2)
    spread = sigma**2 * (v + sigma**2 * (hessian @ v[:, :, None])[:, :, 0])
    for schedule, predicts in (
        (schedules.vp_linear(1000), "eps"),
        (schedules.ve(0.01, 50.0), "score"),
        (schedules.edm(), "raw"),
        (schedules.flow(), "flow"),
        (schedules.sub_vp(), "v"),
    ):
        denoiser = law.denoiser(schedule, predicts)
        torch.testing.assert_close(tweedie.mean(denoiser, X, sigma), exact, rtol=1e-10, atol=1e-11)
        found = tweedie.covariance_product(denoiser, X, sigma, v)
        torch.testing.assert_close(found, spread, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", LAWS)
def test_ideal_networks_have_derivatives_of_every_order_and_mode(name):
    """Jacobians forwards and backwards, vmapped; a third derivative against differences of the second."""
    net = LAWS[name].denoiser(schedules.vp_linear(1000)).net
    t = torch.tensor([0, 3.5, 500, 800.25, 999.0], dtype=torch.float64)

    def one(row, time):
        return net(row[None], time[None])[0]

    backwards, forwards = vmap(jacrev(one))(X, t), vmap(jacfwd(one))(X, t)
    torch.testing.assert_close(backwards, forwards, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(backwards, backwards.mT, rtol=1e-10, atol=1e-11)  # a gradient's
    assert torch.autograd.gradcheck(lambda x: net(x, t), X.clone().requires_grad_())
    third, h = vmap(jacfwd(jacrev(jacfwd(one))))(X, t), 1e-5
    ends = [vmap(jacrev(jacfwd(one)))(X + step * torch.tensor([1.0, 0.0]), t) for step in (h, -h)]
    torch.testing.assert_close(third[..., 0], (ends[0] - ends[1]) / (2 * h), rtol=1e-4, atol=1e-4)


def test_ideal_networks_compile_and_keep_the_precision_of_their_input():
    schedule = schedules.vp_linear(1000)
    for name, law in LAWS.items():
        net, t = law.denoiser(schedule).net, torch.tensor([0.0, 3.5, 500.0, 800.25, 999.0])
        exact = net(X, t.double())
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(X, t.double()), exact, msg=name)
        for dtype, off in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
            rough = net(X.to(dtype), t)
            assert rough.dtype == dtype
            torch.testing.assert_close(rough.double(), net(X.to(dtype).double(), t.double()), rtol=off, atol=off)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(net(X, t.double()), exact)


@pytest.mark.parametrize("time", ["auto", "index"])
def test_samples_of_the_ideal_denoiser_have_the_law(time):
    """Deterministic DDIM from noise, against the exact distribution function."""
    denoiser = LINE.denoiser(schedules.vp_linear(1000), time=time)
    drawn = ulam.sample(denoiser, ulam.samplers.DDIM(200), shape=(1,), chains=4000, slots=4000, progress=False)

    def cdf(x):
        return sum(w * scipy.stats.norm.cdf(x, m, s) for w, m, s in zip(*vars(ORACLE).values(), strict=True))

    assert scipy.stats.kstest(drawn[:, 0].numpy(), cdf).statistic < 0.04


@pytest.mark.parametrize("name", LAWS)
def test_scores_and_log_densities_of_other_shapes_are_refused(name):
    law = LAWS[name]
    calls = (law.log_prob, law.score, lambda x: law.denoiser(schedules.edm()).net(x, torch.ones(len(x))))
    for call in calls:
        with pytest.raises(ValueError, match=r"x(_t)?: got shape \[5, 1\], expected \[B, 2\], the states of"):
            call(X[:, :1])
    with pytest.raises(ValueError, match="y: got 5 rows, expected 3, one for each noise level"):
        law.noised(torch.ones(3)).score(X)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PLANE.noised(0.0), ValueError, "sigma: got 0, expected finite levels above 0"),
        (lambda: PLANE.noised(torch.ones(0)), ValueError, r"sigma: got shape \[0\], expected a number or \[B\]"),
        (lambda: PLANE.noised(torch.ones(2, 2)), ValueError, r"sigma: got shape \[2, 2\], expected a number or \[B\]"),
        (lambda: PLANE.noised("x"), TypeError, "sigma: got 'x', expected a number, or several"),
        (
            lambda: PLANE.noised(torch.ones((), requires_grad=True)),
            RuntimeError,
            "sigma: got a tensor that requires grad",
        ),
        (lambda: PLANE.denoiser(3), TypeError, "schedule: got 3, expected a ulam schedule"),
        (lambda: PLANE.denoiser(schedules.edm(), "noise"), ValueError, "predicts: got 'noise', expected one of eps"),
        (lambda: PLANE.denoiser(schedules.flow(), "raw"), ValueError, r"schedule: got flow.* expected edm"),
        (lambda: PLANE.denoiser(schedules.flow(), time="index"), ValueError, "time: got 'index' with flow"),
    ],
)
def test_bad_arguments_get_one_clear_line(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_every_density_has_a_score_that_is_differentiable_twice():
    for density in (mcmc.Rosenbrock(2), mcmc.Funnel(2), mcmc.Ring(2), mcmc.DoubleWell(2), PLANE, DENSE, DIAGONAL):
        x = density.sample(4, seed=3).requires_grad_()
        assert torch.autograd.gradgradcheck(density.score, x, atol=1e-4), density
        assert torch.autograd.gradcheck(density.log_prob, x), density
