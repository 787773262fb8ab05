"""The reverse variance of the least KL: bound and sampler against closed forms on mixtures and Gaussians."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import ulam
from bound_cases import TWO, images, vp
from gmm import Mixture
from oracles import affine_rows
from ulam import Denoiser, bounds, mcmc, schedules, tweedie
from ulam.samplers import DDPM
from ulam.schedules import Schedule

SCHEDULE = schedules.vp_linear(1000)
TEN = range(99, 1000, 100)
PLANE = mcmc.GaussianMixture([[-1.5, 0.2], [1.0, 1.0], [0.6, -1.2]], std=0.35, weights=[0.5, 0.3, 0.2])
LEVELS = torch.from_numpy(np.stack(SCHEDULE.levels(np.arange(1000.0))))


def posterior(x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """E[x_0 | x_t = x] and the density of x_t, of PLANE."""
    means, power = PLANE.means.double(), PLANE.std.double() ** 2
    variance = alpha[:, None] ** 2 * power + sigma[:, None] ** 2
    off = x[:, None] - alpha[:, None, None] * means
    log = PLANE.weights.double().log() - (2 * math.pi * variance).log() - off.square().sum(2) / (2 * variance)
    mean = means + (alpha[:, None] * power / variance)[..., None] * off
    return (log.softmax(1)[..., None] * mean).sum(1), log.exp().sum(1)


def network(shrink: float = 1.0) -> Denoiser:
    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = LEVELS[:, t.long()]
        D = shrink * posterior(x.double(), alpha, sigma)[0]
        return ((x - alpha[:, None] * D) / sigma[:, None]).to(x)

    return Denoiser(net, SCHEDULE)


def second_moment() -> float:
    """E|x_0|^2 / n."""
    return float((PLANE.weights * (PLANE.means.square().sum(1) / 2 + PLANE.std**2)).sum())


def exact_errors(shrink: float = 1.0) -> dict[float, float]:
    """E|x_0 - shrink E[x_0 | x_t]|^2 / n at the ten steps: by quadrature over the plane of x_t."""
    axis = torch.linspace(-6.5, 6.5, 261, dtype=torch.float64)
    points, cell = torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2
    found = {}
    for t in TEN:
        D, density = posterior(points, *LEVELS[:, t : t + 1].expand(2, len(points)))
        of_D = float((density * D.square().sum(1)).sum()) * cell / 2
        found[float(t)] = second_moment() - (2 * shrink - shrink**2) * of_D
    return found


def exact_bound(errors: dict[float, float], variance: str) -> float:
    """The mean bound in bits per dimension, from betas and abar alone [Ho 2020, eq. 5 and 7; Bao 2022]."""
    abar = SCHEDULE.alphas_cumprod[list(TEN)]
    before = np.append(1.0, abar[:-1])
    beta = 1 - abar / before
    tilde, on_D = (1 - before) / (1 - abar) * beta, np.sqrt(before) * beta / (1 - abar)
    e = np.array(list(errors.values()))
    model = {"posterior": tilde, "beta": beta, "optimal": tilde + on_D**2 * e}[variance]
    if variance != "optimal":
        model[0] = (1 - abar[0]) / abar[0]
    prior = abar[-1] * second_moment() + 1 - abar[-1] - 1 - math.log(1 - abar[-1])
    kl = np.log(model[1:] / tilde[1:]) + (tilde[1:] + on_D[1:] ** 2 * e[1:]) / model[1:] - 1
    first = math.log(2 * math.pi * model[0]) + e[0] / model[0]
    return (prior + kl.sum() + first) / 2 / math.log(2)


# ----------------------------------------------------------------------------------------------- the bound


def test_the_optimal_bound_at_ten_steps_is_the_closed_form_and_the_least() -> None:
    """Inside 4 standard errors and 1% of the closed form, with numbers of other data, exact ones, and Tweedie's own."""
    denoiser, errors = network(), exact_errors()
    x, other = PLANE.sample(40_000, seed=1).float(), PLANE.sample(10_000, seed=2).float()
    measured = bounds.x0_variances(denoiser, other, timesteps=TEN)
    assert measured.keys() == errors.keys()
    exact = exact_bound(errors, "optimal")
    for options in ({"x0_variances": measured}, {"x0_variances": errors}):
        bound = bounds.vlb(denoiser, x, timesteps=TEN, variance="optimal", decoder="gaussian", **options)
        assert abs(bound.value - exact) < 4 * bound.stderr and abs(bound.value / exact - 1) < 0.01
    own = bounds.vlb(denoiser, x[:1500], timesteps=TEN, variance="optimal", decoder="gaussian")
    assert abs(own.value - exact) < 4 * own.stderr
    for variance in ("posterior", "beta"):
        fixed = bounds.vlb(denoiser, x, timesteps=TEN, variance=variance, decoder="gaussian")
        assert abs(fixed.value - exact_bound(errors, variance)) < 4 * fixed.stderr
        assert bound.value + 4 * bound.stderr < fixed.value - 4 * fixed.stderr
        assert exact < exact_bound(errors, variance) - 0.1


