"""Arguments of bounds, VAEs and energy models, replaced by invalid values: right, or one line that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import ulam
from hostile_arguments import Given, failures
from ulam import bounds, ebm, objectives, vae

VE, VP = ulam.schedules.ve(0.01, 50.0), ulam.schedules.vp_linear(10)


def shrink(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x * 0.5 + 0.1 * x.tanh()


def doubled(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.cat([x * 0.5, x * 0.1], 1)


DENOISER = ulam.Denoiser(shrink, VE, "x0")
EPS = ulam.Denoiser(shrink, VP)


def batch() -> torch.Tensor:
    return torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0)) - 0.5


def energy(x: torch.Tensor) -> torch.Tensor:
    return x.square().flatten(1).sum(1) / 2


def chains(**given: Any) -> torch.Tensor:
    return ebm.PersistentChains(**given).sample(energy, batch=2, steps=1)


def decoder() -> Given:
    return {"decoder": lambda z: z * 0.5, "latent_shape": (2,), "encoder": None, "scale": 1.0, "bins": None}


def given_x(**more: Any) -> Callable[[], Given]:
    return lambda: {"x": batch(), "samples": 2, "seed": 1, "step": 1, "chains": torch.arange(2), **more}


VAE = vae.GaussianVAE(lambda z: z * 0.5, (2, 3), lambda x: torch.cat([x, x * 0.1], 1))

VALID: dict[str, tuple[Callable[..., Any], Callable[[], Given]]] = {
    "vlb": (lambda **given: vars(bounds.vlb(**given)), lambda: {
        "denoiser": EPS, "x_0": batch(), "cond": None, "variance": "posterior", "timesteps": (0, 5), "sampled": None,
        "samples": 1, "decoder": "discretised", "bins": 256, "cdf": "exact", "clip": (-1.0, 1.0), "seed": 1,
        "chains": torch.arange(2), "backend": None,
    }),
    "vlb optimal": (lambda **given: vars(bounds.vlb(**given)), lambda: {
        "denoiser": EPS, "x_0": batch(), "variance": "optimal", "x0_variances": {0: 0.1, 5: 0.2}, "timesteps": (0, 5),
        "sampled": 1, "decoder": "gaussian",
    }),
    "x0_variances": (bounds.x0_variances, lambda: {
        "denoiser": EPS, "x_0": batch(), "cond": None, "timesteps": (0, 5), "samples": 2, "clip": (-1.0, 1.0),
        "seed": 1, "chains": torch.arange(2), "backend": None,
    }),
    "likelihood": (lambda **given: vars(bounds.likelihood(**given)), lambda: {
        "denoiser": DENOISER, "x": batch(), "cond": None, "solver": "heun", "steps": 2, "rtol": 1e-2, "atol": 1e-2,
        "trace": "hutchinson", "samples": 1, "kind": "rademacher", "levels": 256, "sigma_min": 0.1, "sigma_max": 10.0,
        "prior": None, "seed": 1,
    }),
    "edm": (objectives.edm, lambda: {
        "denoiser": ulam.Denoiser(shrink, ulam.schedules.edm(), "raw"), "x_0": batch(),
        "sigma": torch.tensor([0.5, 1.0]), "cond": None, "seed": 1, "step": 1, "chains": torch.arange(2),
    }),
    "hybrid": (objectives.hybrid, lambda: {
        "denoiser": ulam.Denoiser(doubled, VP), "x_0": batch(), "t": torch.tensor([0, 5]), "cond": None,
        "variance": "learned_range", "weight": 1e-3, "bins": 256, "seed": 1, "step": 1, "chains": torch.arange(2),
    }),
    "second_order_score_matching": (objectives.second_order_score_matching, lambda: {
        "score2": lambda x, sigma: x, "score": lambda x, sigma: -x, "x": batch(), "sigma": torch.tensor([0.5, 1.0]),
        "form": "diagonal", "reduced": True, "seed": 1, "step": 1, "chains": torch.arange(2),
    }),
    "vlb_term": (objectives.vlb_term, lambda: {
        "denoiser": EPS, "x_0": batch(), "t": torch.tensor([0, 5]), "cond": None, "variance": "posterior",
        "detach_mean": True, "bins": 256, "noise": None, "seed": 1, "step": 1, "chains": torch.arange(2),
    }),
    "continuous_bound": (objectives.continuous_bound, lambda: {
        "denoiser": ulam.Denoiser(shrink, ulam.schedules.learned(lambda t: 9 * t - 5)), "x_0": batch(),
        "t": torch.tensor([0.1, 0.5]), "cond": None, "prior": True, "noise": None, "seed": 1, "step": 1,
        "chains": torch.arange(2),
    }),
    "learned": (lambda **given: ulam.schedules.learned(**given).alpha(torch.tensor([0.5])), lambda: {
        "gamma": lambda t: 9 * t - 5,
    }),
    "PersistentChains": (chains, lambda: {
        "count": 4, "shape": (2,), "sampler": ulam.mcmc.ULA(0.1), "restart": 0.1, "start": None, "seed": 1,
        "device": "cpu", "backend": None,
    }),
    "PersistentChains.sample": (
        lambda **given: ebm.PersistentChains(4, (2,), ulam.mcmc.ULA(0.1)).sample(**given),
        lambda: {"energy": energy, "batch": 2, "steps": 1},
    ),
    "GaussianVAE": (lambda **given: vae.GaussianVAE(**given).sample(2), decoder),
    "Level": (lambda **given: vae.HierarchicalVAE([vae.Level(**given)], lambda z: z * 0.5).sample(2), lambda: {
        "shape": (2,), "prior": None, "posterior": None,
    }),
    "HierarchicalVAE": (lambda **given: vae.HierarchicalVAE(**given).sample(2), lambda: {
        "levels": [vae.Level((2,))], "decoder": lambda z: z * 0.5, "scale": 1.0,
        "inference": "top-down", "bins": None,
    }),
    "HierarchicalVAE.sample": (VAE.sample, lambda: {
        "chains": torch.arange(2), "seed": 1, "noise": True, "temperature": 0.5, "slots": 2, "device": "cpu",
        "backend": None,
    }),
    "HierarchicalVAE.elbo": (lambda **given: vars(VAE.elbo(**given)), given_x()),
    "importance_weighted": (lambda **given: vars(VAE.importance_weighted(**given)), given_x()),
    "active_units": (VAE.active_units, lambda: {"x": batch(), "threshold": 0.01, "samples": 2, "seed": 1}),
    "elbo": (objectives.elbo, given_x(vae=VAE, beta=0.5, free_bits=0.1)),
}  # fmt: skip
EXTRA = (
    "ULAM_BACKEND",
    "net",
    "decoder",
    "schedule",
    "sigma_min",
    "levels",
    "levels[0]",
    "start",
    "chains",
    "t",
    "sigma",
)
CALLERS_OWN = (
    "x = one dimension more: ValueError: levels[0].posterior",
    "energy = type",
    "score = type",
    "score2 = type",
    "prior = type",
    "start = type",
    "decoder = type",
    "encoder = type",
    "cond = dict",
)


@pytest.mark.parametrize(("name", "argument"), [(name, a) for name, (_, make) in VALID.items() for a in make()])
def test_a_hostile_argument_is_right_or_named(name: str, argument: str) -> None:
    function, make = VALID[name]
    found = [what for what in failures(function, make, argument, EXTRA) if not what.startswith(CALLERS_OWN)]
    assert not found, "\n".join(found)
