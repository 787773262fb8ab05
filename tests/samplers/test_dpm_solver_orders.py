"""DPM-Solver and DPM-Solver++: where diffusers is wrong, and the orders of convergence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler

from dpm_solver_cases import ORDERS, SCHEDULES, VE, ZERO_SNR
from exponential_cases import flow_error, law_errors, log_snr_sampler, run_ours, run_solver, signals
from oracles import execute
from sampler_cases import VP
from ulam.samplers.dpm_solver import DPMSolver
from ulam.samplers.dpm_solver_pp import DPMSolverPP


def residual(step: float, theirs: bool, kind: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """The error of the third row's mean for D = lambda^2, lambda = 0, h, 2h, 3h, alpha = 1, the noise left out."""
    values = np.exp(-step * np.arange(4))
    signal = np.zeros((1, 1)), (step * np.arange(3.0))[:, None, None] ** 2, np.zeros((3, 1, 1))
    sampler = DPMSolverPP(order=3, kind=kind, variant="heun", sde=True, sigmas=values[:-1], final=float(values[-1]))
    first = 2 if kind == "multistep" else 0
    if theirs:
        cls = {"multistep": DPMSolverMultistepScheduler, "singlestep": DPMSolverSinglestepScheduler}[kind]
        scheduler = cls(
            solver_order=3,
            algorithm_type="sde-dpmsolver++",
            solver_type="heun",
            prediction_type="sample",
            final_sigmas_type="sigma_min",
        )
        scheduler.set_timesteps(3)
        if kind == "singlestep":
            scheduler.order_list = [1, 2, 3]
        else:
            scheduler.register_to_config(lower_order_final=False)
        scheduler._sigma_to_alpha_sigma_t = lambda sigma: (sigma**0, sigma)
        scheduler.sigmas = torch.from_numpy(values)
        states = run_solver(scheduler, values, signal, monkeypatch)
    else:
        states = run_ours(dataclasses.replace(sampler, lower_order_final=False).program(VE, "x0"), signal)
    start = states[first - 1, 0, 0] if first else 0.0
    g, low, high = 2.0, step * first, step * 3
    # x exp(-2 h) + int 2 exp(-2 (high - l)) l^2 dl from low to high
    antiderivative = [np.exp(-g * (high - end)) * (end**2 - 2 * end / g + 2 / g**2) for end in (low, high)]
    return abs(states[-1, 0, 0] - np.exp(-g * (high - low)) * start - (antiderivative[1] - antiderivative[0]))


