"""The error of whole chains against the network in float64 is that of torch's own float32, whatever the network.

What is compared is the root mean square over all chains of a case, 1, 7 and 64 at a time: in each both errors are a few
units in the last place, of which no single one is a measure. An error that the last rounding alone would make counts as
that: UNIT times the root mean square of the states.

Networks of PyTorch's own initialisation add many small products to a bias, and as x0 their output is the sample: there
nothing hides a product that is rounded at the size of the bias.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import ulam
import ulam_kernels
from random_networks import random_case
from ulam import samplers as s
from ulam.noise import normal

ARCHITECTURES = 20
SEED, MOST, COUNTS = 11, 3.0, (1, 7, 64)
UNIT = 2.0**-24
Process = tuple[Any, str, tuple[Any, ...]]
PROCESSES: tuple[Process, ...] = (
    (ulam.schedules.vp_linear(), "eps", (s.DDPM(12, clip=(-3, 3)), s.DDIM(10), s.DPMSolverPP(10), s.UniPC(8))),
    (ulam.schedules.edm(), "raw", (s.Euler(12), s.Heun(8), s.LMS(10), s.EulerAncestral(10))),
    (ulam.schedules.flow(), "flow", (s.Euler(10), s.Heun(6), s.DPMSolverPP(10))),
)


@contextmanager
def float64_throughout() -> Iterator[None]:
    """What a network makes on its own, such as frequencies, is float64 as well."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


class Case:
    """A network under a process, in float32 and float64, with its conditioning."""

    def __init__(
        self, process: Process, net: nn.Module, shape: tuple[int, ...], cond: dict[str, torch.Tensor] | None = None
    ) -> None:
        self.schedule, self.predicts, self.samplers = process
        self.net, self.shape, self.cond = net.eval(), shape, cond or {}
        self.own, self.exact = self.of(self.net), self.of(copy.deepcopy(self.net).double())

    @classmethod
    def random(cls, seed: int) -> Case:
        """The random network of this seed, under one of the processes."""
        case = random_case(seed)
        torch.manual_seed(seed)
        made = case.make()
        assert isinstance(made, nn.Module)
        return cls(PROCESSES[seed % len(PROCESSES)], made, case.shape, case.conditioning(max(COUNTS)))

    def of(self, net: Callable[..., Any]) -> ulam.Denoiser:
        return ulam.Denoiser(net, self.schedule, predicts=self.predicts)

    def run(self, denoiser: ulam.Denoiser, sampler: Any, chains: int, **options: Any) -> torch.Tensor:
        wide = options.get("dtype") == torch.float64
        cond = {n: v[:chains].double() if wide and v.is_floating_point() else v[:chains] for n, v in self.cond.items()}
        return ulam.sample(denoiser, sampler, self.shape, chains, SEED, cond=cond, progress=False, **options)

    def truth(self, sampler: Any, chains: int) -> torch.Tensor:
        """The network, the rows and all states in float64; the noise is that of float32 runs, number by number."""
        noise = lambda row, ids: normal(self.shape, seed=SEED, chains=ids, row=row).double()  # noqa: E731
        with float64_throughout():
            return self.run(self.exact, sampler, chains, dtype=torch.float64, noise=noise)


def ratio(case: Case, sampler: Any, other: ulam.Denoiser, unit: float = UNIT) -> float:
    """The error of a denoiser's whole chains over that of torch's float32, or of a last rounding by this unit."""
    errors = {"torch": 0.0, "chains": 0.0}
    least = 0.0
    for chains in COUNTS:
        exact = case.truth(sampler, chains)
        assert bool(torch.isfinite(exact).all())
        for name, denoiser, kernel in (("torch", case.own, "off"), ("chains", other, "on")):
            found = case.run(denoiser, sampler, chains, chain_kernel=kernel)
            errors[name] += float((found.double() - exact).square().sum())
        least += float((unit * exact).square().sum())
    return float((errors["chains"] / max(errors["torch"], least)) ** 0.5)


