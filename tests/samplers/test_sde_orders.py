"""Weak orders of the samplers of reverse SDEs, on Gaussian data, where the exact law is known: no sampling.

From a point, the mean and the variance of the last state are held against those of the SDE itself, not only against the
marginals, which some samplers keep whatever their steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from exponential_cases import log_snr_sampler
from sde_loops import conditional_errors
from ulam import schedules
from ulam.samplers import ERSDE, SEEDS, DPMSolver, DPMSolverPP, DPMSolverPPSDE, SASolver
from ulam.samplers.grid import GridSampler
from ulam.schedules import Schedule

SCHEDULES: dict[str, Schedule] = {"vp": schedules.vp_cosine(), "ve": schedules.ve(0.01, 50), "flow": schedules.flow()}
Make = Callable[..., GridSampler]
Slope = Callable[[float], float]  # d log phi / d log u


def reverse(eta: float) -> Slope:
    return lambda u: 1 + eta


def authors(u: float) -> float:
    """Of phi(u) = u (exp(u^0.3) + 10)."""
    return 1 + 0.3 * u**0.3 * np.exp(u**0.3) / (np.exp(u**0.3) + 10)


def sa(p: int, c: int, tau: float, **options: bool) -> Make:
    return partial(
        SASolver, predictor_order=p, corrector_order=c, tau=tau, interval=None, lower_order_final=False, **options
    )


CASES: dict[str, tuple[Make, Slope, int]] = {
    "er_sde 1": (partial(ERSDE, stages=1, points=None), authors, 1),
    "er_sde 2": (partial(ERSDE, stages=2, points=None), authors, 2),
    "er_sde 3": (partial(ERSDE, points=None), authors, 2),
    "er_sde 3 of the SDE": (partial(ERSDE, points=None, eta=1.0), reverse(1.0), 2),
    "sa_solver 1, 2 noise form": (sa(1, 2, 1.0, predict_x0=False), reverse(1.0), 2),
    "sa_solver 3, 4": (sa(3, 4, 1.0, simple_order_2=False), reverse(1.0), 2),
    "sa_solver 3, 4 noise form": (sa(3, 4, 1.0, simple_order_2=False, predict_x0=False), reverse(1.0), 2),
    "sa_solver 2, 1": (sa(2, 1, 1.0), reverse(1.0), 1),
}
for eta in (0.5, 1.0):
    CASES |= {
        f"dpmpp_2m_sde {eta}": (partial(DPMSolverPP, sde=True, eta=eta, lower_order_final=False), reverse(eta), 2),
        f"dpmpp_3m_sde {eta}": (
            partial(DPMSolverPP, sde=True, order=3, variant="heun", eta=eta, lower_order_final=False), reverse(eta), 2,
        ),
        f"dpm_2m_sde {eta}": (partial(DPMSolver, sde=True, eta=eta, lower_order_final=False), reverse(eta), 2),
        f"dpmpp_sde {eta}": (partial(DPMSolverPPSDE, eta=eta), reverse(eta**2), 2 if eta == 1 else 1),
        f"seeds_2 {eta}": (partial(SEEDS, eta=eta), reverse(eta), 2),
        f"exp_heun {eta}": (partial(SEEDS, eta=eta, r=1.0, solver_type="phi_2"), reverse(eta), 2),
        f"seeds_3 {eta}": (partial(SEEDS, stages=3, eta=eta), reverse(eta), 2),
        f"sa_solver 1, 0 {eta}": (sa(1, 0, np.sqrt(eta)), reverse(eta), 1),
        f"sa_solver 2, 0 {eta}": (sa(2, 0, np.sqrt(eta)), reverse(eta), 2),
        f"sa_solver 2, 2 {eta}": (sa(2, 2, np.sqrt(eta)), reverse(eta), 2),
        f"sa_solver pece {eta}": (sa(3, 4, np.sqrt(eta), simple_order_2=False, pece=True), reverse(eta), 2),
    }  # fmt: skip


def errors(make: Make, slope: Slope, schedule: Schedule, steps: int) -> tuple[int, float]:
    """(declared order, error of mean and variance together)."""
    sampler = log_snr_sampler(make, schedule, steps, (5.0, 0.1))
    program = sampler.program(schedule, "x0")
    return program.order, float(conditional_errors(sampler, schedule, slope).sum())


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("case", CASES)
def test_declared_weak_order_is_measured(case: str, name: str) -> None:
    make, slope, order = CASES[case]
    declared, coarse = errors(make, slope, SCHEDULES[name], 40)
    _, fine = errors(make, slope, SCHEDULES[name], 160)
    assert declared == order
    assert order - 0.3 <= np.log2(coarse / fine) / 2 and fine < 0.02
    if "3" not in case:  # nor is it better than declared
        assert np.log2(coarse / fine) / 2 <= order + 0.5


def test_independent_noises_would_leave_order_1() -> None:
    """The singlestep kind has the same stages as DPM-Solver++ SDE, but noise of its own in each row."""

    def independent(sigmas: tuple[float, ...], final: float) -> GridSampler:
        return DPMSolverPP(order=2, kind="singlestep", sde=True, lower_order_final=False, sigmas=sigmas, final=final)

    schedule = SCHEDULES["ve"]
    shared = [errors(DPMSolverPPSDE, reverse(1.0), schedule, n)[1] for n in (20, 80)]
    alone = [errors(independent, reverse(1.0), schedule, 2 * n)[1] for n in (20, 80)]
    assert np.log2(shared[0] / shared[1]) / 2 > 1.8
    assert np.log2(alone[0] / alone[1]) / 2 < 1.3 and alone[1] > 20 * shared[1]


def test_sums_of_er_sde_leave_an_error_of_first_order_about_one_in_points_of_the_first_stages() -> None:
    schedule = SCHEDULES["ve"]
    first = errors(partial(ERSDE, stages=1), authors, schedule, 1000)[1]
    fine = {points: errors(partial(ERSDE, points=points), authors, schedule, 1000)[1] for points in (None, 200, 100)}
    assert fine[100] / fine[200] == pytest.approx(2, abs=0.2)
    assert 0.5 < fine[200] / (first / 200) < 2 and fine[None] < fine[200] / 5
    assert ERSDE(5).program(schedule).order == 1
