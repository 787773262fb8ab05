"""Networks that predict the mean of the step back: all that is taken from one equals what its eps network gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import ulam
from gmm import Mixture
from ulam import bounds, mcmc, objectives, ops, schedules, sure, tweedie
from ulam.denoiser import Denoiser
from ulam.programs.predictions import eps_coefficients, step_back, x0_coefficients
from ulam.samplers import DDIM, DDPM, Euler, FlowMap, Heun, UniPC, catalogue
from ulam.schedules import VariancePreserving

pytestmark = pytest.mark.filterwarnings("ignore:x_init. got states without a seed")

SCHEDULE = schedules.vp_linear(1000)
SHORT = schedules.vp_linear(40, 1e-3, 0.3)
ZERO_SNR = schedules.zero_terminal_snr(schedules.vp_linear(100, 1e-3, 0.1))
MIXTURE = Mixture(weights=(0.3, 0.5, 0.2), means=(-1.5, 0.4, 1.8), stds=(0.5, 0.6, 0.4))


def eps_network(schedule: VariancePreserving = SCHEDULE) -> Denoiser:
    return Denoiser(network(schedule, "eps"), schedule, "eps", time="index")


def mean_network(schedule: VariancePreserving = SCHEDULE, time: str = "auto") -> Denoiser:
    return Denoiser(network(schedule, "mean"), schedule, "mean", time=time)


def network(schedule: VariancePreserving, predicts: str) -> Any:
    """The ideal network for MIXTURE, differentiable; the mean by Ho 2020, eq. 7, of betas and abar alone."""
    abar, beta = torch.from_numpy(schedule.alphas_cumprod.copy()), torch.from_numpy(schedule.betas.copy())
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    rest = torch.from_numpy(schedule.variances.copy())
    weights, means, stds = (
        torch.tensor(v, dtype=torch.float64) for v in (MIXTURE.weights, MIXTURE.means, MIXTURE.stds)
    )

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        k = t.long()
        assert torch.equal(k.to(t), t), "whole training steps only"
        x = x.double()
        a, s2, b, last = (v[k].view(-1, *[1] * (x.dim() - 1)) for v in (abar.sqrt(), rest, beta, before))
        power = a[..., None] ** 2 * stds**2 + s2[..., None]
        off = x[..., None] - a[..., None] * means
        share = torch.softmax(weights.log() - power.log() / 2 - off**2 / (2 * power), dim=-1)
        score = -(share * off / power).sum(-1)
        if predicts == "eps":
            return -s2.sqrt() * score
        D = (share * (means + a[..., None] * stds**2 / power * off)).sum(-1)
        return last.sqrt() * b / s2 * D + (1 - b).sqrt() * (s2 - b * last) / s2 * x

    return net


def states(count: int = 6) -> torch.Tensor:
    return torch.linspace(-2, 2, 2 * count, dtype=torch.float64).view(count, 2)


# ------------------------------------------------------------------------------------------- coefficients


@pytest.mark.parametrize("schedule", [SCHEDULE, SHORT, ZERO_SNR, schedules.vp_cosine(50), schedules.vp_linear(1)])
def test_coefficients_are_ho_2020_eq_7_solved_for_x0_and_eps(schedule: VariancePreserving) -> None:
    t = np.arange(schedule.steps)
    abar, beta = schedule.alphas_cumprod, schedule.betas
    before = np.append(1.0, abar[:-1])
    rest = schedule.variances
    on_x, on_D = np.sqrt(1 - beta) * np.append(0.0, rest[:-1]) / rest, np.sqrt(before) * beta / rest
    alpha, sigma = schedule.levels(t)
    for found, exact in zip(step_back(schedule, alpha, sigma), (on_x, on_D, np.sqrt(before)), strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-10, atol=1e-14)
    draw = np.random.default_rng(1)
    x_0, eps = draw.normal(size=(2, len(t)))
    x = alpha * x_0 + sigma * eps
    m = on_x * x + on_D * x_0
    kx, km, _ = x0_coefficients("mean", alpha, sigma, schedule)
    ex, em = eps_coefficients("mean", alpha, sigma, schedule)
    np.testing.assert_allclose(kx * x + km * m, x_0, atol=1e-11)
    np.testing.assert_allclose(ex * x + em * m, eps, atol=1e-11)


def test_the_first_step_is_x0_even_without_noise_there() -> None:
    schedule = schedules.from_alphas_cumprod([1.0, 0.5, 0.1])
    kx, km, _ = x0_coefficients("mean", *schedule.levels(np.zeros(1)), schedule)
    assert (kx, km) == (0, 1)
    with pytest.raises(ValueError, match="predicts: got 'mean', which says nothing about eps where sigma is 0"):
        eps_coefficients("mean", *schedule.levels(np.zeros(1)), schedule)


# ----------------------------------------------------------------------------- conversions, samplers, losses


def test_conversions_equal_those_of_eps() -> None:
    t, x = torch.tensor([0, 1, 20, 500, 998, 999]), states()
    m, eps = (network(SCHEDULE, predicts)(x, t) for predicts in ("mean", "eps"))
    for op in (ops.predict_x0, ops.predict_eps, ops.predict_v, ops.score, ops.posterior_mean):
        torch.testing.assert_close(
            op(x, m, t, SCHEDULE, "mean"), op(x, eps, t, SCHEDULE, "eps"), rtol=1e-10, atol=1e-10
        )
    s = torch.tensor([0.0, 0.0, 3.5, 17.0, 997.0, 0.0])[1:]
    earlier = [ops.posterior_mean(x[1:], of[1:], t[1:], SCHEDULE, p, s=s) for of, p in ((m, "mean"), (eps, "eps"))]
    torch.testing.assert_close(*earlier, rtol=1e-10, atol=1e-10)
    assert torch.equal(ops.posterior_mean(x, m, t, SCHEDULE, "mean"), m)


def test_x0_from_float32_states_loses_no_more_than_the_output_did() -> None:
    """D = (m - on_x x) / on_D, on_D about 6e-5 at the last step: exact for the float32 numbers that there are."""
    t = torch.full((64,), 999)
    x = torch.from_numpy(np.random.default_rng(2).normal(size=(64, 3))).float()
    m = network(SCHEDULE, "mean")(x, t).float()
    exact = ops.predict_x0(x.double(), m.double(), t, SCHEDULE, "mean")
    assert torch.equal(ops.predict_x0(x, m, t, SCHEDULE, "mean"), exact.float())
    denoiser = Denoiser(lambda x, t: m, SCHEDULE, "mean")
    sigma = float(SCHEDULE.ratios[-1])
    y = x / float(SCHEDULE.alpha(999))
    kx, km, _ = x0_coefficients("mean", *SCHEDULE.levels(999.0), SCHEDULE)
    expected = float(kx * SCHEDULE.alpha(999)) * y.double() + float(km) * m.double()
    assert torch.equal(tweedie.mean(denoiser, y, sigma), expected.float())


@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("name", [name for name, cls in catalogue().items() if cls is not FlowMap])  # told one time
def test_every_sampler_gives_the_states_of_the_eps_network(name: str, steps: int) -> None:
    sampler = catalogue()[name](steps)
    known = {"known": torch.tensor([0.3, 0.0]), "mask": torch.tensor([1.0, 0.0])}
    more: dict[str, Any] = known if "known image" in mean_network().program(sampler).needs else {}
    more |= {"x_init": states(), "dtype": torch.float64, "backend": "reference", "progress": False}
    runs = [ulam.sample(denoiser, sampler, (2,), 6, **more) for denoiser in (eps_network(), mean_network())]
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [{"clip": (-1.0, 1.0)}, {"variance": "beta"}, {"spacing": "trailing"}])
def test_options_of_respaced_ancestral_sampling(options: dict[str, Any]) -> None:
    runs = [
        ulam.sample(
            denoiser, DDPM(7, **options), (2,), 6, x_init=states(), dtype=torch.float64, backend="reference",
            progress=False,
        )
        for denoiser in (eps_network(), mean_network(time="index"))
    ]  # fmt: skip
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-9, atol=1e-9)


def test_training_steps_without_respacing_are_the_output_itself() -> None:
    """x_(t-1) = m + sqrt(beta~) z: nothing is left of x, and of D nothing is divided by."""
    program = mean_network().program(DDPM())
    on_x, on_D, on_m, _ = program.A[:, 0].T
    np.testing.assert_allclose(on_m, 1, atol=1e-12)
    np.testing.assert_allclose(on_x, 0, atol=1e-12)
    assert not on_D.any()


def test_zero_terminal_snr_starts_from_pure_noise() -> None:
    x0 = Denoiser(lambda x, t: torch.full_like(x, 0.7), ZERO_SNR, "x0")
    on_x, on_D, _ = (torch.from_numpy(c) for c in step_back(ZERO_SNR, *ZERO_SNR.levels(np.arange(100.0))))
    mean = Denoiser(lambda x, t: on_x[t.long()][:, None] * x + on_D[t.long()][:, None] * 0.7, ZERO_SNR, "mean")
    for sampler in (DDIM(10, spacing="trailing"), DDPM(), UniPC(10, spacing="trailing")):
        runs = [
            ulam.sample(d, sampler, (2,), 3, dtype=torch.float64, backend="reference", progress=False)
            for d in (x0, mean)
        ]
        torch.testing.assert_close(runs[1], runs[0], rtol=1e-8, atol=1e-8)


def test_losses_are_those_of_eps_up_to_their_weights() -> None:
    t, x = torch.tensor([0, 1, 20, 500, 998, 999]), states().float()
    for weighting in ("snr", "min-snr", "x0"):
        losses = [
            objectives.denoising(d, x, t, weighting=weighting, seed=3, step=0) for d in (eps_network(), mean_network())
        ]
        torch.testing.assert_close(losses[1][:4], losses[0][:4], rtol=1e-4, atol=1e-6)
    batch, noise = (
        objectives.add_noise(x, t, SCHEDULE, "mean", seed=3, step=0),
        objectives.add_noise(x, t, SCHEDULE, seed=3, step=0),
    )
    assert torch.equal(batch.x_t, noise.x_t)
    exact = ops.posterior_mean(noise.x_t.double(), noise.target.double(), t, SCHEDULE, "eps")
    torch.testing.assert_close(batch.target.double(), exact, rtol=0, atol=1e-6)
    simple = objectives.denoising(mean_network(), x, t, seed=3, step=0)
    _, on_D, _ = step_back(SCHEDULE, *SCHEDULE.levels(t.numpy()))
    D = ops.predict_x0(batch.x_t.double(), network(SCHEDULE, "mean")(batch.x_t, t), t, SCHEDULE, "mean")
    expected = torch.from_numpy(on_D) ** 2 * (D - x).square().mean(1)
    torch.testing.assert_close(simple.double()[:4], expected[:4], rtol=1e-3, atol=1e-9)


def test_bounds_and_likelihoods_equal_those_of_eps() -> None:
    x = states()
    denoisers = eps_network(SHORT), mean_network(SHORT)
    for options in ({}, {"timesteps": (3, 17, 39), "variance": "beta"}):
        found = [bounds.vlb(d, x, decoder="gaussian", backend="reference", **options) for d in denoisers]  # type: ignore[arg-type]
        torch.testing.assert_close(found[1].terms, found[0].terms, rtol=1e-8, atol=1e-9)
    flows = [bounds.likelihood(d, x, trace="exact", solver="heun", steps=20) for d in denoisers]
    torch.testing.assert_close(flows[1].log_prob, flows[0].log_prob, rtol=1e-8, atol=1e-8)


def test_estimates_equal_those_of_eps() -> None:
    y, sigma = states(), float(SCHEDULE.ratios[300])
    denoisers = eps_network(), mean_network()
    v = torch.ones_like(y)
    estimates = [
        lambda d: tweedie.mean(d, y, sigma),
        lambda d: tweedie.covariance_diagonal(d, y, sigma),
        lambda d: tweedie.third_cumulant(d, y, sigma, v),
        lambda d: sure.estimate(d, y, sigma).per_chain,
        lambda d: mcmc.DenoiserScore(d, sigma).bind(y, torch.arange(len(y)), len(y), None)(y, True)[1],
    ]
    for estimate in estimates:
        of_eps, of_mean = map(estimate, denoisers)
        torch.testing.assert_close(of_mean, of_eps, rtol=1e-8, atol=1e-8)


# ------------------------------------------------------------------------------------------------ refusals


def test_what_a_mean_is_not_defined_for_is_refused() -> None:
    x = states()
    with pytest.raises(ValueError, match=r"^schedule: got flow\(.*\) under predicts='mean', expected a vp schedule"):
        Denoiser(lambda x, t: x, schedules.flow(), "mean")
    with pytest.raises(ValueError, match=r"^schedule: got ve\(.*\) under predicts='mean', expected a vp schedule"):
        DDIM(5).program(schedules.ve(0.1, 10), "mean")
    with pytest.raises(ValueError, match=r"^schedule: got flow\(.*\) under predicts='mean'"):
        objectives.add_noise(x.float(), 0.5, schedules.flow(), "mean", step=0)
    with pytest.raises(ValueError, match=r"^predicts: got 'mean' at t = 2.5, expected whole training steps"):
        ops.predict_x0(x, x, 2.5, SCHEDULE, "mean")
    with pytest.raises(ValueError, match=r"^predicts: got 'mean' at t = 2.5, expected whole training steps"):
        objectives.denoising(mean_network(), x.float(), 2.5, step=0)
    with pytest.raises(ValueError, match=r"^predicts: got 'mean' at t = .*, expected whole training steps"):
        Euler(7).program(SCHEDULE, "mean")
    with pytest.raises(
        ValueError, match=r"^timesteps: got t = 2.5 under predicts='mean', expected whole training steps"
    ):
        mean_network().program(DDIM(timesteps=(2.5, 1.0)))
    with pytest.raises(ValueError, match=r"^churn: got 3 under predicts='mean', expected 0"):
        mean_network().program(Heun(7, churn=3.0))
    with pytest.raises(ValueError, match=r"^steps: got 999 under predicts='mean', two of them at training step"):
        mean_network().program(Euler(999, sigmas="karras"))
    with pytest.raises(
        ValueError, match=r"^sigma: got 0.5 under predicts='mean', expected sigma / alpha of a training"
    ):
        tweedie.mean(mean_network(), x, 0.5)
    with pytest.raises(ValueError, match=r"^solver: got 'rk4' under predicts='mean', expected 'heun'"):
        bounds.likelihood(mean_network(), x)
    flat = schedules.from_betas([0.5, 1e-20, 0.5])
    with pytest.raises(ValueError, match=r"^predicts: got 'mean' at t = 1, a step that adds no noise"):
        ops.predict_x0(x[:3], x[:3], torch.arange(3), flat, "mean")
