"""Arguments of what a denoiser says of its error, replaced by invalid values: right, or one line that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import ulam
from hostile_arguments import Given, failures
from ulam import objectives, sure, tweedie

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


def soft(y: torch.Tensor) -> torch.Tensor:
    return y.sign() * (y.abs() - 0.3).relu()


COUNTS = torch.tensor([[2.0, 0.0, 5.0], [1.0, 3.0, 0.0]])


def trained() -> Given:
    return {"seed": 1, "step": 1, "chains": torch.arange(2), "samples": 1}


def seen() -> Given:
    H = torch.tensor([[1.0, 2.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 3.0]])
    lift = torch.ones(3, 4) / 3
    return {
        "denoiser": lambda y: y.tanh() @ lift.to(y),
        "y": batch()[0],
        "sigma": torch.tensor([0.5, 1.0]),
        "operator": H,
    }


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
        "samples": 1, "seed": 1, "kind": "rademacher", "divergence": "exact", "check": False,
    }),
    "projected": (lambda **given: vars(sure.projected(**given)), lambda: seen() | {
        "samples": 1, "seed": 1, "divergence": "exact", "check": False,
    }),
    "poisson": (lambda **given: vars(sure.poisson(**given)), lambda: {
        "denoiser": torch.sqrt, "y": COUNTS.clone(), "gain": 1.0, "samples": 1, "seed": 1,
    }),
    "select": (lambda **given: sure.select(**given).value, lambda: {
        "family": {0.3: soft, 0.5: DENOISER}, "y": batch(), "sigma": torch.tensor([0.5, 1.0]), "cond": None,
        "samples": 1, "seed": 1, "divergence": "exact", "check": False,
    }),
    "objectives.sure": (objectives.sure, lambda: observed() | trained() | {"divergence": "exact", "check": False}),
    "projected_sure": (objectives.projected_sure, lambda: {
        **seen(), **trained(), "divergence": "exact", "check": False,
    }),
    "poisson_sure": (objectives.poisson_sure, lambda: {
        "denoiser": torch.sqrt, "y": COUNTS.clone(), "gain": 1.0, **trained(),
    }),
    "denoising_score_matching": (objectives.denoising_score_matching, lambda: {
        "score": lambda x, sigma: -x, "x": batch(), "sigma": torch.tensor([0.5, 1.0]), "seed": 1, "step": 1,
        "chains": torch.arange(2),
    }),
    "sliced_score_matching": (objectives.sliced_score_matching, lambda: {
        "score": lambda x: -x, "x": batch(), "reduced": True, **trained(),
    }),
    "implicit_score_matching": (objectives.implicit_score_matching, lambda: {"score": lambda x: -x, "x": batch()}),
}  # fmt: skip
EXTRA = ("net", "v")
FUNCTIONS = ("denoiser", "score", "log_marginal", "log_base", "statistic", "marginal")
CALLERS_OWN = ("cond = dict", *(f"{name} = type" for name in FUNCTIONS))


@pytest.mark.parametrize(("name", "argument"), [(name, a) for name, (_, make) in VALID.items() for a in make()])
def test_a_hostile_argument_is_right_or_named(name: str, argument: str) -> None:
    function, make = VALID[name]
    found = [what for what in failures(function, make, argument, EXTRA) if not what.startswith(CALLERS_OWN)]
    assert not found, "\n".join(found)
