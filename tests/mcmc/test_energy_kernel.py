"""Energies in one native call: chains beside those of autograd, their laws, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ulam
from ulam.samplers import HMC, MALA, NUTS, ULA

N = 4


class Net(nn.Module):
    def __init__(self, activation: type[nn.Module] = nn.SiLU) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(N, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).squeeze(-1) + 0.5 * x.square().sum(-1)


def net() -> Net:
    torch.manual_seed(3)
    return Net()


def gaussian(x: torch.Tensor) -> torch.Tensor:
    """N(mean, diag(1 / precision))."""
    precision, mean = torch.tensor([1.0, 2.0, 0.5, 4.0]), torch.tensor([1.0, 0.0, -1.0, 0.5])
    return (0.5 * precision * (x - mean) ** 2).sum(-1)


def run(target: ulam.Energy, sampler: Any, **given: Any) -> ulam.mcmc.Chains:
    options: dict[str, Any] = {"chains": 6, "steps": 5, "shape": (N,), "seed": 2, "progress": False}
    return ulam.mcmc.run(target, sampler, **options | given)


SAMPLERS = {"ula": ULA(0.05), "mala": MALA(0.2), "hmc": HMC(0.2, 4), "nuts": NUTS(0.2, max_depth=4)}


@pytest.mark.parametrize("name", SAMPLERS)
def test_chains_are_those_of_autograd_but_for_rounding(name: str) -> None:
    """A few steps, none of which turns on a rounding."""
    energy, sampler = net(), SAMPLERS[name]
    exact = run(ulam.Energy(energy), sampler)
    ours = run(ulam.Energy(energy, chain_kernel="on"), sampler)
    assert ours.report["chain_kernel"] == "on" and exact.report["chain_kernel"] == "off"
    torch.testing.assert_close(ours.draws, exact.draws, rtol=0, atol=3e-6)
    torch.testing.assert_close(ours.energies, exact.energies, rtol=0, atol=1e-5)
    assert ours.draws.std() > 0.1


@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_the_law_is_exact(name: str) -> None:
    target = ulam.Energy(gaussian, chain_kernel="on")
    chains = run(target, {"mala": MALA(0.3), "hmc": HMC(0.35, 5)}[name], chains=4000, steps=60, thin=60)
    x = chains.x.double()
    std = torch.tensor([1.0, 2.0, 0.5, 4.0]).double() ** -0.5
    mean = torch.tensor([1.0, 0.0, -1.0, 0.5]).double()
    assert ((x.mean(0) - mean) / std).abs().max() < 5 / 4000**0.5
    assert (x.var(0) / std**2 - 1).abs().max() < 5 * (2 / 4000) ** 0.5
    assert chains.report["chain_kernel"] == "on"


@pytest.mark.parametrize("name", ["ula", "hmc"])
def test_a_chain_is_the_same_in_any_company(name: str) -> None:
    target, sampler = ulam.Energy(net(), chain_kernel="on"), SAMPLERS[name]
    whole = run(target, sampler, chains=21)
    for ids in ([4], [20, 3, 7], list(range(5, 17))):
        assert torch.equal(run(target, sampler, chains=ids).draws, whole.draws[ids])


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(N + 2, 12), nn.Linear(12, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(torch.cat([x, y], -1)))
        return self.last(hidden).squeeze(-1) + 0.5 * x.square().sum(-1)


def test_conditioning_of_each_chain() -> None:
    torch.manual_seed(4)
    energy, y = Conditional(), torch.randn(6, 2)
    exact = run(ulam.Energy(energy, cond={"y": y}), MALA(0.2))
    ours = run(ulam.Energy(energy, cond={"y": y}, chain_kernel="on"), MALA(0.2))
    torch.testing.assert_close(ours.draws, exact.draws, rtol=0, atol=3e-6)
    slots = run(ulam.Energy(energy, cond={"y": y}, chain_kernel="on"), MALA(0.2), slots=4)
    assert torch.equal(slots.draws, ours.draws)
    other = run(ulam.Energy(energy, cond={"y": y + 1}, chain_kernel="on"), MALA(0.2))
    assert not torch.allclose(other.draws, ours.draws, atol=1e-3)


def test_weights_are_those_of_the_run() -> None:
    energy = net()
    target = ulam.Energy(energy, chain_kernel="on")
    before = run(target, ULA(0.05)).draws
    with torch.no_grad():
        energy.net[0].weight.mul_(3)
    after = run(target, ULA(0.05)).draws
    torch.testing.assert_close(after, run(ulam.Energy(energy), ULA(0.05)).draws, rtol=0, atol=3e-6)
    assert not torch.allclose(before, after, atol=1e-3)


def test_float64_runs_on_the_reference() -> None:
    energy = net()
    ours = run(ulam.Energy(energy, chain_kernel="on"), HMC(0.2, 3), dtype=torch.float64, steps=3)
    exact = run(ulam.Energy(energy.double()), HMC(0.2, 3), dtype=torch.float64, steps=3)
    torch.testing.assert_close(ours.draws, exact.draws, rtol=0, atol=1e-11)


class Odd(nn.Module):
    """With an operation that is not read."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(x * x, -1)


def test_what_does_not_fit_is_named_or_falls_back() -> None:
    odd = Odd()
    with pytest.raises(TypeError, match=r"^net: got .*test_energy_kernel.py:\d+"):
        run(ulam.Energy(odd, chain_kernel="on"), ULA(0.05))
    chains = run(ulam.Energy(odd, chain_kernel="auto"), ULA(0.05))
    assert str(chains.report["chain_kernel"]).startswith("net: got ")
    assert torch.equal(chains.draws, run(ulam.Energy(odd), ULA(0.05)).draws)


def test_a_refusal_ends_with_what_caused_it() -> None:
    net = nn.Sequential(nn.Linear(4, 8), Odd())
    energy = ulam.Energy(net, chain_kernel="auto")
    assert str(run(energy, ULA(0.05)).report["chain_kernel"]).startswith("net: got ")
    net[1] = nn.Sequential(nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0))
    assert run(energy, ULA(0.05)).report["chain_kernel"] == "on"


def test_what_it_does_not_go_with() -> None:
    with pytest.raises(ValueError, match=r"^chain_kernel: got 'yes', expected one of auto, on, off"):
        ulam.Energy(gaussian, chain_kernel="yes")
    with pytest.raises(ValueError, match=r"^score: got one beside chain_kernel='on', expected None, or 'off'"):
        ulam.Energy(gaussian, score=gaussian, chain_kernel="on")
    with pytest.raises(ValueError, match=r"^dtype: got one beside chain_kernel='auto'"):
        ulam.Energy(gaussian, dtype=torch.float64, chain_kernel="auto")
    with torch.autocast("cpu"), pytest.raises(TypeError, match=r"^autocast: got one around the run"):
        run(ulam.Energy(gaussian, chain_kernel="on"), ULA(0.05))
