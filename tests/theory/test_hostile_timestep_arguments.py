"""Arguments of the samplers of training times, replaced by invalid values: right, or one line that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hostile_arguments import Given, failures
from ulam import schedules
from ulam.objectives import timesteps

VP, EDM, FLOW = schedules.vp_linear(4), schedules.edm(), schedules.flow()


def call() -> Given:
    return {"count": 2, "seed": 1, "step": 1, "chains": torch.arange(2), "device": "cpu"}


def drawn(kind: type[timesteps.Timesteps]) -> Callable[..., Any]:
    return lambda **given: kind(**given)(2, step=0)


def updated(**given: Any) -> None:
    timesteps.LossAware(VP).update(**given)


def loaded(**given: Any) -> None:
    timesteps.LossAware(VP).load_state_dict(given)


VALID: dict[str, tuple[Callable[..., Any], Callable[[], Given]]] = {
    "Uniform": (drawn(timesteps.Uniform), lambda: {"schedule": VP}),
    "LogNormal": (drawn(timesteps.LogNormal), lambda: {"schedule": EDM, "mean": -1.2, "std": 1.2}),
    "LogitNormal": (drawn(timesteps.LogitNormal), lambda: {"schedule": FLOW, "mean": 0.0, "std": 1.0, "shift": 3.0}),
    "LossAware": (drawn(timesteps.LossAware), lambda: {"schedule": VP}),
    "a call": (timesteps.Uniform(FLOW), call),
    "a stratified call": (timesteps.Stratified(VP), call),
    "update": (updated, lambda: {"t": torch.tensor([1, 3]), "losses": torch.tensor([0.5, 2.0])}),
    "load_state_dict": (loaded, timesteps.LossAware(VP).state_dict),
}


@pytest.mark.parametrize(("name", "argument"), [(name, a) for name, (_, make) in VALID.items() for a in make()])
def test_a_hostile_argument_is_right_or_named(name: str, argument: str) -> None:
    function, make = VALID[name]
    found = failures(function, make, argument, ())
    assert not found, "\n".join(found)
