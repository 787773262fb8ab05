"""Random arguments of the Gaussian KL and the discretised likelihood, and a backend's sums for them."""

from __future__ import annotations

import math
from typing import Any

import torch

HALF = 1 / 255
Case = dict[str, Any]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kl_case(shape: tuple[int, ...], per_a: bool, per_b: bool) -> Case:
    """Close and distant Gaussians, as a backend's gaussian_kl takes them; the result is poisoned."""
    g = generator(sum(shape))
    mean_a, mean_b, log_var_a, other = (torch.randn(shape, generator=g) for _ in range(4))
    spread = torch.logspace(-6, 0.8, other[0].numel()).view(shape[1:])
    log_var_b = log_var_a + other * spread
    of_chain = lambda x: x.flatten(1)[:, -1].contiguous()  # noqa: E731
    return {
        "mean_a": mean_a, "log_var_a": log_var_a if per_a else of_chain(log_var_a),
        "mean_b": mean_a + mean_b * spread, "log_var_b": log_var_b if per_b else of_chain(log_var_b),
        "per_element_a": per_a, "per_element_b": per_b,
        "out": torch.full(shape[:1], math.nan, dtype=torch.float64),
    }  # fmt: skip


def bin_case(shape: tuple[int, ...], per_element: bool, tanh: bool) -> Case:
    """Levels of 8 bits, every edge among them, scales from far below a bin to far above the range."""
    g = generator(sum(shape) + 1)
    level = torch.randint(0, 256, shape, generator=g)
    level.view(-1)[::5], level.view(-1)[1::7] = 0, 255
    x = level / 127.5 - 1
    log_scale = 3 * torch.randn(shape, generator=g) - 3
    return {
        "x": x, "mean": x + 0.1 * torch.randn(shape, generator=g),
        "log_scale": log_scale if per_element else log_scale.flatten(1)[:, 0].contiguous(),
        "per_element": per_element,
        "half": HALF, "edge": 1 - HALF / 2, "tanh": tanh, "out": torch.full(shape[:1], math.nan, dtype=torch.float64),
    }  # fmt: skip


def result(backend: Any, case: Case) -> torch.Tensor:
    out = case["out"].clone()
    getattr(backend, "gaussian_kl" if "mean_a" in case else "discretised_log_likelihood")(**case | {"out": out})
    return out


def cases(shape: tuple[int, ...]) -> list[Case]:
    choices = (True, False)
    return [kl_case(shape, a, b) for a in choices for b in choices] + [
        bin_case(shape, per_element, tanh) for per_element in choices for tanh in choices
    ]


GPU_SIZES = [(3, 1), (2, 100), (2, 128), (3, 129), (2, 2048), (2, 3007)]
