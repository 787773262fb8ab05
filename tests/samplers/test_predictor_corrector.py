"""Predictor-corrector samplers against papers, diffusers and exact laws of Gaussian data."""

from __future__ import annotations

import warnings
from typing import Any

import diffusers.schedulers.scheduling_sde_ve as diffusers_sde_ve
import numpy as np
import pytest
import torch
from diffusers import ScoreSdeVeScheduler

import ulam
from langevin_cases import MEAN, SCHEDULES, STD, execute, gaussian_network, ratio_grid
from oracles import affine_rows
from ulam import schedules
from ulam.samplers.ddpm import DDPM
from ulam.samplers.langevin import PredictorCorrector

pytestmark = pytest.mark.filterwarnings("ignore:x_init. got states without a seed")


def test_vp_rows_on_every_training_step_are_the_papers() -> None:
    """Song 2021b, alg. 3 (reverse diffusion, beta), eq. 4 (ancestral), alg. 5 (corrector, a = 1 - beta)."""
    schedule = SCHEDULES["linear"]
    assert isinstance(schedule, schedules.VariancePreserving)
    beta, sigma = schedule.betas[::-1], np.sqrt(schedule.variances[::-1])
    program = PredictorCorrector(1000, snr=0.1, denoise=False, norms="chain").program(schedule)
    assert len(program) == 2000 and program.order == 0 and program.needs == ("noise", "reductions")
    corrector, predictor = program.A[::2, 0], program.A[1::2, 0]
    assert (
        program.normalise.tolist() == [True, False] * 1000 and program.time[::2].tolist() == program.time[1::2].tolist()
    )
    np.testing.assert_allclose(predictor[:, 0], 2 - np.sqrt(1 - beta), rtol=1e-13)
    np.testing.assert_allclose(predictor[:, 2], -beta / sigma, rtol=1e-10)
    np.testing.assert_allclose(predictor[:, 3], np.sqrt(beta), rtol=1e-10)
    np.testing.assert_allclose(corrector[:, 1], 2 * (1 - beta) * 0.1**2, rtol=1e-12)
    np.testing.assert_allclose(corrector[:, 3], np.sqrt(2 * corrector[:, 1]), rtol=1e-12)
    assert (corrector[:, 0] == 1).all() and not corrector[:, 2].any()
    np.testing.assert_allclose(program.km[::2], -1 / sigma, rtol=1e-13)  # D is the score

    program = PredictorCorrector(1000, snr=0.1, denoise=False).program(schedule)
    assert len(program) == 2000 and program.order == 0 and program.needs == ("noise",)
    assert (program.A[1::2] == predictor[:, None]).all()
    h = 2 * (1 - beta) * (0.1 * sigma) ** 2  # norm(s) = sqrt(n) / sigma in alg. 5
    np.testing.assert_allclose(program.A[::2, 0, 2], -h / sigma, rtol=1e-12)
    np.testing.assert_allclose(program.A[::2, 0, 3], np.sqrt(2 * h), rtol=1e-12)
    assert (program.A[::2, 0, :2] == [1, 0]).all()

    ancestral = PredictorCorrector(1000, "ancestral", "none").program(schedule)
    np.testing.assert_allclose(ancestral.A[:, 0, 0], 1 / np.sqrt(1 - beta), rtol=1e-13)
    np.testing.assert_allclose(ancestral.A[:, 0, 2], -beta / sigma / np.sqrt(1 - beta), rtol=1e-10)
    np.testing.assert_allclose(ancestral.A[:-1, 0, 3], np.sqrt(beta[:-1]), rtol=1e-10)
    assert ancestral.A[-1, 0, 3] == 0 and ancestral.order == 1