@pytest.mark.parametrize("kind", ["multistep", "singlestep"])
def test_third_order_sde_where_diffusers_has_a_wrong_sign(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight of the second difference is int g exp(-g (1 - tau)) tau^2 / 2 dtau, g = 2h [Lu 2022b, app. B].

    That is (1 - exp(-g) - g) / g^2 + 1/2 = g / 6 + O(g^2) (k-diffusion's -phi_3 in sample_dpmpp_3m_sde). diffusers has
    - 1/2, so -1 + O(g). With D = lambda^2, whose integral is known, a step's error must be O(h^3) with 3M's halved
    term and rounding with the singlestep kind's full one.
    """
    steps = (0.1, 0.05, 0.025)
    mine, theirs = ([residual(h, which, kind, monkeypatch) for h in steps] for which in (False, True))
    if kind == "multistep":
        assert np.log2(np.divide(mine[:-1], mine[1:])).min() > 2.9
    else:
        assert max(mine) < 1e-15
    assert np.log2(np.divide(theirs[:-1], theirs[1:])).max() < 2.2


def test_3m_halves_the_second_difference_as_all_peers_do() -> None:
    """The multistep row of order 3 for D = lambda^2: off by half the last term of the exact integral."""
    h = 0.2
    values = np.exp(-h * np.arange(4))
    sampler = DPMSolverPP(order=3, lower_order_final=False, sigmas=values[:-1], final=float(values[-1]))
    program = sampler.program(VE, "x0")
    outputs = (h * np.arange(3.0))[:, None, None] ** 2
    states = run_ours(program, (np.zeros((1, 1)), outputs, np.zeros((3, 1, 1))))[:, 0, 0]
    antiderivative = [np.exp(end - 3 * h) * (end**2 - 2 * end + 2) for end in (2 * h, 3 * h)]
    exact = np.exp(-h) * states[1] + antiderivative[1] - antiderivative[0]
    c_2 = 1 - 2 / h * (1 - (1 - np.exp(-h)) / h)
    assert states[2] - exact == pytest.approx(-c_2 / 2 * h**2, rel=1e-9)


def dpm_fast(x: np.ndarray, ends: tuple[float, float], nfe: int, eps: Callable[[np.ndarray, float], np.ndarray]) -> Any:
    """The steps of k-diffusion's dpm_fast, eta = 0: Lu 2022a, algorithms 1 and 2, with alpha = 1 and sigma = exp(-l).

    Returns the last state and the levels at which it asked for eps, from `ends` in log-SNR.
    """
    asked: list[float] = []

    def at(u: np.ndarray, level: float) -> np.ndarray:
        asked.append(level)
        return eps(u, np.exp(-level))

    nodes = np.linspace(*ends, nfe // 3 + 2)
    orders = [3] * (nfe // 3 - 1) + [2, 1] if nfe % 3 == 0 else [3] * (nfe // 3) + [nfe % 3]
    for order, s, t in zip(orders, nodes[:-1], nodes[1:], strict=True):
        h, sigma = t - s, np.exp(-t)
        first = at(x, s)
        if order == 1:
            x = x - sigma * np.expm1(h) * first
        elif order == 2:  # algorithm 1
            u = x - np.exp(-(s + h / 2)) * np.expm1(h / 2) * first
            x = x - sigma * np.expm1(h) * first - sigma * np.expm1(h) * (at(u, s + h / 2) - first)
        else:  # algorithm 2, r_1 = 1/3, r_2 = 2/3
            u_1 = x - np.exp(-(s + h / 3)) * np.expm1(h / 3) * first
            d_1 = at(u_1, s + h / 3) - first
            g, sigma_2 = 2 * h / 3, np.exp(-(s + 2 * h / 3))
            u_2 = x - sigma_2 * np.expm1(g) * first - sigma_2 * 2 * (np.expm1(g) / g - 1) * d_1
            d_2 = at(u_2, s + 2 * h / 3) - first
            x = x - sigma * np.expm1(h) * first - sigma * 1.5 * (np.expm1(h) / h - 1) * d_2
    return x, np.array([*asked, nodes[-1]])


@pytest.mark.parametrize("nfe", [3, 4, 5, 6, 9, 10, 14])
def test_singlestep_dpmsolver_is_the_papers_and_dpm_fast(nfe: int) -> None:
    def eps(x: np.ndarray, sigma: float) -> np.ndarray:
        return np.tanh(x / (1 + sigma)) + np.sin(3 * sigma)

    x = np.linspace(-9, 9, 7)[None]
    expected, levels = dpm_fast(x, (-np.log(9.0), -np.log(0.1)), nfe, eps)
    sigmas = np.exp(-levels)
    make = partial(DPMSolver, sigmas=sigmas[:-1], final=float(sigmas[-1]), order=3, kind="singlestep")

    def end(variant: str) -> np.ndarray:
        program = make(variant=variant, lower_order_final=True).program(VE)
        return execute(program, x, lambda row, y: eps(y, sigmas[row]), lambda _: np.zeros_like(x))[-1]

    np.testing.assert_allclose(end("dpmsolver"), expected, rtol=1e-11, atol=1e-12)
    assert nfe == 3 or abs(end("midpoint") - expected).max() > 1e-4  # diffusers' second stage
    assert make(variant="dpmsolver").program(VE).order == 3


@pytest.mark.parametrize("cls", [DPMSolverPP, DPMSolver])
@pytest.mark.parametrize("sde", [False, True])
def test_dpmsolver_is_midpoint_but_in_singlestep_rows_of_order_3(cls: type[DPMSolverPP], sde: bool) -> None:
    for kind, order in (("multistep", 1), ("multistep", 2), ("multistep", 3), ("singlestep", 1), ("singlestep", 2)):
        rows = [cls(9, order, kind, variant, sde).program(VP["linear"]).A for variant in ("midpoint", "dpmsolver")]
        assert (rows[0] == rows[1]).all()


@pytest.mark.parametrize("steps", range(1, 21))
@pytest.mark.parametrize(("order", "variant"), ORDERS)
@pytest.mark.parametrize("kind", ["multistep", "singlestep"])
@pytest.mark.parametrize("cls", [DPMSolverPP, DPMSolver])
def test_ends_at_the_data_with_the_denoised_estimate(
    cls: type[DPMSolverPP | DPMSolver], kind: str, order: int, variant: str, steps: int
) -> None:
    """Whatever the number of rows, D of the last row, never NaN, also from zero terminal SNR."""
    for sde, lower in ((False, None), (False, False), (True, None)):
        for name, spacing in (("cosine", "linspace"), ("zero_snr", "trailing")):
            sampler = cls(steps, order, kind, variant, sde, lower, spacing=spacing)
            signal = signals(steps)
            states = run_ours(sampler.program(ZERO_SNR if name == "zero_snr" else VP[name], "x0"), signal)
            assert np.isfinite(states).all()
            np.testing.assert_allclose(states[-1], signal[1][-1], atol=1e-12)
            if name == "zero_snr" and not sde:  # the first step: DDIM from pure noise
                grid = sampler.grid(ZERO_SNR)
                np.testing.assert_allclose(states[0][:2, 0], [grid.sigmas[1], grid.alphas[1]], atol=1e-12)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", ["multistep", "singlestep"])
@pytest.mark.parametrize(("order", "variant"), ORDERS)
@pytest.mark.parametrize("cls", [DPMSolverPP, DPMSolver])
def test_declared_order_is_measured(
    cls: type[DPMSolverPP | DPMSolver], order: int, variant: str, kind: str, name: str, predicts: str
) -> None:
    make = partial(cls, order=order, kind=kind, variant=variant)
    errors = []
    for rows in (48, 96):
        sampler = log_snr_sampler(make, SCHEDULES[name], rows, (15.0, 0.1))
        declared, error = flow_error(sampler, SCHEDULES[name], predicts)
        errors.append(error)
    assert declared == (order if kind == "singlestep" else min(order, 2))
    assert declared - 0.3 <= np.log2(errors[0] / errors[1]) <= declared + 0.3


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", ["multistep", "singlestep"])
@pytest.mark.parametrize(("order", "variant"), ORDERS)
@pytest.mark.parametrize("cls", [DPMSolverPP, DPMSolver])
def test_sde_converges_weakly_at_its_declared_order(
    cls: type[DPMSolverPP | DPMSolver], order: int, variant: str, kind: str, name: str
) -> None:
    make = partial(cls, order=order, kind=kind, variant=variant, sde=True)
    samplers = [log_snr_sampler(make, SCHEDULES[name], rows, (5.0, 0.1)) for rows in (96, 192)]
    coarse, fine = (law_errors(sampler, SCHEDULES[name], "x0") for sampler in samplers)
    program = samplers[0].program(SCHEDULES[name], "x0")
    assert program.needs_noise and program.order == (min(order, 2) if kind == "multistep" else 1)
    assert np.log2(coarse[1] / fine[1]) >= program.order - 0.3 and fine[1] < 0.02
    if cls is DPMSolverPP:  # D is a martingale of the reverse SDE, so the conditional mean is exact
        assert fine[0] < 1e-13
    else:
        assert np.log2(coarse[0] / fine[0]) >= program.order - 0.3 and fine[0] < 0.02
