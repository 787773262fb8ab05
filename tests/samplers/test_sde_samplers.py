"""Samplers of reverse SDEs by impulse response, against the loops of k-diffusion and ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from k_diffusion_module import Given, sampling_module
from oracles import execute
from sde_loops import Array, Ask, Levels, Noise, dpmpp_sde, er_sde, responses, seeds, three_m_sde, two_m_sde
from ulam import schedules
from ulam.samplers import DDPM, ERSDE, LCM, SEEDS, DPMSolver, DPMSolverPP, DPMSolverPPSDE
from ulam.samplers.grid import GridSampler
from ulam.schedules import FlowMatching, Schedule

SCHEDULES: dict[str, Schedule] = {
    "vp": schedules.vp_linear(),
    "ve": schedules.ve(0.01, 50),
    "flow": schedules.flow(3.0),
}
RATIOS = np.array([9.0, 5.0, 3.0, 2.0, 1.1, 0.6, 0.3, 0.1])
PREDICTIONS = {"vp": "eps", "ve": "x0", "flow": "flow"}
ETAS = (0.0, 0.5, 1.0, 1.7)
WHOLE = {"lower_order_final": False}  # k-diffusion lowers no orders before the last row


def on_levels(make: Callable[..., GridSampler], schedule: Schedule, to_data: bool) -> GridSampler:
    levels = RATIOS / (1 + RATIOS) if isinstance(schedule, FlowMatching) else RATIOS
    return make(sigmas=tuple(levels[:-1]), final="zero" if to_data else float(levels[-1]))


def power(eta: float, u: Any) -> Any:
    return u ** (1 + eta)


def authors(u: Any) -> Any:
    return u * (np.exp(u**0.3) + 10)


Case = tuple[Callable[..., GridSampler], Callable[..., Array]]
CASES: dict[str, Case] = {}
for eta in ETAS:
    common = {"eta": eta, "s_noise": 0.9}
    for form in ("midpoint", "heun"):
        make = partial(DPMSolverPP, sde=True, variant=form, **common, **WHOLE)
        CASES[f"dpmpp_2m_sde {form} eta={eta}"] = make, partial(two_m_sde, solver_type=form, **common)
    make = partial(DPMSolverPP, order=3, sde=True, variant="heun", **common, **WHOLE)
    CASES[f"dpmpp_3m_sde eta={eta}"] = make, partial(three_m_sde, **common)
    for r in (0.3, 0.5):
        CASES[f"dpmpp_sde eta={eta} r={r}"] = partial(DPMSolverPPSDE, r=r, **common), partial(dpmpp_sde, r=r, **common)
    for r, phi in ((0.5, "phi_1"), (0.3, "phi_2"), (1.0, "phi_2")):
        loop = partial(seeds, places=[r], solver_type=phi, **common)
        CASES[f"seeds_2 eta={eta} r={r} {phi}"] = partial(SEEDS, r=r, solver_type=phi, **common), loop
    for places in ((1 / 3, 2 / 3), (0.2, 0.9)):
        make = partial(SEEDS, stages=3, r_1=places[0], r_2=places[1], **common)
        loop = partial(seeds, places=[*places], solver_type="phi_2", **common)
        CASES[f"seeds_3 eta={eta} {places[1]:.1f}"] = make, loop
    for stages in (1, 2, 3):
        loop = partial(er_sde, s_noise=0.9, phi=partial(power, eta), max_stage=stages)
        CASES[f"er_sde of order {stages} eta={eta}"] = partial(ERSDE, stages=stages, **common), loop
for stages in (1, 2, 3):
    loop = partial(er_sde, s_noise=1.0, phi=authors, max_stage=stages)
    CASES[f"er_sde of order {stages}"] = partial(ERSDE, stages=stages), loop


@pytest.mark.parametrize("to_data", [True, False])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("case", CASES)
def test_last_state_responds_as_in_the_loop(case: str, name: str, to_data: bool) -> None:
    make, loop = CASES[case]
    sampler = on_levels(make, SCHEDULES[name], to_data)
    mine, theirs, program = responses(sampler, SCHEDULES[name], PREDICTIONS[name], loop)
    assert abs(mine - theirs).max() <= 1e-10 * abs(theirs).max()
    noisy = getattr(sampler, "eta", 1.0) != 0
    assert program.needs_noise == noisy


# ------------------------------------------------------------------------------------- k-diffusion's own module

THEIRS: dict[str, tuple[Callable[..., GridSampler], str, dict[str, Any]]] = {
    "2m midpoint": (partial(DPMSolverPP, sde=True, **WHOLE), "sample_dpmpp_2m_sde", {}),
    "2m heun": (
        partial(DPMSolverPP, sde=True, variant="heun", **WHOLE),
        "sample_dpmpp_2m_sde",
        {"solver_type": "heun"},
    ),
    "3m": (partial(DPMSolverPP, sde=True, order=3, variant="heun", **WHOLE), "sample_dpmpp_3m_sde", {}),
    "sde": (DPMSolverPPSDE, "sample_dpmpp_sde", {}),
    "sde r": (partial(DPMSolverPPSDE, r=0.4), "sample_dpmpp_sde", {"r": 0.4}),
}


class Path1D:
    """Brownian increments over the square root of their time, each piece between two times being one normal."""

    def __init__(self, normals: Array, times: Array) -> None:
        self.times = times  # decreasing; normals[i] belongs to the piece from times[i] to times[i + 1]
        self.values = np.concatenate([0 * normals[:1], np.cumsum(normals * np.sqrt(-np.diff(times))[:, None, None], 0)])

    def __call__(self, above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
        a, b = (int(np.argmin(abs(self.times - float(end)))) for end in (above, below))
        return torch.from_numpy(self.values[b] - self.values[a]) / torch.sqrt(above - below)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("to_data", [True, False])
@pytest.mark.parametrize("case", THEIRS)
def test_last_state_responds_as_in_k_diffusion(case: str, to_data: bool, eta: float, tmp_path: Path) -> None:
    make, name, arguments = THEIRS[case]
    schedule = SCHEDULES["ve"]
    sampler = on_levels(partial(make, eta=eta, s_noise=0.9), schedule, to_data)
    program, levels = sampler.program(schedule, "x0"), sampler.grid(schedule).sigmas
    nfe, adds = program.nfe, (program.A[:, :, -1] != 0).any(axis=1)
    unit = np.eye(1 + nfe + adds.sum())[:, :, None]
    outputs, noises = unit[1 : 1 + nfe], unit[1 + nfe :]
    row_noise = np.zeros((nfe, *unit[0].shape))
    row_noise[adds] = noises
    mine = execute(program, unit[0], lambda row, _: outputs[row], lambda row: row_noise[row])[-1]
    r = arguments.get("r", 0.5)
    times = levels[levels > 0]
    if case.startswith("sde"):  # with the middles of steps
        times = np.concatenate([[u, u * (v / u) ** r] for u, v in pairwise(times)] + [times[-1:]])
    theirs = getattr(sampling_module(tmp_path), name)(
        Given(outputs),
        torch.from_numpy(unit[0]),
        torch.from_numpy(levels),
        eta=eta,
        s_noise=0.9,
        noise_sampler=Path1D(noises, times),
        disable=True,
        **arguments,
    ).numpy()
    assert abs(mine - theirs).max() <= 1e-9 * abs(theirs).max()


def test_two_rows_share_a_brownian_path() -> None:
    """Corr(z_m, z_t) = sqrt((u_s - u_m) / (u_s - u_t)), from the program's own columns, on VE and in t on flow."""
    for name, schedule in SCHEDULES.items():
        sampler = on_levels(DPMSolverPPSDE, schedule, to_data=False)
        grid, program = sampler.grid(schedule), sampler.program(schedule, PREDICTIONS[name])
        for i in range(len(grid)):
            carried, fresh = program.A[2 * i, 1, -1], program.A[2 * i + 1, 0, -1]
            u = grid.ratios[i] * np.array([1.0, np.sqrt(grid.ratios[i + 1] / grid.ratios[i]), 0.0])
            u[2] = grid.ratios[i + 1]
            path = u / (1 + u) if name == "flow" else u
            assert carried / np.hypot(carried, fresh) == pytest.approx(
                np.sqrt((path[0] - path[1]) / (path[0] - path[2])), rel=1e-10
            )
            q = u[2] / u[0]  # and its variance is that of one ancestral step
            assert np.hypot(carried, fresh) == pytest.approx(grid.sigmas[i + 1] * np.sqrt(1 - q**2), rel=1e-10)