def test_ve_rows_are_the_papers() -> None:
    """Song 2021b, alg. 2 with G^2 = sigma_i^2 - sigma_{i-1}^2, and eq. 47 (ancestral); score prediction."""
    levels = np.array([5.0, 2.0, 0.5])
    G2 = levels**2 - np.append(levels[1:], 0) ** 2
    for predictor, std in (("reverse_diffusion", np.sqrt(G2)), ("ancestral", np.sqrt(G2) * [0.4, 0.25, 0])):
        sampler = PredictorCorrector(predictor=predictor, corrector="none", denoise=False, sigmas=levels)
        A = sampler.program(SCHEDULES["ve"], "score").A[:, 0]
        np.testing.assert_allclose(A, np.stack([np.ones(3), np.zeros(3), G2, std], axis=1), rtol=1e-13)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ancestral_predictor_is_ddpm(name: str) -> None:
    variance = "beta" if name in ("linear", "cosine") else "posterior"
    mine = PredictorCorrector(12, "ancestral", "none", spacing=None).program(SCHEDULES[name], "v")
    grid = PredictorCorrector(12).grid(SCHEDULES[name])
    ddpm = DDPM(timesteps=grid.times, variance=variance).program(SCHEDULES[name], "v")
    np.testing.assert_allclose(mine.A, ddpm.A, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("steps", "correct", "snr"), [(5, 1, 0.15), (10, 2, 0.3), (50, 1, 0.16)])
