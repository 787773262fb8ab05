"""The loops that samplers are held against are ComfyUI's: with ULAM_COMFYUI naming a checkout of it; else skipped."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import k_loops as loops
from comfyui_module import Network, sampling_module

LEVELS = np.array([14.0, 9.0, 5.5, 4.0, 2.1, 1.0, 0.6, 0.25, 0.1, 0.0])
multistep = partial(loops.multistep, order=4)
# ours, the name of theirs, arguments of both, those of theirs alone, and whether it has a form on flow schedules
LOOPS: dict[str, tuple[partial[Any], str, dict[str, Any], dict[str, Any], bool]] = {
    "ipndm": (partial(multistep, weights=loops.ipndm), "ipndm", {}, {}, True),
    "ipndm_v 2": (partial(loops.multistep, weights=loops.ipndm_v, order=2), "ipndm_v", {}, {"max_order": 2}, True),
    "euler_ancestral": (partial(loops.euler_ancestral), "euler_ancestral", {"eta": 0.7, "s_noise": 1.1}, {}, False),
    "euler_ancestral RF": (
        partial(loops.euler_ancestral, form="RF"), "euler_ancestral_RF", {"eta": 0.7, "s_noise": 1.1}, {}, True,
    ),
    "euler_cfg_pp": (
        partial(loops.euler_ancestral, cfg_pp=True, eta=0.0, s_noise=0.0), "euler_cfg_pp", {}, {}, True,
    ),
    "euler_ancestral_cfg_pp": (
        partial(loops.euler_ancestral, cfg_pp=True), "euler_ancestral_cfg_pp", {"eta": 0.8, "s_noise": 1.1}, {}, True,
    ),
    "dpm_2_ancestral": (
        partial(loops.second_order_ancestral, kind="dpm_2"), "dpm_2_ancestral", {"eta": 0.8, "s_noise": 1.1}, {}, True,
    ),
    "dpmpp_2s_ancestral": (
        partial(loops.second_order_ancestral, kind="dpmpp_2s"), "dpmpp_2s_ancestral", {"eta": 0.8, "s_noise": 1.1}, {},
        True,
    ),
    "dpmpp_2s_ancestral_cfg_pp": (
        partial(loops.second_order_ancestral, kind="dpmpp_2s", cfg_pp=True), "dpmpp_2s_ancestral_cfg_pp",
        {"eta": 0.8, "s_noise": 1.1}, {}, True,
    ),
    "heunpp2": (partial(loops.heun_pp), "heunpp2", {}, {}, True),
    "gradient_estimation": (
        partial(loops.gradient_estimation, gamma=1.7), "gradient_estimation", {}, {"ge_gamma": 1.7}, True,
    ),
    "gradient_estimation_cfg_pp": (
        partial(loops.gradient_estimation, gamma=1.7, cfg_pp=True), "gradient_estimation_cfg_pp", {}, {"ge_gamma": 1.7},
        True,
    ),
    "res_multistep": (partial(loops.res_multistep, eta=0.0), "res_multistep", {}, {"noise_sampler": "none"}, True),
    "res_multistep_cfg_pp": (
        partial(loops.res_multistep, eta=0.0, cfg_pp=True), "res_multistep_cfg_pp", {}, {"noise_sampler": "none"}, True,
    ),
    "res_multistep_ancestral": (
        partial(loops.res_multistep), "res_multistep_ancestral", {"eta": 0.8, "s_noise": 1.1}, {}, False,
    ),
    "res_multistep_ancestral_cfg_pp": (
        partial(loops.res_multistep, cfg_pp=True), "res_multistep_ancestral_cfg_pp", {"eta": 0.8, "s_noise": 1.1}, {},
        False,
    ),
    "dpmpp_2m_cfg_pp": (partial(loops.dpmpp_2m_cfg_pp), "dpmpp_2m_cfg_pp", {}, {}, False),
    "exp_heun_2_x0": (partial(loops.exp_heun, eta=0.0, weights="phi_2"), "exp_heun_2_x0", {}, {}, True),
    "exp_heun_2_x0_sde": (partial(loops.exp_heun, weights="phi_2"), "exp_heun_2_x0_sde", {"eta": 0.8}, {}, True),
    "seeds_2 at r = 1": (partial(loops.exp_heun, weights="phi_1"), "seeds_2", {"eta": 0.8}, {"r": 1.0}, True),
}  # fmt: skip


def estimate(y: np.ndarray, u: float) -> tuple[np.ndarray, np.ndarray]:
    guided = np.tanh(y / (1 + u)) + 0.3 * np.sin(3 * u)
    return guided, np.cos(y / (1 + u)) - 0.2 * u / (1 + u)


class Nonlinear(loops.Model):
    def __init__(self, flow: bool) -> None:
        self.flow = flow

    def both(self, y: np.ndarray, u: float) -> tuple[np.ndarray, np.ndarray]:
        return estimate(y, float(u))


def runs(module: Any, name: str, flow: bool) -> tuple[np.ndarray, np.ndarray]:
    """(our loop's last state, theirs)."""
    loop, called, shared, alone, _ = LOOPS[name]
    if not hasattr(module, f"sample_{called}"):
        pytest.skip(f"this ComfyUI has no {called}")
    if name == "dpmpp_2s_ancestral_cfg_pp" and not hasattr(module, "sample_dpmpp_2s_ancestral_RF_cfg_pp"):
        pytest.skip("this ComfyUI is older than the formula that it has now")
    levels = LEVELS / (1 + LEVELS) if flow else LEVELS
    draws = np.random.default_rng(4).normal(size=(2 * len(levels), 3, 4))
    x = 3 * draws[-1]
    twice = 2 if loop.func is loops.exp_heun else 1  # where they draw a second noise for an empty piece of the step
    mine, theirs = iter(draws), iter(torch.from_numpy(draws.repeat(twice, axis=0)))
    options = {"noise_sampler": lambda *_: next(theirs)} if shared else {}
    alone = {key: value for key, value in alone.items() if value != "none"}
    if alone != LOOPS[name][3]:  # it draws noise that it multiplies by 0
        options = {"noise_sampler": lambda *_: torch.zeros(3, 4)}
    end = getattr(module, f"sample_{called}")(
        Network(estimate, flow), torch.from_numpy(x.copy()), torch.from_numpy(levels), extra_args={}, disable=True,
        **shared, **alone, **options,
    )  # fmt: skip
    return loop(x, levels, Nonlinear(flow), lambda: next(mine), **shared), end.numpy()


@pytest.mark.parametrize("flow", [False, True], ids=["ve", "flow"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_comfyuis(name: str, flow: bool) -> None:
    if (flow and not LOOPS[name][4]) or (not flow and name.endswith("RF")):
        pytest.skip("it has no such form")
    with sampling_module() as module:
        mine, theirs = runs(module, name, flow)
    np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-9)


def test_deis_adds_up_what_we_integrate() -> None:
    """Their sum of 10,000 points, in float32 where the levels are, is off by 1e-4 of the weights."""
    LOOPS["deis"] = partial(loops.multistep, weights=loops.deis_tab, order=3), "deis", {}, {"max_order": 3}, True
    with sampling_module() as module:
        mine, theirs = runs(module, "deis", False)
    LOOPS.pop("deis")
    assert 1e-7 < abs(mine - theirs).max() < 5e-3 * abs(mine).max()


def test_dpm_fast_is_comfyuis() -> None:
    x = np.linspace(-9, 9, 7)[None]
    with sampling_module() as module:
        for nfe, eta in itertools.product((5, 6, 7, 9), (0.0, 0.6, 1.0)):
            z = np.cos(x)
            end = module.sample_dpm_fast(
                Network(estimate, False), torch.from_numpy(x.copy()), 0.1, 14.0, nfe, disable=True, eta=eta,
                s_noise=1.1, noise_sampler=lambda *_: torch.from_numpy(z),  # noqa: B023
            )  # fmt: skip
            loop = partial(loops.dpm_fast, nfe=nfe, eta=eta, s_noise=1.1)
            mine = loop(x, np.array([14.0, 0.1]), Nonlinear(False), lambda: z)  # noqa: B023
            np.testing.assert_allclose(mine, end, rtol=1e-5, atol=1e-5)  # its levels are float32