def test_every_term_is_least_for_any_denoiser() -> None:
    """D far from the posterior mean: its mean squared error counts, and e_t 10% off is worse by a KL."""
    denoiser, errors = network(0.8), exact_errors(0.8)
    x = PLANE.sample(20_000, seed=3).float()
    options: dict[str, Any] = {"timesteps": TEN, "variance": "optimal", "decoder": "gaussian"}
    right = bounds.vlb(denoiser, x, x0_variances=errors, **options)
    assert abs(right.value - exact_bound(errors, "optimal")) < 4 * right.stderr
    chain = bounds.ReverseChain(SCHEDULE, list(TEN))
    for off in (0.9, 1.1):
        scaled = {t: off * e for t, e in errors.items()}
        wrong = bounds.vlb(denoiser, x, x0_variances=scaled, **options)
        e = np.array(list(errors.values()))
        d = chain.log_optimal(e) - chain.log_optimal(off * e)
        worse = (np.expm1(d) - d) / 2 / math.log(2)  # KL of the two Gaussians, and as much for the decoder
        apart = wrong.terms - right.terms
        error = apart.std(1) / len(x) ** 0.5
        assert (abs(apart.mean(1) - torch.from_numpy(worse)) < 4 * error).all() and (worse > 0).all()


def test_measured_errors_are_the_exact_ones_and_tweedies_traces() -> None:
    denoiser, errors = network(), exact_errors()
    batches = [
        bounds.x0_variances(denoiser, PLANE.sample(1000, seed=k).float(), timesteps=TEN, seed=k) for k in range(24)
    ]
    for t, exact in errors.items():
        found = torch.tensor([measured[t] for measured in batches])
        assert abs(float(found.mean()) - exact) < 4.5 * float(found.std()) / 24**0.5, t
        some = PLANE.sample(2000, seed=4).double()
        alpha, sigma = LEVELS[:, int(t)].tolist()
        y = some + sigma / alpha * ulam.noise.normal((2,), seed=6, chains=2000)
        traces = tweedie.covariance_diagonal(denoiser, y, sigma / alpha).mean(1)
        assert abs(float(traces.mean()) - exact) < 4 * float(traces.std()) / 2000**0.5, t


def test_tweedies_own_numbers_do_not_see_the_data() -> None:
    """A chain alone has the variance of its x_t, which is a bound too; for many elements few products estimate it."""
    denoiser = TWO.denoiser(vp(8))
    x = TWO.sample((300, 1, 80)).float()
    exact = -TWO.log_density(x) / (80 * math.log(2))
    large = bounds.vlb(denoiser, x, variance="optimal", decoder="gaussian", seed=3)
    gap = large.per_chain - exact
    assert float(gap.mean()) > -4 * float(gap.std()) / 300**0.5
    options: dict[str, Any] = {"variance": "optimal", "decoder": "gaussian", "seed": 3}
    alone = [bounds.vlb(denoiser, x[i : i + 1], chains=range(i, i + 1), **options).per_chain[0] for i in range(5)]
    torch.testing.assert_close(torch.stack(alone), large.per_chain[:5], rtol=0.05, atol=0.05)
    measured = bounds.x0_variances(denoiser, TWO.sample((300, 1, 80), seed=1).float())
    given = bounds.vlb(denoiser, x, x0_variances=measured, **options)
    assert large.value == pytest.approx(given.value, rel=0.01)
    part = bounds.vlb(denoiser, x[[7, 1]], x0_variances=measured, chains=torch.tensor([7, 1]), **options)
    assert torch.equal(part.terms, given.terms[:, [7, 1]])


