"""`named` makes of ComfyUI's names what ComfyUI runs: with ULAM_COMFYUI naming a checkout of it; else skipped."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from comfyui_module import Array, Network, brownian, sampling_module
from oracles import execute
from ulam import schedules
from ulam.programs.program import Program
from ulam.samplers import Grid, named
from ulam.samplers.names import COMFYUI

# ddim and uni_pc are elsewhere in ComfyUI; it has no dpm_fast of a list of levels; lcm and sa_solver ask its model for
# more than levels; ipndm_v has slips of its own, deis errors; the last is a formula that it has changed.
ELSEWHERE = {
    "ddim", "uni_pc", "uni_pc_bh2", "dpm_fast", "lcm", "sa_solver", "sa_solver_pece", "ipndm_v", "deis",
    "dpmpp_2s_ancestral_cfg_pp",
}  # fmt: skip
NAMES = [name for name in COMFYUI if name not in ELSEWHERE and not name.endswith("_gpu")]
SCHEDULE = schedules.ve(0.02, 60)
STD, MEAN = np.array([[0.2], [0.7], [1.5], [3.0], [0.05]]), np.array([[0.3], [-1.0], [0.5], [2.0], [0.0]])
DRAWS = 40
WEIGHT = 2.5  # of guidance


def estimate(y: Array, u: float) -> tuple[Array, Array]:
    """(guided, unguided) D, affine in y with slopes and offsets of its own in every component."""
    guided = (STD**2 * y + u**2 * MEAN) / (STD**2 + u**2)
    unguided = (0.8 * STD**2 * y - 0.3 * u**2) / (STD**2 + u**2)
    return unguided + WEIGHT * (guided - unguided), unguided


def signal() -> tuple[Array, Array]:
    """(x, noises): a column of x alone, one of zeros, and one for each noise, which is 1 there."""
    columns = 2 + DRAWS
    x = np.zeros((len(STD), columns))
    x[:, 0] = np.linspace(-9, 9, len(STD))
    return x, np.broadcast_to(np.eye(columns)[2:, None, :], (DRAWS, len(STD), columns))


def ours(program: Program, x: Array, noises: Array) -> Array:
    adds = (program.A[:, :, -1] != 0).any(axis=1)
    number = np.cumsum(adds) - 1

    def both(row: int, scaled: Array) -> tuple[Array, Array]:
        level = float(SCHEDULE.sigma(np.array(program.time[row])))
        return estimate(scaled / program.c_in[row], level)

    return execute(
        program, x, lambda row, y: both(row, y)[0],
        lambda row: noises[number[row]] if adds[row] else np.zeros_like(x), lambda row, y: both(row, y)[1],
    )[-1]  # fmt: skip


def theirs(module: Any, name: str, grid: Grid, x: Array, noises: Array) -> Array:
    function = getattr(module, f"sample_{name}", None)
    if function is None:
        pytest.skip(f"this ComfyUI has no {name}")
    noisy = "noise_sampler" in inspect.signature(function).parameters
    given = {"noise_sampler": brownian(iter(noises))} if noisy else {}
    state, levels = torch.from_numpy(x.copy()), torch.from_numpy(np.array(grid.ratios))
    return np.asarray(function(Network(estimate, False), state, levels, extra_args={}, disable=True, **given))


@pytest.mark.parametrize("sigmas", ["karras", "linear_quadratic", "kl_optimal", "a list that ends above 0"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_comfyuis(name: str, sigmas: str) -> None:
    """Its mean, and the covariance of its noise in five components of different laws."""
    sampler = (
        named(name, 9, sigmas=sigmas) if " " not in sigmas else named(name, sigmas=(9, 4.4, 1.7, 0.9, 0.31), final=0.2)
    )
    x, noises = signal()
    mine = ours(sampler.program(SCHEDULE, "x0"), x, noises)
    with sampling_module() as module:
        end = theirs(module, name, sampler.grid(SCHEDULE), x, noises)
    tolerance = 1e-6 if name == "er_sde" else 1e-9  # the points of its integrals are float32
    np.testing.assert_allclose(mine[:, :2], end[:, :2], rtol=0, atol=tolerance * abs(end[:, :2]).max())
    spread, expected = ((columns[:, 2:] - columns[:, 1:2]) for columns in (mine, end))
    np.testing.assert_allclose(
        spread @ spread.T, expected @ expected.T, rtol=0, atol=tolerance * (1 + abs(expected).max() ** 2)
    )
