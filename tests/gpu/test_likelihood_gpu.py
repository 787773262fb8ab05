"""The sums of variational bounds on a GPU, against the CPU's bits. One case shows, anywhere, that they are compared."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from gpu_backends import BACKENDS
from likelihood_cases import cases, result
from ulam_kernels.cpu import likelihood as cpu

SIZES = [(1, 1), (5, 7), (300, 100), (24, 3007), (4, 3, 64, 64), (3, 200_003)]


def there(case: dict[str, Any], device: str) -> dict[str, Any]:
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in case.items()}


@pytest.mark.parametrize("backend, device", BACKENDS)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_sums_have_the_bits_of_the_cpu(backend: str, device: str, shape: tuple[int, ...]) -> None:
    module = importlib.import_module(f"ulam_kernels.{backend}").likelihood
    for case in cases(shape):
        assert torch.equal(result(module, there(case, device)).cpu(), result(cpu, case)), case.keys()


@pytest.mark.parametrize("backend, device", BACKENDS)
def test_an_altered_element_is_noticed(backend: str, device: str) -> None:
    module = importlib.import_module(f"ulam_kernels.{backend}").likelihood
    for case in cases((3, 3007)):
        name = next(iter(case))
        altered = there(case, device)
        altered[name] = altered[name] * 1.5
        assert not torch.equal(result(module, altered).cpu(), result(cpu, case))
