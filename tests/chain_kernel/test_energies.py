"""Energies of small layers and their scores by the layers' own reverse pass, beside torch's autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ulam
import ulam_kernels
from ulam.chain_kernel import compile_energy
from ulam_kernels.networks import SLOPES, LayerNorm, Unary

N = 5


class Plain(nn.Module):
    """A multilayer perceptron with one output."""

    def __init__(self, activation: Callable[[], nn.Module], hidden: int = 24) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(N, hidden), activation(), nn.Linear(hidden, hidden), activation(), nn.Linear(hidden, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).squeeze(-1)


class Residual(nn.Module):
    """Half the squared distance to a network's output, with LayerNorm, and the conditioning beside x."""

    def __init__(self, hidden: int = 20, observed: int = 3, affine: bool = True) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(N + observed, hidden), nn.Linear(hidden, N)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden, elementwise_affine=affine), nn.Linear(hidden, 2 * hidden), nn.Mish(),
                          nn.Linear(2 * hidden, hidden)) for _ in range(2)
        )  # fmt: skip

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = self.first(torch.cat([x, y], -1))
        for block in self.blocks:
            h = h + block(h)
        return 0.5 * (x - self.last(h)).pow(2).sum(-1)


class Branches(nn.Module):
    """Products, differences, powers, means and a value that is used four times."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(N, 16), nn.Linear(N, 16)
        self.three = nn.Linear(32, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.one(x), torch.tanh(self.two(x))
        h = F.silu(self.three(torch.cat([a * b, a - b], -1)))
        return (h * a).sum(-1) - (b - h).square().mean(-1) + 0.25 * (x**4).sum(1) + x[:, 0] * x[:, 1]


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU, "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "mish": nn.Mish, "softplus": nn.Softplus,
    "leaky_relu": lambda: nn.LeakyReLU(0.2), "elu": lambda: nn.ELU(1.5),
}  # fmt: skip


def linear(x: torch.Tensor) -> torch.Tensor:
    """Whose score is the same everywhere."""
    return (x * torch.arange(1.0, N + 1).to(x.dtype)).sum(-1)


def quadratic(x: torch.Tensor) -> torch.Tensor:
    return x.pow(2).sum(-1)


def energies() -> dict[str, tuple[Callable[..., Any], dict[str, torch.Tensor]]]:
    torch.manual_seed(0)
    y = torch.randn(9, 3)
    plain: dict[str, tuple[Callable[..., Any], dict[str, torch.Tensor]]] = {
        name: (Plain(activation), {}) for name, activation in ACTIVATIONS.items()
    }
    more: dict[str, tuple[Callable[..., Any], dict[str, torch.Tensor]]] = {
        "residual": (Residual(), {"y": y}), "residual, not affine": (Residual(affine=False), {"y": y}),
        "branches": (Branches(), {}), "quadratic": (quadratic, {}),
        "norms": (Plain(lambda: nn.Sequential(nn.GroupNorm(2, 24), nn.SiLU(), nn.RMSNorm(24, 2**-10))), {}),
        "functions": (Plain(lambda: nn.Sequential(nn.PReLU(), nn.CELU(0.5), nn.Softplus(2))), {}),
        "clamps": (Plain(lambda: nn.Sequential(nn.Hardtanh(-2, 2), nn.Hardtanh())), {}),
    }  # fmt: skip
    return plain | more


CASES = energies()


def test_every_activation_is_among_them() -> None:
    assert set(ACTIVATIONS) == set(SLOPES)


@pytest.mark.parametrize("name", CASES)
def test_energy_and_score_are_autograds(name: str) -> None:
    """In float64 to rounding, and in float32 as close to that as autograd's own float32."""
    fn, cond = CASES[name]
    compiled = compile_energy(fn, (N,), cond)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, N, generator=generator) * 1.5

    def by_autograd(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(fn, nn.Module):
            fn.to(dtype)
        at = x.to(dtype, copy=True).requires_grad_()
        energy = fn(at, **{key: value.to(dtype) for key, value in cond.items()})
        (gradient,) = torch.autograd.grad(energy.sum(), at)
        if isinstance(fn, nn.Module):
            fn.float()
        return energy.detach(), -gradient

    def in_kernel(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        vectors = compiled.chain_vectors(cond, 9, dtype) if compiled.network.chain_width else None
        energy, score = ulam_kernels.evaluate_network(compiled.network, x.to(dtype), chain_vectors=vectors)
        _, alone = ulam_kernels.evaluate_network(compiled.score, x.to(dtype), chain_vectors=vectors)
        assert energy is not None and torch.equal(score, alone)
        return energy, score

    exact, theirs = by_autograd(torch.float64), by_autograd(torch.float32)
    for expected, wide, ours, other in zip(exact, in_kernel(torch.float64), in_kernel(torch.float32), theirs,
                                           strict=True):  # fmt: skip
        assert expected.std() > 0
        # a mean's 1 / width is kept in float32
        tolerance = 1e-6 if name == "branches" else 1e-12
        torch.testing.assert_close(wide, expected, rtol=tolerance, atol=tolerance)
        error, allowed = ((one.double() - expected).abs().max() for one in (ours, other))
        assert error <= 3 * allowed + 4 * 2**-24 * expected.abs().max()


def test_the_score_of_a_linear_energy_is_constant() -> None:
    compiled = compile_energy(linear, (N,))
    energy, score = ulam_kernels.evaluate_network(compiled.network, torch.ones(3, N))
    assert torch.equal(score, -torch.arange(1.0, N + 1).expand(3, -1))
    assert energy is not None and torch.equal(energy, torch.full((3,), 15.0))


def test_only_what_the_score_needs_is_in_it() -> None:
    """No energy, and no value of an activation that only the energy reads."""
    compiled = compile_energy(Plain(nn.SiLU), (N,))
    functions = [one.function for one in compiled.score.instructions if isinstance(one, Unary)]
    assert functions == ["silu", "silu_slope", "silu_slope"]
    assert len(compiled.score.instructions) < len(compiled.network.instructions) and compiled.score.energy is None


def test_changed_weights_are_read_again() -> None:
    net = Plain(nn.Tanh)
    compiled = compile_energy(net, (N,))
    assert not compiled.refresh()
    x = torch.randn(4, N, generator=torch.Generator().manual_seed(2))
    before = ulam_kernels.evaluate_network(compiled.score, x)[1]
    with torch.no_grad():
        net.net[0].weight.mul_(2)
    assert compiled.refresh()
    after = ulam_kernels.evaluate_network(compiled.score, x)[1]
    torch.testing.assert_close(after, ulam.Energy(net).score(x).detach())
    assert not torch.allclose(before, after)


class Odd(nn.Module):
    """With an operation that is not read."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(x, 1)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(N, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "two numbers": (Two(), r"net: got .*\(energies \[chains, 2\]\), expected one number a chain, \[chains\]"),
    "a column": (lambda x: x[:, :1], r"net: got .*\(energies \[chains, 1\]\)"),
    "an operation": (Odd(), r"net: got .*test_energies.py:\d+ .*, expected Linear, SiLU"),
    "a power": (lambda x: (x**2.5).sum(1), r"\(a power of 2.5\), expected 1, 2, 3 or 4"),
    "a sum over chains": (lambda x: (x - x.sum(0)).sum(1), r"\(a sum over chains\), expected each chain by itself"),
    "a mean of all": (lambda x: x.sum(1) + x.mean(), r"\(a sum over chains\)"),
    "no dependence": (lambda x: x.detach().new_zeros(len(x)), r"net: "),
    "what it is not told": (Residual(hidden=40), r"net: .*y"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(name: str) -> None:
    fn, message = REFUSED[name]
    with pytest.raises(TypeError, match=message) as caught:
        compile_energy(fn, (N,))
    assert "\n" not in str(caught.value)


def test_a_gradient_of_too_many_instructions_is_refused() -> None:
    deep = nn.Sequential(*(layer for _ in range(30) for layer in (nn.Linear(N, N), nn.SiLU())), nn.Linear(N, 1))
    with pytest.raises(TypeError, match=r"^net: the gradient of its energy: got instruction 129, expected at most 128"):
        compile_energy(lambda x: deep(x).squeeze(1), (N,))


def test_layer_norm_is_kept_whole() -> None:
    network = compile_energy(Residual(), (N,), {"y": torch.zeros(1, 3)}).network
    assert sum(isinstance(one, LayerNorm) for one in network.instructions) == 2