# ---------------------------------------------------------------------------------------------- ddpm and lcm


def ddpm(x: Array, at: Levels, ask: Ask, noise: Noise) -> Array:
    """ComfyUI's ddpm on VP levels: the posterior mean in eps [Ho 2020, eq. 11] and its own variance."""
    for i in range(len(at.lam) - 1):
        abar, before = at.alpha[i] ** 2, at.alpha[i + 1] ** 2
        a = abar / before
        eps = (x - at.alpha[i] * ask(x, at.alpha[i], at.sigma[i])) / at.sigma[i]
        x = (x - (1 - a) / np.sqrt(1 - abar) * eps) / np.sqrt(a)
        if at.sigma[i + 1] > 0:
            x = x + np.sqrt((1 - a) * (1 - before) / (1 - abar)) * noise()
    return x


def lcm(x: Array, at: Levels, ask: Ask, noise: Noise, s_noise: float) -> Array:
    """ComfyUI's lcm: D, with new noise."""
    for i in range(len(at.lam) - 1):
        x = at.alpha[i + 1] * ask(x, at.alpha[i], at.sigma[i])
        x = x + (at.sigma[i + 1] * s_noise * noise() if at.sigma[i + 1] > 0 else 0)
    return x


@pytest.mark.parametrize("to_data", [True, False])
def test_ddpm_on_sigmas_is_comfyuis(to_data: bool) -> None:
    schedule = SCHEDULES["vp"]
    mine, theirs, _ = responses(on_levels(DDPM, schedule, to_data), schedule, "eps", ddpm)
    assert abs(mine - theirs).max() <= 1e-10 * abs(theirs).max()


