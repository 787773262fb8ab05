"""Arguments of what a denoiser says of its error, replaced by invalid values: right, or one line that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import ulam
from hostile_arguments import Given, failures
from ulam import sure, tweedie

VE = ulam.schedules.ve(0.01, 50.0)


def shrink(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x * 0.5 + 0.1 * x.tanh()


DENOISER = ulam.Denoiser(shrink, VE, "x0")


def batch() -> torch.Tensor:
    return torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0)) - 0.5


def quadratic(y: torch.Tensor) -> torch.Tensor:
    return -y.square().flatten(1).sum(1)


def half(y: torch.Tensor) -> torch.Tensor:
    return quadratic(y) / 2


def bent(y: torch.Tensor) -> torch.Tensor:
    return y + y**3


def minus(x: torch.Tensor) -> torch.Tensor:
    return -x


def observed() -> Given:
    return {"denoiser": DENOISER, "y": batch(), "sigma": torch.tensor([0.5, 1.0]), "cond": None}


VALID: dict[str, tuple[Callable[..., Any], Callable[[], Given]]] = {
    "mean": (tweedie.mean, observed),
    "covariance_product": (tweedie.covariance_product, lambda: observed() | {"v": batch() + 1}),
    "covariance_diagonal": (tweedie.covariance_diagonal, lambda: observed() | {"samples": 1, "seed": 1}),
    "covariance_trace": (lambda **given: vars(tweedie.covariance_trace(**given)), lambda: observed() | {
        "samples": 2, "seed": 1, "method": "hutchinson",
    }),
    "eigenpairs": (tweedie.eigenpairs, lambda: observed() | {"count": 1, "iterations": 2, "seed": 1}),
    "covariance": (tweedie.covariance, observed),
    "cumulant": (tweedie.cumulant, lambda: observed() | {"v": batch() + 1, "order": 3}),
    "cumulant of several": (
        lambda second, **given: tweedie.cumulant(**given, v=(batch() + 1, second), order=2),
        lambda: observed() | {"second": batch() + 2},
    ),
    "natural": (tweedie.natural, lambda: {
        "log_marginal": quadratic, "y": batch(), "log_base": half, "statistic": bent, "order": 2, "v": batch() + 1,
    }),
    "robbins": (tweedie.robbins, lambda: {
        "marginal": torch.tensor([5, 2, 1]), "x": torch.tensor([[0, 1], [2, 1]]), "trials": 6, "smoothing": 0.5,
    }),
    "robbins of a function": (lambda **given: tweedie.robbins(**given, trials=6), lambda: {
        "marginal": minus, "x": torch.tensor([[0, 1], [2, 1]]),
    }),
    "third_cumulant": (tweedie.third_cumulant, lambda: observed() | {"v": batch() + 1}),
    "sure": (lambda **given: vars(sure.estimate(**given)), lambda: observed() | {
        "samples": 1, "seed": 1, "kind": "rademacher",
    }),
}  # fmt: skip
EXTRA = ("net", "v")
CALLERS_OWN = ("cond = dict", "denoiser = type", "log_marginal = type", "log_base = type", "statistic = type", "marginal = type")


@pytest.mark.parametrize(("name", "argument"), [(name, a) for name, (_, make) in VALID.items() for a in make()])
def test_a_hostile_argument_is_right_or_named(name: str, argument: str) -> None:
    function, make = VALID[name]
    found = [what for what in failures(function, make, argument, EXTRA) if not what.startswith(CALLERS_OWN)]
    assert not found, "\n".join(found)
