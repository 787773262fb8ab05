"""Every loss on small networks, so that two processes can train what one process trains on their joint batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import ulam
from ulam import ebm, noise, objectives, schedules, vae

WORLD, COUNT, SHAPE = 2, 4, (2, 12)
ELEMENTS = 24
VP, EDM, FLOW, SIGMA = schedules.vp_linear(1000), schedules.edm(), schedules.flow(), 0.5

Loss = Callable[..., torch.Tensor]


class Network(nn.Module):
    """Two layers on all elements, told t if there is one: x ``[B, 2, 12]`` to ``[B, outputs]``, viewed as ``shape``."""

    def __init__(self, outputs: int = ELEMENTS, shape: tuple[int, ...] = SHAPE) -> None:
        super().__init__()
        self.shape = shape
        self.inner, self.outer = nn.Linear(ELEMENTS, 16), nn.Linear(16, outputs)

    def forward(self, x: torch.Tensor, t: torch.Tensor | None = None) -> torch.Tensor:
        told = 0.0 if t is None else 0.1 * t.log1p()[:, None].to(x.dtype)
        return self.outer(torch.tanh(self.inner(x.flatten(1)) + told)).view(len(x), *self.shape)


class Autoencoder(nn.Module):
    """The bound of a VAE in its forward call, which is what DistributedDataParallel wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Network(6, (6,)), nn.Sequential(nn.Linear(3, 24), nn.Unflatten(1, SHAPE))

    def forward(self, x: torch.Tensor, **draw: Any) -> torch.Tensor:
        model = vae.GaussianVAE(self.decoder, (3,), self.encoder)
        return objectives.elbo(model, x, **draw)


@dataclass(frozen=True)
class Case:
    """loss(net, x, seed=, step=, chains=): one number an example, or one of all; net: what is trained.

    draws: what to compare between ranks, the losses if None. random: whether there is noise to share.
    """

    loss: Loss
    net: Callable[[], nn.Module] = Network
    draws: Loss | None = None
    random: bool = True


def counts(x: torch.Tensor) -> torch.Tensor:
    return (4 * x.abs()).round() + 1


def levels(x: torch.Tensor) -> torch.Tensor:
    return torch.full((len(x),), SIGMA)


def negatives(net: nn.Module, x: torch.Tensor, *, seed: int, step: int, chains: torch.Tensor | None) -> torch.Tensor:
    """Of chains that start at noise, those of each rank in a buffer of its own."""
    ids = noise.examples(len(x)) if chains is None else torch.as_tensor(chains)
    return ebm.PersistentChains(len(x), SHAPE, ulam.mcmc.ULA(0.01), seed=seed, chains=ids).sample(
        net, batch=len(x), steps=2
    )


def contrast(net: nn.Module, x: torch.Tensor, **draw: Any) -> torch.Tensor:
    return objectives.contrastive_divergence(net, x, negatives(net, x, **draw), penalty=0.1)


# By the name that ulam.objectives exports. What is not drawn anew for every example of a step says random=False.
LOSSES: dict[str, Case] = {
    "denoising": Case(lambda net, x, **draw: objectives.denoising(ulam.Denoiser(net, VP), x, 300, **draw)),
    "edm": Case(lambda net, x, **draw: objectives.edm(ulam.Denoiser(net, EDM, "raw"), x, SIGMA, **draw)),
    "hybrid": Case(
        lambda net, x, **draw: objectives.hybrid(ulam.Denoiser(net, VP), x.clamp(-1, 1), 300, **draw),
        lambda: Network(2 * ELEMENTS, (4, 12)),
    ),
    "vlb_term": Case(
        lambda net, x, **draw: objectives.vlb_term(ulam.Denoiser(net, VP), x.clamp(-1, 1), 300, **draw),
        lambda: Network(2 * ELEMENTS, (4, 12)),
    ),
    "continuous_bound": Case(
        lambda net, x, **draw: objectives.continuous_bound(ulam.Denoiser(net, FLOW), x, 0.4, **draw)
    ),
    "denoising_score_matching": Case(
        lambda net, x, **draw: objectives.denoising_score_matching(net, x, levels(x), **draw)
    ),
    "implicit_score_matching": Case(lambda net, x, **_: objectives.implicit_score_matching(net, x), random=False),
    "sliced_score_matching": Case(lambda net, x, **draw: objectives.sliced_score_matching(net, x, **draw)),
    "second_order_score_matching": Case(
        lambda net, x, **draw: objectives.second_order_score_matching(
            net, lambda y, sigma: -y, x, levels(x), form="diagonal", **draw
        )
    ),
    "contrastive_divergence": Case(contrast, lambda: Network(1, ()), draws=negatives),
    "sure": Case(lambda net, x, **draw: objectives.sure(ulam.Denoiser(net, VP, "x0"), x, SIGMA, **draw)),
    "projected_sure": Case(
        lambda net, x, **draw: objectives.projected_sure(net, x, SIGMA, (lambda u: 2 * u, lambda u: u / 2), **draw)
    ),
    "poisson_sure": Case(lambda net, x, **draw: objectives.poisson_sure(net, counts(x), samples=8, **draw)),
    "elbo": Case(lambda net, x, **draw: net(x, **draw), Autoencoder),
}
NO_LOSSES = {"Noised", "add_noise", "timesteps", "weightings"}


def data(rank: int) -> torch.Tensor:
    """The examples of a rank."""
    return torch.randn(COUNT, *SHAPE, generator=torch.Generator().manual_seed(rank))


def network(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return case.net()


def gradients(case: Case, net: nn.Module, module: nn.Module, x: torch.Tensor, chains: Any) -> list[torch.Tensor]:
    """Of the mean loss of two steps, one after the other; net is module, or wraps it."""
    found = []
    for step in (5, 6):
        module.zero_grad()
        case.loss(net, x, seed=1, step=step, chains=chains).mean().backward()
        found += [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
    return found


def drawn(case: Case, count: int, chains: Any) -> torch.Tensor:
    """What the noise of each of ``count`` equal examples makes, ``[count, ...]``."""
    net, x = network(case), data(0)[:1].expand(count, *SHAPE).contiguous()
    function = case.loss if case.draws is None else case.draws
    return function(net, x, seed=1, step=5, chains=chains).detach().reshape(count, -1)
