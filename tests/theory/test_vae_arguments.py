"""Invalid arguments and networks of VAEs: each is named, in one line."""

from __future__ import annotations

import math

import pytest
import torch

from ulam import objectives
from ulam.vae import GaussianVAE, HierarchicalVAE, Level
from vae_cases import moments

B = torch.ones(3, 2, dtype=torch.float64)
X = torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def encoder(x: torch.Tensor) -> torch.Tensor:
    return moments(x[:, :2], 0.5)


def linear(scale: object = 0.7) -> GaussianVAE:
    return GaussianVAE(lambda z: z @ B.T, (2,), encoder, scale)


def two_levels(posterior) -> HierarchicalVAE:
    levels = [Level((2,), None, encoder), Level((2,), lambda z: moments(z, 1.0), posterior)]
    return HierarchicalVAE(levels, lambda z: z @ B.T)


BAD = [
    (lambda: HierarchicalVAE([], torch.nn.Identity()), r"levels: got \[\], expected a sequence"),
    (
        lambda: HierarchicalVAE([Level((2,), torch.nn.Identity())], torch.nn.Identity()),
        r"levels\[0\].prior: got a network, expected None",
    ),
    (
        lambda: HierarchicalVAE([Level((2,)), Level((2,))], torch.nn.Identity()),
        r"levels\[1\].prior: got None, expected a network",
    ),
    (lambda: GaussianVAE(3, (2,)), "decoder: got 3, expected a network"),
    (lambda: GaussianVAE(torch.nn.Identity(), (2,), scale=0.0), "scale: got 0.0, expected positive"),
    (lambda: GaussianVAE(torch.nn.Identity(), (2,)).sample(0), "chains: got none, expected at least 1"),
    (
        lambda: GaussianVAE(torch.nn.Identity(), (2,)).sample(2, temperature=-1.0),
        "temperature: got -1.0, expected at least 0",
    ),
    (
        lambda: GaussianVAE(torch.nn.Identity(), (2,)).elbo(X),
        r"levels\[0\].posterior: got None, expected a network",
    ),
    (
        lambda: GaussianVAE(torch.nn.Identity(), (2,), torch.nn.Identity()).elbo(X),
        r"levels\[0\].posterior: got shape .*, expected .*, the mean, then the log standard",
    ),
    (
        lambda: GaussianVAE(lambda z: z, (2,), encoder).elbo(X),
        r"decoder: got shape \[400, 2\], expected \[400, 3\]",
    ),
    (
        lambda: GaussianVAE(lambda z: z, (2,), encoder).elbo(X, samples=0),
        "samples: got 0, expected 1 to",
    ),
    (
        lambda: HierarchicalVAE([Level((2,))], torch.nn.Identity(), inference="bottom"),
        "inference: got 'bottom', expected one of top-down, bottom-up",
    ),
    (lambda: linear().elbo(X[:0]), r"x: got a tensor of torch.float64 \[0, 3\], expected .* not empty"),
    (lambda: linear().elbo(X, chains=3), "chains: got 3 ids, expected 400, one an example"),
    (lambda: linear().importance_weighted(X, samples=0), "samples: got 0, expected 1 to"),
    (lambda: linear().active_units(X * math.nan), r"levels\[0\].posterior: got NaN, expected numbers"),
    (lambda: linear().active_units(X, samples=1), "samples: got 1, expected 2 to"),
    (lambda: linear().importance_weighted(X, samples=2**21), "samples: got 2097152, expected 1 to 1048576"),
    (
        lambda: linear(torch.ones(2)).elbo(X),
        r"scale: got shape \[2\], expected \[3\], with 1 for what is shared",
    ),
    (
        lambda: linear(lambda z: torch.ones(400)).elbo(X),
        r"scale: got shape \[400\], expected \[400, 3\], with 1 for what is shared",
    ),
    (
        lambda: GaussianVAE(torch.nn.Identity(), (2,), scale=torch.tensor([1.0, math.nan])),
        "scale: got .* not all positive and finite, expected positive finite numbers",
    ),
    (
        lambda: HierarchicalVAE([Level((2,)), Level((2,), lambda z: z[:1])], torch.nn.Identity()).sample(3),
        r"levels\[1\].prior: got shape \[1, 2\], expected \[256, 4\]",
    ),
    (
        lambda: GaussianVAE(lambda z: z[:1], (2,)).sample(3, slots=3),
        r"decoder: got shape \[1, 2\], expected \[3, ...\], one x a latent",
    ),
    (
        lambda: two_levels(lambda x, z: moments(z[:, :1], 1.0)).elbo(X),
        r"levels\[1\].posterior: got shape \[400, 2\], expected \[400, 4\]",
    ),
    (lambda: objectives.elbo(linear(), X, step=0, beta=-1.0), "beta: got -1.0, expected at least 0"),
    (lambda: objectives.elbo(linear(), X, step=0, beta=math.nan), "beta: got nan, expected a finite number"),
    (
        lambda: objectives.elbo(linear(), X, step=0, free_bits=(1.0, 2.0)),
        "free_bits: got 2 numbers, expected one, or 1, one a level",
    ),
    (lambda: objectives.elbo(linear(), X, step=0, free_bits=-1.0), "free_bits: got -1, expected at least 0"),
    (lambda: objectives.elbo(encoder, X, step=0), "vae: got function, expected a ulam.vae.Hier"),
]


@pytest.mark.parametrize(("call", "named"), BAD)
def test_bad_input_is_named(call, named) -> None:
    with pytest.raises((TypeError, ValueError), match=named):
        call()
