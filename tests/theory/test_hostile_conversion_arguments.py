"""Arguments of ulam's conversions and noise, replaced by invalid values: right, or one line that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import ulam
from hostile_arguments import Given, failures
from ulam import noise, objectives, ops
from ulam.estimation.forward import add_noise

SCHEDULE = ulam.schedules.vp_linear(1000)
DENOISER = ulam.Denoiser(lambda x, t: x * 0.5, SCHEDULE)
CONVERSIONS = [name for name, f in vars(ops).items()
               if getattr(f, "__module__", "") == ops.__name__ and callable(f) and name[0] != "_"]  # fmt: skip


def batch() -> torch.Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


def conversion() -> Given:
    return {"x_t": batch(), "m": batch() + 1, "t": torch.tensor([3, 7]), "schedule": SCHEDULE, "predicts": "eps"}


VALID: dict[str, tuple[Callable[..., Any], Callable[[], Given]]] = {
    **{name: (getattr(ops, name), conversion) for name in CONVERSIONS},
    "posterior_mean to s": (ops.posterior_mean, lambda: {**conversion(), "s": torch.tensor([0.5, 2.0])}),
    "posterior_variance to s": (ops.posterior_variance, lambda: {**conversion(), "s": torch.tensor([0.5, 2.0])}),
    "mean": (ops.predict_x0, lambda: {**conversion(), "predicts": "mean"}),
    "normal": (noise.normal, lambda: {
        "shape": (3, 4), "seed": 1, "chains": torch.arange(2), "row": 0, "stage": 0, "tag": 0, "device": "cpu",
        "backend": None,
    }),
    "add_noise": (lambda **given: add_noise(**given).x_t, lambda: {
        "x_0": batch(), "t": torch.tensor([3, 7]), "schedule": SCHEDULE, "predicts": "eps", "seed": 1, "step": 2,
        "chains": torch.arange(2), "noise": batch(), "backend": None,
    }),
    "denoising": (objectives.denoising, lambda: {
        "denoiser": DENOISER, "x_0": batch(), "t": torch.tensor([3, 7]), "cond": None, "weighting": "min-snr",
        "gamma": 5.0, "seed": 1, "step": 1, "chains": torch.arange(2),
    }),
    "denoising_score_matching": (objectives.denoising_score_matching, lambda: {
        "score": lambda x, sigma: -x, "x": batch(), "sigma": torch.ones(2), "seed": 1, "step": 1,
    }),
    "sliced_score_matching": (objectives.sliced_score_matching, lambda: {
        "score": lambda x: -(x**3), "x": batch(), "samples": 1, "reduced": True, "seed": 1, "step": 1,
    }),
    "implicit_score_matching": (objectives.implicit_score_matching, lambda: {
        "score": lambda x: -(x**3), "x": batch(),
    }),
    "contrastive_divergence": (objectives.contrastive_divergence, lambda: {
        "energy": lambda x: x.flatten(1).sum(1), "data": batch(), "model": batch(), "penalty": 0.1,
    }),
}  # fmt: skip
EXTRA = ("ULAM_BACKEND", "affine")
# What a function of the caller's makes of it: a class in its place, names that it has not, sums in torch's own order.
CALLERS_OWN = (
    "score = type",
    "energy = type",
    "weighting = type",
    "cond = dict",
    "data = every second",
    "model = every second",
)


@pytest.mark.parametrize(("name", "argument"), [(name, a) for name, (_, make) in VALID.items() for a in make()])
def test_a_hostile_argument_is_right_or_named(name: str, argument: str) -> None:
    function, make = VALID[name]
    found = [what for what in failures(function, make, argument, EXTRA) if not what.startswith(CALLERS_OWN)]
    assert not found, "\n".join(found)