def test_binned_data_keep_the_decoder_of_the_posterior() -> None:
    denoiser, x = TWO.denoiser(vp(8)), images(torch.float64)
    measured = bounds.x0_variances(denoiser, x, clip=(-1, 1))
    optimal = bounds.vlb(denoiser, x, variance="optimal", x0_variances=measured, clip=(-1, 1))
    small = bounds.vlb(denoiser, x, clip=(-1, 1))
    assert torch.equal(optimal.terms[0], small.terms[0])
    sampled = bounds.vlb(denoiser, x, variance="optimal", x0_variances=measured, clip=(-1, 1), sampled=7)
    torch.testing.assert_close(sampled.per_chain, optimal.per_chain)  # one part a step: nothing is random


# --------------------------------------------------------------------------------------------- the sampler


GAUSSIANS: dict[str, tuple[Schedule, str, dict[str, Any]]] = {
    "every step": (schedules.vp_linear(40, 1e-3, 0.3), "eps", {}),
    "one step": (SCHEDULE, "v", {"steps": 1, "final": "sigma_min"}),
    "ten steps": (SCHEDULE, "x0", {"steps": 10, "spacing": "trailing", "final": "sigma_min"}),
    "mean": (SCHEDULE, "eps", {"timesteps": (999, 400, 399, 20, 3), "final": 0.5 * float(SCHEDULE.ratios[0])}),
    "zero snr": (schedules.zero_terminal_snr(SCHEDULE), "v", {"steps": 7, "spacing": "trailing", "final": 0.02}),
    "ve": (schedules.ve(0.01, 50), "score", {"steps": 9, "final": 0.003}),
    "flow": (schedules.flow(), "flow", {"steps": 9, "final": 0.02}),
}


@pytest.mark.parametrize("name", GAUSSIANS)
@pytest.mark.parametrize("std", [0.4, 1.0, 1.7])
def test_gaussian_data_keep_their_variance_at_every_step(name: str, std: float) -> None:
    """The step back of Gaussian data is Gaussian, of a fixed variance: the law stays exact."""
    schedule, predicts, options = GAUSSIANS[name]
    grid = DDPM(**options).grid(schedule)
    power = grid.alphas**2 * std**2 + grid.sigmas**2
    e = std**2 * grid.sigmas[:-1] ** 2 / power[:-1]
    sampler = DDPM(variance="optimal", x0_variances=dict(zip(grid.times, e, strict=True)), **options)
    program = sampler.program(schedule, predicts)
    mean, variance = 0.3 * grid.alphas[0], power[0]
    rows = affine_rows(program, (grid.alphas[:-1], grid.sigmas[:-1]), 0.3, std)
    for row, (gain, offset, noise) in enumerate(rows):
        mean, variance = gain * mean + offset, gain**2 * variance + noise**2
        if grid.sigmas[row + 1] > 0:
            assert variance == pytest.approx(power[row + 1], rel=1e-9)
            assert mean == pytest.approx(0.3 * grid.alphas[row + 1], rel=1e-9)
    posterior_variance = DDPM(**options).program(schedule, predicts).A[:, 0, -1]
    assert (program.A[:, 0, -1] >= posterior_variance).all()


def test_one_measurement_at_all_times_serves_every_grid() -> None:
    e = {t: 0.3 + 1e-4 * t for t in range(1000)}
    for steps in (None, 3, 10, 50):
        program = DDPM(steps, variance="optimal", x0_variances=e).program(SCHEDULE)
        small = DDPM(steps).program(SCHEDULE)
        grid = DDPM(steps).grid(SCHEDULE)
        a = (grid.alphas[:-1] / grid.alphas[1:]) ** 2
        on_D = (grid.alphas[1:] * (1 - a) / grid.sigmas[:-1] ** 2)[:-1]
        expected = small.A[:-1, 0, -1] ** 2 + on_D**2 * (0.3 + 1e-4 * grid.times[:-1])
        np.testing.assert_allclose(program.A[:-1, 0, -1] ** 2, expected, rtol=1e-9)
    sampler = DDPM(10, variance="optimal", x0_variances=e)
    assert replace(sampler, steps=10) == sampler and hash(replace(sampler)) == hash(sampler)
    assert eval(repr(sampler), {"DDPM": DDPM}) == sampler


