"""The loops of reverse SDEs are ComfyUI's: with ULAM_COMFYUI naming a checkout of it; else skipped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from comfyui_module import Network, brownian, sampling_module
from sa_solver_loop import sa_solver
from sde_loops import Array, Levels, dpmpp_sde, er_sde, seeds, three_m_sde, two_m_sde
from ulam import schedules
from ulam.samplers import Grid
from ulam.samplers.noise_levels import levels_at
from ulam.schedules import Schedule

RATIOS = np.array([14.0, 9.0, 5.5, 4.0, 2.1, 1.0, 0.6, 0.25, 0.1, 0.0])
SCHEDULES: dict[str, Schedule] = {"ve": schedules.ve(0.01, 50), "flow": schedules.flow()}
SHARED = {"eta": 0.8, "s_noise": 1.1}


def tau_of(sigma: Any) -> float:
    return 0.7 if 0.2 <= float(sigma) <= 5 else 0.0


def authors(u: Any) -> Any:
    return u * (np.exp(u**0.3) + 10)


def sa(pece: bool, p: int, c: int, simple: bool) -> tuple[Callable[..., Array], str, dict[str, Any], dict[str, Any]]:
    ours = {"orders": (p, c), "tau_of": tau_of, "pece": pece, "simple": simple, "s_noise": 1.1}
    theirs = {"predictor_order": p, "corrector_order": c, "tau_func": tau_of, "simple_order_2": simple, "s_noise": 1.1}
    return sa_solver, "sa_solver_pece" if pece else "sa_solver", ours, theirs


# the loop, the name of theirs, its arguments, theirs
LOOPS: dict[str, tuple[Callable[..., Array], str, dict[str, Any], dict[str, Any]]] = {
    "dpmpp_2m_sde": (partial(two_m_sde, solver_type="midpoint"), "dpmpp_2m_sde", SHARED, SHARED),
    "dpmpp_2m_sde_heun": (
        partial(two_m_sde, solver_type="heun"), "dpmpp_2m_sde", SHARED, {**SHARED, "solver_type": "heun"},
    ),
    "dpmpp_3m_sde": (three_m_sde, "dpmpp_3m_sde", SHARED, SHARED),
    "dpmpp_sde": (partial(dpmpp_sde, r=0.5), "dpmpp_sde", SHARED, SHARED),
    "dpmpp_sde r": (partial(dpmpp_sde, r=0.3), "dpmpp_sde", SHARED, {**SHARED, "r": 0.3}),
    "seeds_2": (partial(seeds, places=[0.5], solver_type="phi_1"), "seeds_2", SHARED, SHARED),
    "seeds_2 r": (partial(seeds, places=[0.3], solver_type="phi_1"), "seeds_2", SHARED, {**SHARED, "r": 0.3}),
    "seeds_3": (partial(seeds, places=[1 / 3, 2 / 3], solver_type="phi_2"), "seeds_3", SHARED, SHARED),
    "er_sde": (er_sde, "er_sde", {"phi": authors, "max_stage": 3, "s_noise": 1.1}, {"s_noise": 1.1}),
    "er_sde 2": (er_sde, "er_sde", {"phi": authors, "max_stage": 2, "s_noise": 1.1}, {"s_noise": 1.1, "max_stage": 2}),
    "er_sde of the SDE": (
        er_sde, "er_sde", {"phi": np.square, "max_stage": 3, "s_noise": 1.0}, {"noise_scaler": torch.square},
    ),
    **{
        f"sa_solver {p}, {c}{' pece' * pece}{' simple' * simple}": sa(pece, p, c, simple)
        for p, c, simple in ((3, 4, False), (2, 2, True), (2, 0, False), (1, 1, False), (4, 5, False))
        for pece in (False, True)
    },
}  # fmt: skip


def estimate(x: Array, sigma: float) -> tuple[Array, Array]:
    D = np.tanh(x / (1 + sigma)) + 0.3 * np.sin(3 * sigma)
    return D, D


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("case", LOOPS)
def test_a_loop_is_comfyuis(case: str, name: str) -> None:
    loop, called, arguments, theirs = LOOPS[case]
    schedule, flow = SCHEDULES[name], name == "flow"
    sigmas = RATIOS / (1 + RATIOS) if flow else RATIOS
    alphas = levels_at(schedule, sigmas)[0]
    levels = Levels(Grid(np.arange(9.0), alphas, sigmas), schedule)
    draws = np.random.default_rng(4).normal(size=(40, 3, 4))
    given = iter(draws)
    mine = loop(3 * draws[-1], levels, lambda x, _, sigma: estimate(x, sigma)[0], lambda: next(given), **arguments)
    with sampling_module() as module:
        if not hasattr(module, f"sample_{called}"):
            pytest.skip(f"this ComfyUI has no {called}")
        end = getattr(module, f"sample_{called}")(
            Network(estimate, flow), torch.from_numpy(3 * draws[-1]), torch.from_numpy(sigmas.copy()), extra_args={},
            disable=True, noise_sampler=brownian(iter(draws)), **theirs,
        )  # fmt: skip
    tolerance = 1e-5 if called == "er_sde" else 1e-9  # the points of its integrals are float32
    np.testing.assert_allclose(mine, end.numpy(), rtol=tolerance, atol=tolerance)