def test_ve_equals_diffusers_on_one_chain(
    steps: int, correct: int, snr: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers takes the batch mean of norms: on a batch of one that is the chain's own."""
    draw = np.random.default_rng(4)
    theirs = ScoreSdeVeScheduler(snr=snr, sigma_min=0.01, sigma_max=1348.0, correct_steps=correct)
    theirs.set_timesteps(steps)
    theirs.set_sigmas(steps)
    theirs.discrete_sigmas = torch.from_numpy(np.geomspace(0.01, 1348.0, steps))
    sampler = PredictorCorrector(steps, corrector_steps=correct, snr=snr, norms="chain")
    program = sampler.program(schedules.ve(0.01, 1348.0), "score")
    np.testing.assert_allclose(program.time[:: correct + 1], theirs.sigmas, rtol=2e-4)  # its t ends at 1e-5
    assert len(program) == program.nfe == steps * (correct + 1) and program.init_scale == theirs.init_noise_sigma

    x = draw.normal(size=(1, 6)) * 1348
    outputs, noises = draw.normal(size=(2, len(program), 1, 6))
    outputs /= program.time[:, None, None]
    state, row = torch.from_numpy(x), 0
    for t in theirs.timesteps:
        for correction in [True] * correct + [False]:
            noise = torch.from_numpy(noises[row])
            monkeypatch.setattr(diffusers_sde_ve, "randn_tensor", lambda *_, z=noise, **__: z)
            m = torch.from_numpy(outputs[row])
            if correction:
                state = theirs.step_correct(m, state).prev_sample
            else:
                output = theirs.step_pred(m, t, state)
                state = output.prev_sample
            row += 1
    mine = execute(program, x, lambda row, _: outputs[row], lambda row: noises[row])
    np.testing.assert_allclose(mine, output.prev_sample_mean.numpy(), rtol=1e-5, atol=1e-5 * abs(x).max() / 1348)


@pytest.mark.parametrize("predicts", ["eps", "v", "score"])
@pytest.mark.parametrize("predictor", ["reverse_diffusion", "ancestral"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_predictors_converge_at_order_1(name: str, predictor: str, predicts: str) -> None:
    errors = []
    for steps in (60, 120, 240):
        sampler = PredictorCorrector(predictor=predictor, corrector="none", denoise=False, **ratio_grid(name, steps))
        program, grid = sampler.program(SCHEDULES[name], predicts), sampler.grid(SCHEDULES[name])
        assert program.order == 1
        laws = np.stack([grid.alphas * MEAN, (grid.alphas * STD) ** 2 + grid.sigmas**2], axis=1)
        law = laws[0]
        for gain, offset, noise in affine_rows(program, (grid.alphas[:-1], grid.sigmas[:-1]), MEAN, STD):
            law = np.array([gain * law[0] + offset, gain**2 * law[1] + noise**2])
        errors.append(abs(law - laws[-1]))
    means, variances = np.array(errors).T
    assert (np.log2(variances[:-1] / variances[1:]) > 0.7).all()
    assert (means < 1e-10).all() or (np.log2(means[:-1] / means[1:]) > 0.7).all()


@pytest.mark.parametrize("name", ["linear", "ve", "subvp"])
@pytest.mark.parametrize("predictor", ["reverse_diffusion", "none"])
def test_corrector_by_chain_has_the_law_of_many_elements(name: str, predictor: str) -> None:
    """In d elements |z|^2 is d and |s|^2 is d E s^2 but for 1 / sqrt(d): then the step size is fixed and x Gaussian.

    For x of variance V and mean alpha MEAN + e: s = -(x - alpha MEAN) / P with P the true variance, so E s^2 = (V +
    e^2) / P^2, and one step of size h = 2 a^2 snr^2 / E s^2 takes V to (1 - h / P)^2 V + 2 h and e to (1 - h / P) e.
    """
    chains, d, snr, schedule = 40, 4000, 0.2, SCHEDULES[name]
    sampler = PredictorCorrector(12, predictor, corrector_steps=2, snr=snr, denoise=False, norms="chain")
    program, grid = sampler.program(schedule), sampler.grid(schedule)
    per_level = len(program) // 12
    alpha, sigma = np.repeat(grid.alphas[:-1], per_level), np.repeat(grid.sigmas[:-1], per_level)
    a = np.repeat(grid.alphas[:-1] / grid.alphas[1:], per_level)
    mean, V = grid.alphas[0] * MEAN + 0.1 * grid.sigmas[0], 1.3 * grid.sigmas[0] ** 2
    draw = np.random.default_rng(5)
    x = mean + np.sqrt(V) * draw.normal(size=(chains, d))
    for row, (gain, offset, noise) in enumerate(affine_rows(program, (alpha, sigma), MEAN, STD)):
        if program.normalise[row]:
            P = (alpha[row] * STD) ** 2 + sigma[row] ** 2
            e = mean - alpha[row] * MEAN
            h = 2 * (a[row] * snr) ** 2 * P**2 / (V + e**2)
            mean, V = mean - h / P * e, (1 - h / P) ** 2 * V + 2 * h
        else:
            mean, V = gain * mean + offset, gain**2 * V + noise**2
    x = execute(program, x, gaussian_network(program, (alpha, sigma)), lambda _: draw.normal(size=x.shape))
    errors = np.array([x.mean() - mean, x.var() / V - 1]) / [np.sqrt(V), np.sqrt(2)] * np.sqrt(chains * d)
    assert (abs(errors) < 4).all()


def test_correctors_keep_the_law_but_for_a_bias_of_order_snr_squared() -> None:
    """Corrector steps alone, many at one level, end at V = P (1 + c), c of order snr^2: so order 0 is declared."""
    biases = []
    for snr in (0.4, 0.2, 0.1):
        V = 1.0
        for _ in range(3000):
            h = 2 * snr**2 / V
            V = (1 - h) ** 2 * V + 2 * h
        biases.append(V - 1)
    assert np.log2(np.array(biases[:-1]) / biases[1:]) == pytest.approx([2, 2], abs=0.15)
    options: dict[str, Any] = {"predictor": "none", "corrector_steps": 400, "snr": 0.2, "final": 0.999}
    sampler = PredictorCorrector(sigmas=[1.0], norms="chain", **options)
    program = sampler.program(SCHEDULES["ve"], "score")
    draw = np.random.default_rng(6)
    x = execute(program, draw.normal(size=(20, 2000)), lambda _, x: -x, lambda _: draw.normal(size=(20, 2000)))
    assert x.var() - 1 == pytest.approx(biases[1], abs=4 * np.sqrt(2 / x.size))


@pytest.mark.parametrize("std", [0.1, 1.0])
@pytest.mark.parametrize("name", ["linear", "ve", "flow"])
def test_corrector_by_expected_norms_leaves_the_variance_it_declares(name: str, std: float) -> None:
    """P / (1 - h / 2P) after many steps at one level, h = 2 (a snr sigma)^2, P the true variance."""
    schedule, snr = SCHEDULES[name], 0.3
    sampler = PredictorCorrector(sigmas=[0.5], predictor="none", corrector_steps=3000, snr=snr, final=0.1)
    program, grid = sampler.program(schedule, "v"), sampler.grid(schedule)
    alpha, sigma = grid.alphas[0], grid.sigmas[0]
    V = 9.0
    for gain, _, noise in affine_rows(program, (np.full(3000, alpha), np.full(3000, sigma)), 0.0, std):
        V = gain**2 * V + noise**2
    P, h = (alpha * std) ** 2 + sigma**2, 2 * (alpha / grid.alphas[1] * snr * sigma) ** 2
    assert pytest.approx(P / (1 - h / (2 * P)), rel=1e-9) == V and h <= 2 * snr**2 * P


SCORE_OF_ONE = {  # the ideal network of N(0, 1) data: E[eps | x] = sigma x / (alpha^2 + sigma^2)
    "ve": (schedules.ve(0.01, 20), 0.16),
    "vp": (schedules.vp_linear(), 0.1),
}


@pytest.mark.parametrize("elements", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("name", SCORE_OF_ONE)
def test_the_law_is_right_in_every_dimension(name: str, elements: int) -> None:
    """The standard deviation of N(0, 1) data: exactly, from the rows, within 1% of 1; sampled, within its error."""
    schedule, snr = SCORE_OF_ONE[name]
    sampler = PredictorCorrector(200, snr=snr)
    program, grid = sampler.program(schedule), sampler.grid(schedule)
    variance = program.init_scale**2
    levels = np.repeat(grid.alphas[:-1], 2), np.repeat(grid.sigmas[:-1], 2)
    for gain, _, noise in affine_rows(program, levels, 0.0, 1.0):
        variance = gain**2 * variance + noise**2
    assert np.sqrt(variance) == pytest.approx(1, abs=0.01)

    # VP: x itself is N(0, 1), so eps = sigma x
    table = torch.tensor(schedule.sigma(np.arange(1000))) if name == "vp" else None

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = (t if table is None else table[t.long()]).to(x)[:, None]
        return sigma * x if table is not None else sigma * x / (1 + sigma**2)

    chains = 4096 // elements
    x = ulam.sample(ulam.Denoiser(net, schedule), sampler, (elements,), chains, seed=3, slots=chains, progress=False)
    assert float(x.double().pow(2).mean()) / variance == pytest.approx(1, abs=4 * np.sqrt(2 / x.numel()))


def test_norms_of_few_elements_are_refused_or_warned_of() -> None:
    """The variance that norms of n elements leave is (n + 2) / (n - 2) of what many leave."""
    denoiser = ulam.Denoiser(lambda x, t: x / (1 + t[:, None] ** 2), schedules.ve(0.01, 20), "eps")
    sampler = PredictorCorrector(2, norms="chain")
    for elements in (1, 2):
        with pytest.raises(
            ValueError, match=f"norms: got 'chain' for samples of {elements} elements, expected at least 3"
        ):
            ulam.sample(denoiser, sampler, (elements,), 2, progress=False)
    for shape, percent in (((3,), "2e.02"), ((201,), "1")):
        with pytest.warns(
            UserWarning, match=f"norms: got 'chain' .* expected at least 202.* about {percent}% too large"
        ):
            ulam.sample(denoiser, sampler, shape, 2, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ulam.sample(denoiser, sampler, (202,), 2, progress=False)
        ulam.sample(denoiser, PredictorCorrector(2), (1,), 2, progress=False)

    n, snr = 24, 0.1
    options: dict[str, Any] = {"predictor": "none", "corrector_steps": 1500, "snr": snr, "final": 0.999}
    program = PredictorCorrector(sigmas=[1.0], norms="chain", **options).program(SCHEDULES["ve"], "score")
    draw = np.random.default_rng(9)
    x = execute(program, draw.normal(size=(400, n)), lambda _, x: -x, lambda _: draw.normal(size=(400, n)))
    expected = (1 + snr**2) * (n + 2) / (n - 2)
    assert (x**2).mean() == pytest.approx(expected, abs=0.02 + 4 * expected * np.sqrt(2 / x.size))