def test_a_step_back_has_the_second_moment_of_the_diffusion() -> None:
    """From the exact law of x_600, on a mixture: E|x_250|^2 within 4 standard errors; neither beta~ nor beta has."""
    denoiser, x = network(), PLANE.sample(40_000, seed=2)
    measured = bounds.x0_variances(denoiser, PLANE.sample(40_000, seed=3).float(), timesteps=[600])
    (a, b), (sigma, end) = SCHEDULE.levels((600.0, 250.0))
    x_t = (a * x + sigma * ulam.noise.normal((2,), seed=4, chains=len(x))).float()
    exact, apart = b**2 * second_moment() + end**2, {}
    for variance in ("optimal", "posterior", "beta"):
        sampler = DDPM(
            1, timesteps=(600, 250), variance=variance, x0_variances=measured if variance == "optimal" else None
        )
        state = ulam.sample(denoiser, sampler, (2,), len(x), x_init=x_t, seed=7, slots=len(x), progress=False)
        squares = state.double().square().mean(1)
        apart[variance] = (float(squares.mean()) - exact) / (float(squares.std()) / len(x) ** 0.5)
    assert abs(apart["optimal"]) < 4 and apart["posterior"] < -8 and abs(apart["beta"]) > 8


# ------------------------------------------------------------------------------------ predictions, refusals


