"""The Langevin and Metropolis operations on a GPU, against the CPU's bits. One case shows, anywhere, that they are."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import mcmc_cases
from gpu_backends import BACKENDS
from mcmc_cases import Cases, agree, evaluated
from ulam_kernels import mcmc


class Moved:
    """``ulam_kernels.mcmc`` whose operations on other backends than the CPU's run on a device: there and back again."""

    def __init__(self, module: ModuleType, device: str) -> None:
        self.module, self.device, self.calls = module, device, 0

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.module, name)
        if not callable(function):
            return function

        def call(*arguments: Any, backend: str, **named: Any) -> Any:
            if backend == "cpu":
                return function(*arguments, backend=backend, **named)
            here, shape = pytree.tree_flatten((arguments, named))
            there = [value.to(self.device, copy=True) if torch.is_tensor(value) else value for value in here]
            given, options = pytree.tree_unflatten(there, shape)
            results = function(*given, backend=backend, **options)
            for value, moved in zip(here, there, strict=True):
                if torch.is_tensor(value):
                    value.copy_(moved)
            self.calls += 1
            return pytree.tree_map(lambda value: value.cpu() if torch.is_tensor(value) else value, results)

        return call


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Moved:
    module = Moved(mcmc, request.getfixturevalue("device"))
    monkeypatch.setattr(mcmc_cases, "mcmc", module)
    return module


@pytest.mark.parametrize("backend, device", BACKENDS)
@pytest.mark.parametrize("chains", [5, 300])
def test_whole_chains_have_the_bits_of_the_cpu(moved: Moved, backend: str, device: str, chains: int) -> None:
    """Every density and every sampler; Triton, which compiles each anew, some of them."""
    cases = Cases(30 + chains)
    few = backend == "triton" or device == "cpu"
    for number, density in list(enumerate(cases.densities()))[:: 3 if few else 1]:
        for sampler in mcmc.EVERYWHERE[number % 4 :][:1] if few else mcmc.EVERYWHERE:
            launch = cases.run(density, sampler, chains, scaled=number % 2 == 0)
            assert agree(launch, "cpu", backend), (density, sampler)
        assert agree(evaluated(density, cases.normal(chains, density.dimension)), "cpu", backend), density
    assert moved.calls >= 8


@pytest.mark.parametrize("backend, device", BACKENDS)
@pytest.mark.parametrize("chains, n", [(3, 5), (2, 600), (2, 1025), (4097, 3)])
def test_single_steps_have_the_bits_of_the_cpu(moved: Moved, backend: str, device: str, chains: int, n: int) -> None:
    for name, step in Cases(40).steps(chains, n):
        assert agree(step, "cpu", backend), name
    assert moved.calls >= 10


@pytest.mark.parametrize("backend, device", BACKENDS)
def test_an_altered_number_is_noticed(moved: Moved, backend: str, device: str) -> None:
    """The comparisons can fail: one step size off by a unit in the last place shows."""
    cases = Cases(50)
    x, s, a, b = cases.normal(4, 9), cases.normal(4, 9), cases.uniform(4), cases.uniform(4)
    ids = cases.ids(4)

    def altered(backend: str) -> list[torch.Tensor]:
        step = a if backend == "cpu" else a.nextafter(torch.ones(()))
        return [moved.langevin(x, s, step, b, backend=backend, **ids)]

    assert not agree(altered, "cpu", backend)