@pytest.mark.parametrize("to_data", [True, False])
@pytest.mark.parametrize("name", SCHEDULES)
def test_lcm_on_sigmas_is_comfyuis(name: str, to_data: bool) -> None:
    sampler = on_levels(partial(LCM, timestep_scaling=None, s_noise=0.9), SCHEDULES[name], to_data)
    mine, theirs, _ = responses(sampler, SCHEDULES[name], PREDICTIONS[name], partial(lcm, s_noise=0.9))
    assert abs(mine - theirs).max() <= 1e-10 * abs(theirs).max()


# ------------------------------------------------------------------------------------------- ends and arguments


@pytest.mark.parametrize("predicts", ["x0", "v"])
@pytest.mark.parametrize("make", [DPMSolverPPSDE, SEEDS, partial(SEEDS, stages=3), ERSDE, partial(ERSDE, eta=0.0)])
def test_from_pure_noise_to_the_data(make: Callable[..., GridSampler], predicts: str) -> None:
    """The first row from alpha = 0 takes alpha_s D and noise, or sigma_s eps; the last gives D."""
    schedule = schedules.zero_terminal_snr(SCHEDULES["vp"])
    sampler = make(6, spacing="trailing")
    program, grid = sampler.program(schedule, predicts), sampler.grid(schedule)
    assert np.isfinite(program.A).all() and grid.alphas[0] == 0
    on_z = program.A[0, 0, -1]
    assert on_z == pytest.approx(0.0 if getattr(sampler, "eta", 1) == 0 else grid.sigmas[1], abs=1e-12)
    assert program.A[-1, 0, -1] == 0


@pytest.mark.parametrize("make", [DPMSolverPPSDE, SEEDS, partial(SEEDS, stages=3)])
@pytest.mark.parametrize("steps", [5, 100, 1000])
def test_networks_told_indices_see_whole_middles(make: Callable[..., GridSampler], steps: int) -> None:
    sampler, schedule = make(steps), SCHEDULES["vp"]
    program = sampler.index_program(schedule)
    assert (program.time % 1 == 0).all() and (np.diff(program.time) <= 0).all()
    assert np.isfinite(program.A).all()
    if steps < 1000:
        np.testing.assert_allclose(program.time, sampler.program(schedule).time, atol=1.01)


BAD: dict[str, Callable[[], object]] = {
    "eta: got 0.5 under sde=False, expected 1, or sde=True": lambda: DPMSolverPP(5, eta=0.5),
    "s_noise: got 0 under sde=False, expected 1, or sde=True": lambda: DPMSolver(5, s_noise=0.0),
    "eta: got -1, expected a finite number of at least 0": lambda: DPMSolverPP(5, sde=True, eta=-1),
    "r: got 0, expected a number in": lambda: DPMSolverPPSDE(5, r=0),
    "r_1, r_2: got 0.5 and 0.5, expected r_1 < r_2": lambda: SEEDS(5, 3, r_1=0.5, r_2=0.5),
    "stages: got 4, expected a whole number from 2 to 3": lambda: SEEDS(5, 4),
    "solver_type: got 'phi_3', expected one of phi_1, phi_2": lambda: SEEDS(5, solver_type="phi_3"),
    "stages: got 0, expected a whole number from 1 to 3": lambda: ERSDE(5, 0),
    "points: got 0, expected": lambda: ERSDE(5, points=0),
    "timestep_scaling: got -1, expected a finite number of at least 0": lambda: LCM(4, timestep_scaling=-1),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()
