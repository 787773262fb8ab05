"""DDPM is a hierarchical VAE whose q is fixed: its bound is that of `bounds.vlb`, term by term, from either end."""

from __future__ import annotations

import math

import pytest
import torch

import ulam
from ulam import bounds
from vae_cases import ddpm

SCHEDULE = ulam.schedules.vp_linear(1000)
TIMES = (40, 150, 300, 450, 600, 800, 999)


def net(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """No ideal one: every term has an error of its own."""
    return torch.tanh(1.2 * x_t + 0.3 * x_t.flip(1)) * (0.4 + t[:, None] / 2000)


DENOISER = ulam.Denoiser(net, SCHEDULE)
X = (0.4 * torch.randn(600, 2, generator=torch.Generator().manual_seed(0))).clamp(-1, 1).double()


def decoder(kind: str, variance: str) -> dict[str, float | int]:
    chain = bounds.ReverseChain(SCHEDULE, TIMES)
    if kind == "gaussian":
        return {"scale": float(chain.sigma[0] / chain.alpha[0])}
    return {"scale": math.exp(chain.log_variance(variance, [0], None)[0] / 2), "bins": 256}


@pytest.mark.parametrize("kind", ["gaussian", "discretised"])
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_its_terms_are_those_of_vlb(kind: str, variance: str) -> None:
    x = ((X + 1) * 127.5).round() / 127.5 - 1
    options = {"timesteps": TIMES, "variance": variance, "decoder": kind, "samples": 4}
    bound = bounds.vlb(DENOISER, x, **options)
    model = ddpm(DENOISER, (2,), TIMES, "top-down", variance, **decoder(kind, variance))
    ours = model.elbo(x, samples=4, seed=1)
    bits = 2 * math.log(2)
    torch.testing.assert_close(ours.kl[:, 0] / bits, bound.prior, rtol=1e-9, atol=1e-12)
    terms = torch.cat([ours.kl.flip(1)[:, :-1], ours.reconstruction[:, None]], dim=1)  # t up: L_1, ..., then L_0
    theirs = bound.terms.view(4, len(TIMES), len(x)).mean(0).T  # L_0 first
    pairs = [(-terms[:, -1] / bits, theirs[:, 0])]
    pairs += [(terms[:, k] / bits, theirs[:, k + 1]) for k in range(len(TIMES) - 1)]
    for own, other in pairs:
        difference = own - other
        assert float(difference.std()) > 0
        assert abs(float(difference.mean())) <= 4 * float(difference.std()) / math.sqrt(len(x))


def test_the_bound_is_the_same_from_the_bottom_up() -> None:
    """q(x_t | x_s) in place of q(x_s | x_t, x_0): one q, so one bound, in other columns [Luo 2022, eq. 45 and 58]."""
    values, columns = [], []
    for inference in ("top-down", "bottom-up"):
        model = ddpm(DENOISER, (2,), TIMES, inference, "beta", **decoder("gaussian", "beta"))
        bound = model.elbo(X, samples=16, seed=3)
        values.append(bound.value)
        columns.append(bound.kl.mean(0))
    difference = values[0] - values[1]
    assert abs(float(difference.mean())) <= 4 * float(difference.std()) / math.sqrt(len(X))
    assert ((columns[0] - columns[1])[1:].abs() > 0.1).any()
