"""Annealed Langevin against its paper, and what both Langevin samplers refuse; correctors in the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import ulam
from langevin_cases import MEAN, SCHEDULES, STD, execute
from oracles import Array, affine_rows, gaussian_output
from ulam import schedules
from ulam.samplers.langevin import AnnealedLangevin, PredictorCorrector

pytestmark = pytest.mark.filterwarnings("ignore:x_init. got states without a seed")


@pytest.mark.filterwarnings("ignore:norms:UserWarning")
@pytest.mark.parametrize("norms", ["expected", "chain"])
def test_the_engine_runs_correctors_chain_by_chain(norms: str) -> None:
    """In float64 as the formulas here say; alone a chain ends where it ends among others."""
    schedule, sampler = SCHEDULES["subvp"], PredictorCorrector(6, corrector_steps=2, norms=norms)
    draw = np.random.default_rng(7)
    x, noises = draw.normal(size=(8, 5)), draw.normal(size=(18, 8, 5))
    denoiser = ulam.Denoiser(lambda x, t: torch.tanh(x) * (1 + t[:, None]), schedule)
    program = denoiser.program(sampler)

    def sample(chains: list[int]) -> Array:
        return ulam.sample(
            denoiser,
            sampler,
            (5,),
            chains,
            x_init=torch.from_numpy(x[chains]),
            noise=lambda row, chains: torch.from_numpy(noises[row])[chains],
            dtype=torch.float64,
            backend="reference",
            progress=False,
        ).numpy()

    together = sample(list(range(8)))
    expected = execute(program, x, lambda row, x: np.tanh(x) * (1 + program.time[row]), lambda row: noises[row])
    np.testing.assert_allclose(together, expected, rtol=1e-11)
    np.testing.assert_array_equal(sample([5]), together[5:6])


# ------------------------------------------------------------------------------------------ annealed Langevin


def test_annealed_langevin_is_algorithm_1() -> None:
    """Song & Ermon 2019, alg. 1, word for word, on a non-linear score; their sigma_1 = 1, sigma_L = 0.01, L = 10."""
    levels, T, epsilon = np.geomspace(1, 0.01, 10), 7, 2e-5
    draw = np.random.default_rng(8)
    x0, noises = draw.normal(size=(4, 3)), draw.normal(size=(71, 4, 3))

    def score(x: Array, sigma: float) -> Array:
        return -np.tanh(x - 1) / sigma**2

    x, row = x0, 0
    for sigma in levels:
        alpha = epsilon * sigma**2 / levels[-1] ** 2
        for _ in range(T):
            x = x + alpha / 2 * score(x, sigma) + np.sqrt(alpha) * noises[row]
            row += 1
    expected = x + 0.01**2 * score(x, 0.01)
    schedule = schedules.ve(0.01, 1)
    for sampler in (AnnealedLangevin(10, T), AnnealedLangevin(levels, T, step=epsilon)):
        program = sampler.program(schedule, "score")
        assert program.nfe == len(program) == 71 and program.order == 0 and program.needs == ("noise",)
        told = program.time
        mine = execute(program, x0, lambda row, x, told=told: score(x, told[row]), lambda row: noises[row])
        np.testing.assert_allclose(mine, expected, rtol=1e-11)
    rows = AnnealedLangevin(10, T, denoise=False).program(schedule, "score")
    assert rows.nfe == 70 and (program.A[:-1] == rows.A).all()


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_annealed_langevin_ends_at_the_law_of_its_last_step_size(name: str, predicts: str) -> None:
    """x' = x - h (x - m) / 2P + sqrt(h) z has variance P / (1 - h / 4P) [the stationary law of its recursion]."""
    schedule, gaps = SCHEDULES[name], []
    for step in (0.04, 0.02, 0.01):
        ratios = [3.0, 1.0, 0.3]
        levels = [r / (1 + r) for r in ratios] if name == "flow" else ratios
        sampler = AnnealedLangevin(levels, 3000, step=step, denoise=False)
        program, grid = sampler.program(schedule, predicts), sampler.grid(schedule)
        alpha, sigma = (np.repeat(of[:-1], 3000) for of in (grid.alphas, grid.sigmas))
        law = np.array([0.0, 9.0])
        for gain, offset, noise in affine_rows(program, (alpha, sigma), MEAN, STD):
            law = np.array([gain * law[0] + offset, gain**2 * law[1] + noise**2])
        P = (alpha[-1] * STD) ** 2 + sigma[-1] ** 2
        np.testing.assert_allclose(law, [alpha[-1] * MEAN, P / (1 - step / (4 * P))], rtol=1e-9)
        gaps.append(law[1] - P)
    assert np.log2(np.array(gaps[:-1]) / gaps[1:]) == pytest.approx([1, 1], abs=0.15)


def test_annealed_langevin_grids() -> None:
    schedule = SCHEDULES["linear"]
    geometric = AnnealedLangevin(5, 1, sigmas="exponential").grid(schedule).ratios[:-1]
    np.testing.assert_allclose(geometric[1:] / geometric[:-1], geometric[1] / geometric[0], rtol=1e-12)
    assert AnnealedLangevin(5, 1).grid(schedule).times.tolist() == [999, 749, 500, 250, 0]
    assert AnnealedLangevin([2, 1], 1) == AnnealedLangevin(sigmas=[2.0, 1.0], steps_per_level=1)
    assert AnnealedLangevin(timesteps=[900, 10], steps_per_level=1).program(schedule).nfe == 3


