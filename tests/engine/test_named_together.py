"""Thirty samplers by their names in one engine at once: every chain has the bits that it has alone."""

from __future__ import annotations

import pytest
import torch

import ulam
from ulam.samplers import named

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

SCHEDULE = ulam.schedules.vp_scaled_linear()
SHAPE, SLOTS = (5,), 8
NAMES = {
    "euler": "normal", "euler_cfg_pp": "karras", "euler_ancestral": "sgm_uniform", "euler_ancestral_cfg_pp": "simple",
    "heun": "karras", "heunpp2": "exponential", "exp_heun_2_x0": "karras", "exp_heun_2_x0_sde": "beta",
    "dpm_2": "karras", "dpm_2_ancestral": "ddim_uniform", "lms": "linear_quadratic", "dpm_fast": None,
    "dpmpp_2s_ancestral": "karras", "dpmpp_2s_ancestral_cfg_pp": "normal", "dpmpp_sde": "karras",
    "dpmpp_2m": "ays_sd1", "dpmpp_2m_cfg_pp": "karras", "dpmpp_2m_sde": "karras", "dpmpp_2m_sde_heun": "exponential",
    "dpmpp_3m_sde": "kl_optimal", "ddpm": "normal", "lcm": "sgm_uniform", "ipndm": "simple", "ipndm_v": "karras",
    "deis": "beta", "cfgpp_ud10_ab": "karras", "res_multistep": "karras", "res_multistep_ancestral_cfg_pp": "simple",
    "gradient_estimation": "laplace", "er_sde": "karras", "seeds_3": "karras", "sa_solver_pece": "karras",
    "uni_pc": "simple", "DPM++ 2M SDE Karras": None, "Restart": None, "DDIM CFG++": None, "PLMS": None,
}  # fmt: skip


class Network(torch.nn.Module):
    """A small one whose rows do not see one another: a row at a time, as no matrix product's bits are then shared."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in {"inner": (16, 5), "outer": (5, 16), "of_time": (16,), "of_label": (3, 16)}.items():
            self.register_buffer(name, torch.randn(shape, generator=generator) / 3)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        shift = t[:, None] / 1000 * self.of_time + self.of_label[y]
        hidden = torch.tanh((x[:, None, :] * self.inner).sum(-1) + shift)
        return (hidden[:, None, :] * self.outer).sum(-1)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_thirty_names_at_once_have_the_bits_that_each_has_alone(backend: str) -> None:
    """Two chains a name, guided by a weight of their own; more chains than slots, so that they come and go."""
    assert len(NAMES) >= 30
    denoiser = ulam.Denoiser(Network(), SCHEDULE)
    jobs = {}
    for number, (name, sigmas) in enumerate(NAMES.items()):
        sampler = named(name, 4 + number % 3, sigmas=sigmas)
        labels = torch.tensor([number % 2, (number + 1) % 2])
        guided = {"guidance": 1.5 + number / 10, "cond": {"y": labels}, "uncond": {"y": torch.full((2,), 2)}}
        jobs[name] = sampler, range(number, number + 2), number % 5, guided

    def engine() -> ulam.Engine:
        return ulam.Engine(denoiser, SHAPE, SLOTS, backend=backend)

    together = engine()
    submitted = {
        name: together.submit(sampler, chains, seed, **guided) for name, (sampler, chains, seed, guided) in jobs.items()
    }
    found = together.run()
    for name, (sampler, chains, seed, guided) in jobs.items():
        mixed = found[submitted[name]]
        assert torch.isfinite(mixed).all(), name
        for place in range(2):
            alone = engine()
            one = {
                "guidance": guided["guidance"],
                **{key: {"y": guided[key]["y"][place : place + 1]} for key in ("cond", "uncond")},
            }
            job = alone.submit(sampler, [chains[place]], seed, **one)
            assert torch.equal(alone.run()[job][0], mixed[place]), name
