"""Arguments of energies, their chains and losses, and exact laws, replaced by invalid values: right, or named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import ulam
from hostile_arguments import Given, failures
from ulam import ebm, mcmc, objectives, schedules

MIXTURE = mcmc.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.5)
GAUSSIAN = mcmc.Gaussian([0.0, 1.0], [[1.0, 0.2], [0.2, 1.0]])
CHAINS = ebm.PersistentChains(4, (2,), mcmc.ULA(0.1), seed=3)


def batch() -> torch.Tensor:
    return torch.rand(2, 2, generator=torch.Generator().manual_seed(0)) - 0.5


def energy(x: torch.Tensor) -> torch.Tensor:
    return x.square().flatten(1).sum(1) / 2


def chains(**given: Any) -> torch.Tensor:
    return ebm.PersistentChains(**given).sample(energy, batch=2, steps=1)


def network(law: Any) -> Callable[..., torch.Tensor]:
    return lambda x_t, t: law.denoiser(schedules.flow()).net(x_t, t)


VALID: dict[str, tuple[Callable[..., Any], Callable[[], Given]]] = {
    "PersistentChains": (chains, lambda: {
        "count": 4, "shape": (2,), "sampler": mcmc.ULA(0.1), "restart": 0.1, "start": torch.ones(3, 2), "seed": 1,
        "chains": torch.arange(4),
    }),
    "PersistentChains.sample": (
        lambda **given: ebm.PersistentChains(4, (2,), mcmc.ULA(0.1)).sample(**given),
        lambda: {"energy": energy, "batch": 2, "steps": 1, "through_last": True},
    ),
    "load_state_dict": (
        lambda **saved: ebm.PersistentChains(4, (2,), mcmc.ULA(0.1), seed=3).load_state_dict(saved), CHAINS.state_dict
    ),
    "Energy": (lambda x, **given: ulam.Energy(**given).score(x), lambda: {
        "fn": energy, "x": batch(), "cond": None, "dtype": torch.float64, "rows": 2,
    }),
    "log_prob": (lambda x: ulam.Energy(energy).log_prob(x), lambda: {"x": batch()}),
    "contrastive_divergence": (objectives.contrastive_divergence, lambda: {
        "energy": energy, "data": batch(), "model": batch().requires_grad_(), "penalty": 0.1, "kl": 0.1,
    }),
    "density_from_score": (lambda **given: vars(ebm.density_from_score(**given)), lambda: {
        "score": torch.neg, "x": batch(), "origin": torch.zeros(2), "via": torch.ones(2), "tolerance": 1e-2,
    }),
    "noised": (
        lambda sigma: [law.noised(sigma).score(batch()) for law in (MIXTURE, GAUSSIAN)],
        lambda: {"sigma": torch.tensor([0.5, 1.0])},
    ),
    "denoiser": (
        lambda **given: MIXTURE.denoiser(**given).net(batch(), torch.ones(2)),
        lambda: {"schedule": schedules.vp_linear(10), "predicts": "v", "time": "auto"},
    ),
    "net of a mixture": (network(MIXTURE), lambda: {"x_t": batch(), "t": torch.tensor([0.2, 0.3])}),
    "net of a Gaussian": (network(GAUSSIAN), lambda: {"x_t": batch(), "t": torch.tensor([0.2, 0.3])}),
    "score of a density": (lambda x: MIXTURE.score(x), lambda: {"x": batch()}),
    "log_prob of a density": (lambda x: GAUSSIAN.log_prob(x), lambda: {"x": batch()}),
}  # fmt: skip
EXTRA = ("ULAM_BACKEND", "y", "time")  # time: of a Denoiser
CALLERS_OWN = ("energy = type", "start = type", "score = type", "fn = type", "cond = dict")


@pytest.mark.parametrize(("name", "argument"), [(name, a) for name, (_, make) in VALID.items() for a in make()])
def test_a_hostile_argument_is_right_or_named(name: str, argument: str) -> None:
    function, make = VALID[name]
    found = [what for what in failures(function, make, argument, EXTRA) if not what.startswith(CALLERS_OWN)]
    assert not found, "\n".join(found)