# -------------------------------------------------------------------------------------- hard schedules, errors


@pytest.mark.parametrize("steps", [2, 3, 5, 10])
@pytest.mark.parametrize("predicts", ["v", "x0", "flow"])
def test_zero_terminal_snr_and_cosine_at_few_steps(predicts: str, steps: int) -> None:
    """At alpha = 0 the score is -x / sigma^2, whatever the data, and nothing of x is left behind by the ancestral row.

    (Programs with a coefficient that is not finite do not exist.)
    """
    snr0 = schedules.zero_terminal_snr(schedules.vp_linear())
    predictors = ("reverse_diffusion", "ancestral", "none")
    samplers: list[Any] = [PredictorCorrector(steps, p, norms=n) for p in predictors for n in ("expected", "chain")]
    for sampler in (*samplers, AnnealedLangevin(steps, 2)):
        sampler.program(SCHEDULES["cosine"], predicts)
        program = sampler.program(snr0, predicts)
        assert program.time[0] == 999
        slope, offset = gaussian_output(predicts, 0.0, 1.0, MEAN, STD)
        if isinstance(sampler, PredictorCorrector) and sampler.norms == "expected":
            assert program.A[0, 0].tolist() == [1, 0, 0, 0]  # a = 0: no corrector at pure noise
        if program.normalise[0]:
            assert program.kx[0] + program.km[0] * slope == pytest.approx(-1)
            assert program.km[0] * offset == pytest.approx(0, abs=1e-15) and not program.A[0, 0, 1:].any()
    first = PredictorCorrector(steps, "ancestral", "none").program(snr0, predicts)
    alpha = PredictorCorrector(steps).grid(snr0).alphas[1]
    slope, offset = gaussian_output(predicts, 0.0, 1.0, MEAN, STD)
    gain, shift = first.A[0, 0, 0] + first.A[0, 0, 2] * slope, first.A[0, 0, 2] * offset
    assert gain == pytest.approx(0, abs=1e-15) and shift == pytest.approx(alpha * MEAN)


@pytest.mark.parametrize("predicts", ["eps", "score"])
@pytest.mark.parametrize(
    "sampler",
    [
        *(PredictorCorrector(5, predictor) for predictor in ("reverse_diffusion", "ancestral", "none")),
        PredictorCorrector(5, corrector="none"),
        AnnealedLangevin(5, 2),
    ],
    ids=repr,
)
def test_zero_terminal_snr_raises_for_eps(sampler: Any, predicts: str) -> None:
    with pytest.raises(ValueError, match=f"predicts: got '{predicts}', which says nothing about x_0 where alpha is 0"):
        sampler.program(schedules.zero_terminal_snr(schedules.vp_linear()), predicts)


BAD: dict[str, Callable[[], object]] = {
    "levels: got None, expected a number of levels": lambda: AnnealedLangevin(),
    "levels: got 0, expected a whole number of at least 1": lambda: AnnealedLangevin(0),
    "levels: got '5', expected a whole number of at least 1": lambda: AnnealedLangevin("5"),
    "levels: got .*, expected a number where sigmas are given": lambda: AnnealedLangevin([2, 1], sigmas="karras"),
    "sigmas: got 1 before 2, expected strictly decreasing": lambda: AnnealedLangevin([1, 2]),
    "steps_per_level: got 0, expected a whole number of at least 1": lambda: AnnealedLangevin(3, 0),
    "step: got -1, expected a finite number of at least 0": lambda: AnnealedLangevin(3, step=-1),
    "step: got 0, expected a number above 0": lambda: AnnealedLangevin(3, step=0),
    "denoise: got 1, expected True or False": lambda: AnnealedLangevin(3, denoise=1),
    "predictor: got 'euler', expected one of reverse_diffusion, ancestral, none": lambda: PredictorCorrector(
        3, "euler"
    ),
    "norms: got 'batch', expected one of expected, chain": lambda: PredictorCorrector(3, norms="batch"),
    "corrector: got 'ald', expected one of langevin, none": lambda: PredictorCorrector(3, corrector="ald"),
    "predictor, corrector: got 'none' for both": lambda: PredictorCorrector(3, "none", "none"),
    "corrector_steps: got .*, expected a whole number of at least 1": lambda: PredictorCorrector(3, corrector_steps=0),
    "snr: got nan, expected a finite number of at least 0": lambda: PredictorCorrector(3, snr=float("nan")),
    "predicts: got 'eps', which says nothing about x_0": lambda: PredictorCorrector(3, "ancestral").program(
        schedules.zero_terminal_snr(schedules.vp_linear())
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_annealed_langevin_has_no_final_level() -> None:
    with pytest.raises(TypeError, match="final"):
        AnnealedLangevin(3, final="sigma_min")  # type: ignore[call-arg]