def test_errors_on_other_schedules_and_predictions() -> None:
    """A Gaussian's posterior variance, on EDM's preconditioning, flow, sub-VP and at zero terminal SNR."""
    mixture = Mixture(weights=(1.0,), means=(0.3,), stds=(0.7,))
    x = 0.3 + 0.7 * ulam.noise.normal((50,), seed=1, chains=400)

    def denoiser(schedule: Schedule, predicts: str) -> Denoiser:
        def net(state: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            alpha, sigma = (level[:, None] for level in schedule.levels(t.double().numpy()))
            scale = np.sqrt(sigma**2 + 0.25) if predicts == "raw" else 1.0
            return torch.from_numpy(mixture.output(predicts, state.double().numpy() * scale, alpha, sigma)).to(state)

        return Denoiser(net, schedule, predicts)

    zero = schedules.zero_terminal_snr(SCHEDULE)
    cases = (schedules.edm(), "raw", (0.1, 1.0, 9.0)), (schedules.flow(), "flow", (0.1, 0.5, 1.0)), (
        schedules.sub_vp(), "x0", (0.1, 0.7)), (zero, "v", (3, 500.5, 999))  # fmt: skip
    for schedule, predicts, times in cases:
        found = bounds.x0_variances(denoiser(schedule, predicts), x, timesteps=times)
        for t in times:
            alpha, sigma = map(float, schedule.levels(t))
            exact = 0.49 * sigma**2 / (alpha**2 * 0.49 + sigma**2)
            assert found[float(t)] == pytest.approx(exact, rel=4 * (2 / 20_000) ** 0.5), (schedule, t)


def refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_the_optimal_variance_needs_is_asked_for() -> None:
    denoiser, x = network(), PLANE.sample(4, seed=1).float()
    e = dict.fromkeys(TEN, 0.1)
    refused(
        lambda: DDPM(10, variance="optimal"), r"^x0_variances: got None under variance='optimal', expected those of"
    )
    refused(lambda: DDPM(10, x0_variances=e), r"^x0_variances: got some under variance='posterior', expected None")
    refused(lambda: DDPM(10, variance="optimal", x0_variances={}), r"^x0_variances: got dict, expected those of")
    refused(lambda: DDPM(10, variance="optimal", x0_variances=[1.0]), r"^x0_variances: got 1.0, expected pairs")
    refused(lambda: DDPM(10, variance="optimal", x0_variances={3: -0.1}), r"^x0_variances: got -0.1 at t = 3, expected")
    refused(lambda: DDPM(10, variance="optimal", x0_variances={3: math.nan}), r"^x0_variances: got nan at t = 3")
    short = DDPM(10, variance="optimal", x0_variances=e)
    refused(lambda: short.program(SCHEDULE), r"^x0_variances: got none at t = 900, expected those of .* with that time")
    options: dict[str, Any] = {"decoder": "gaussian", "variance": "optimal"}
    refused(lambda: bounds.vlb(denoiser, x, x0_variances=e, **options), r"^x0_variances: got none at t = 0, expected")
    refused(lambda: bounds.vlb(denoiser, x, sampled=3, **options), r"^x0_variances: got None under sampled=3, expected")
    refused(
        lambda: bounds.vlb(denoiser, x, decoder="gaussian", x0_variances=e, timesteps=TEN),
        r"^x0_variances: got some under variance='posterior', expected None",
    )
    refused(
        lambda: bounds.vlb(denoiser, x, x0_variances={**e, 99: 0.0}, timesteps=TEN, **options),
        r"^x0_variances: got 0 at t = 99, expected more: it is the decoder's variance",
    )
    zero = Denoiser(lambda x, t: x, schedules.zero_terminal_snr(SCHEDULE), "v")
    refused(lambda: bounds.vlb(zero, x, **options), r"^x0_variances: got None at zero terminal SNR, expected those of")
    odd = Denoiser(lambda x, t: -x, SCHEDULE, "x0")
    refused(
        lambda: bounds.vlb(odd, x, timesteps=TEN, **options),
        r"^denoiser: got a posterior variance of -.* at t = 99, expected one above 0, or x0_variances",
    )


def test_what_errors_cannot_be_measured_on_is_refused() -> None:
    denoiser, x = network(), PLANE.sample(4, seed=1).float()
    index = Denoiser(denoiser.net, SCHEDULE, time="index")
    refused(lambda: bounds.x0_variances(index, x, timesteps=[2.5]), r"^timesteps: got 2.5 under time='index', expected")
    refused(lambda: bounds.x0_variances(denoiser, x, timesteps=[1000]), r"^timesteps: got 1000.0, expected numbers in")
    refused(lambda: bounds.x0_variances(denoiser, x, timesteps=[]), r"^timesteps: got none, expected times")
    refused(lambda: bounds.x0_variances(denoiser, x, timesteps="all"), r"^timesteps: got 'all', expected times")
    refused(
        lambda: bounds.x0_variances(denoiser, x[:0]), r"^x_0: got .*, expected a float tensor \[B, \*shape\], not empty"
    )
    refused(lambda: bounds.x0_variances(denoiser, x / 0), r"^x_0: got numbers that are not finite")
    refused(
        lambda: bounds.x0_variances(denoiser, x, clip=(1.0, -1.0)), r"^clip: got .*, expected \(lo, hi\) with lo below"
    )
    flow = Denoiser(lambda x, t: x, schedules.flow(), "flow")
    refused(lambda: bounds.x0_variances(flow, x), r"^timesteps: got None on flow\(.*\), expected times")
    broken = Denoiser(lambda x, t: x * math.nan, SCHEDULE)
    twice = [(1, 0.1), (2, 0.3), (1.0, 0.9)]
    refused(
        lambda: DDPM(5, variance="optimal", x0_variances=twice), r"^x0_variances: got t = 1 twice, expected one num"
    )
    refused(
        lambda: bounds.x0_variances(broken, x, timesteps=[5]), r"^net: got an error of nan at t = 5, expected finite"
    )
    with pytest.raises(RuntimeError, match=r"^x_0: got a tensor that requires grad"):
        bounds.x0_variances(denoiser, x.requires_grad_())


def test_bounds_of_odd_chains_and_data_are_right_or_refused() -> None:
    x = PLANE.sample(4, seed=1).float()
    refused(lambda: bounds.vlb(network(), x / 0, decoder="gaussian"), r"^x_0: got numbers that are not finite")
    for abar in ([1.0, 0.5], [0.5, 0.5 * (1 - 1e-17), 0.1]):
        schedule = schedules.from_alphas_cumprod(abar) if abar[0] == 1 else schedules.from_betas([0.5, 1e-20, 0.5])
        denoiser = Denoiser(lambda x, t: torch.zeros_like(x), schedule, "x0")
        refused(lambda d=denoiser: bounds.vlb(d, x, decoder="gaussian"), r"^timesteps: got \d, which adds no noise")
    one = Denoiser(lambda x, t: torch.zeros_like(x), schedules.vp_linear(1, 0.5, 0.5), "x0")
    for variance in ("posterior", "beta"):
        bound = bounds.vlb(one, x, variance=variance, decoder="gaussian")  # L_T, and N(x_0; 0, sigma^2 / alpha^2)
        nats = (x.double().square() / 2 + 0.5 - 1 - math.log(0.5)) / 2 + (
            x.double().square() + math.log(2 * math.pi)
        ) / 2
        torch.testing.assert_close(bound.per_chain.double(), nats.mean(1) / math.log(2), rtol=1e-6, atol=1e-6)