def check_company(case: Case, sampler: Any) -> None:
    """A chain's bits are its own: among others, in another order, on other numbers of threads."""
    own, most = case.own, max(COUNTS)
    together = case.run(own, sampler, most, chain_kernel="on")
    for chains in COUNTS[:-1]:
        assert torch.equal(case.run(own, sampler, chains, chain_kernel="on"), together[:chains])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        cond = {name: value.flip(0) for name, value in case.cond.items()}
        ids = range(most - 1, -1, -1)
        turned = ulam.sample(own, sampler, case.shape, ids, SEED, cond=cond, chain_kernel="on", progress=False)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(turned.flip(0), together)


@pytest.mark.parametrize("seed", range(ARCHITECTURES))
def test_the_error_is_that_of_torchs_float32_and_the_bits_are_a_chains_own(seed: int) -> None:
    case = Case.random(seed)
    ratios = {str(sampler): ratio(case, sampler, case.own) for sampler in case.samplers}
    assert max(ratios.values()) <= MOST, ratios
    check_company(case, case.samplers[seed % len(case.samplers)])


class Perceptron(nn.Module):
    """Layers as PyTorch initialises them; the time is an input, so that the first bias comes with the row."""

    def __init__(self, n: int, width: int, depth: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        sizes = zip((n + 1, *[width] * (depth - 1)), [width] * depth, strict=True)
        layers = [layer for i, o in sizes for layer in (nn.Linear(i, o), activation())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, n))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([x, t[:, None] / 1000], dim=-1))


def perceptron(n: int, width: int, depth: int, activation: Callable[[], nn.Module]) -> Case:
    torch.manual_seed(n + width + depth)
    process = (ulam.schedules.vp_linear(), "x0", (s.DDIM(20),))
    return Case(process, Perceptron(n, width, depth, activation), (n,))


@pytest.mark.parametrize("activation", [nn.SiLU, nn.ReLU, nn.Mish])
@pytest.mark.parametrize("depth", [2, 4, 8])
@pytest.mark.parametrize("width", [128, 512])
@pytest.mark.parametrize("n", [8, 64])
def test_one_evaluation_of_pytorchs_initial_networks_is_as_good_as_torchs(
    n: int, width: int, depth: int, activation: Callable[[], nn.Module]
) -> None:
    case = perceptron(n, width, depth, activation)
    assert isinstance(case.exact.net, nn.Module)
    x, t = torch.randn(64, n), 300.0
    compiled = ulam.chain_kernel.compile(case.own, (n,))
    (row,) = compiled.row_vectors(torch.tensor([t], dtype=torch.float64))
    with torch.no_grad():
        exact = case.exact.net(x.double(), torch.full((64,), t, dtype=torch.float64))
        torchs = case.net(x, torch.full((64,), t))
    _, ours = ulam_kernels.evaluate_network(compiled.network, x, row_vector=row)
    errors = [float((found.double() - exact).square().mean().sqrt()) for found in (ours, torchs)]
    assert errors[0] <= MOST * errors[1], errors[0] / errors[1]


@pytest.mark.parametrize("activation", [nn.SiLU, nn.ReLU, nn.Mish])
@pytest.mark.parametrize(("n", "width", "depth"), [(8, 128, 4), (64, 128, 8), (64, 512, 2), (8, 512, 8)])
def test_samples_of_pytorchs_initial_networks_are_as_good_as_torchs(
    n: int, width: int, depth: int, activation: Callable[[], nn.Module]
) -> None:
    case = perceptron(n, width, depth, activation)
    assert ratio(case, case.samplers[0], case.own, unit=0.0) <= MOST


def one_weight(net: nn.Module) -> None:
    weight = next(p for name, p in net.named_parameters() if name == "layers.0.weight")
    weight.data[0, 0] += 1e-2 * weight.data.std()


def bf16_weights(net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.data = parameter.data.bfloat16().float()


def other_gelu(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"


@pytest.mark.parametrize("wrong", [one_weight, bf16_weights, other_gelu])
def test_what_is_a_little_wrong_is_found(wrong: Callable[[nn.Module], None]) -> None:
    """One weight off by a hundredth of their spread, weights of 8 bits, an activation off by 1e-3."""
    case = Case.random(4)
    net = copy.deepcopy(case.net)
    wrong(net)
    other = case.of(net)
    for sampler in case.samplers:
        assert ratio(case, sampler, other) > 3 * MOST
