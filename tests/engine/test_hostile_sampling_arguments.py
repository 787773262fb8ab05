"""Arguments of what samples, replaced by invalid values: right, or one line that names them."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

import ulam
from hostile_arguments import Given, failures
from ulam.samplers import DDIM, DDPM, RePaint

SCHEDULE = ulam.schedules.vp_linear(10)
SHAPE, CHAINS = (3, 2), 3


def net(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    return x * 0.5 if y is None else x * 0.5 + y.view(-1, 1, 1) * 0.1


def of_chains() -> torch.Tensor:
    return torch.randn(CHAINS, *SHAPE, generator=torch.Generator().manual_seed(0))


def image() -> torch.Tensor:
    return torch.full((CHAINS, *SHAPE), 0.25)


DENOISER = ulam.Denoiser(net, SCHEDULE)
JOB: Given = {"sampler": DDPM(2), "chains": CHAINS, "seed": 1, "first_row": 2}


def guided() -> Given:
    return JOB | {
        "cond": {"y": torch.ones(CHAINS)}, "uncond": {"y": torch.zeros(CHAINS)}, "guidance": torch.ones(CHAINS) * 2,
        "guidance_interval": (0.0, 5.0), "guidance_rescale": 0.5, "x_init": of_chains(),
    }  # fmt: skip


def inpainted() -> Given:
    return JOB | {"sampler": RePaint(2), "known": image(), "mask": image() * 4}


def blend() -> list[Any]:
    return [({"y": torch.ones(CHAINS) * 3}, torch.ones(CHAINS) / 2)]


def sample_arguments() -> Given:
    return guided() | {
        "denoiser": DENOISER, "shape": SHAPE, "slots": 4, "device": "cpu", "backend": None, "dtype": torch.float32,
        "noise": None, "options": None, "ladder": None, "progress": False, "guidance_rule": None,
        "guidance_schedule": [1.0, 2.0], "blend": blend(),
    }  # fmt: skip


def engine_arguments() -> Given:
    return {
        "denoiser": DENOISER, "shape": SHAPE, "slots": 4, "device": "cpu", "backend": None, "dtype": torch.float32,
        "policy": "fifo", "queue": 8, "options": None, "check_finite": True, "graphs": True, "results": "device",
        "watchdog": None, "trace": False, "ladder": None, "branches": 2,
    }  # fmt: skip


def policy_arguments() -> Given:
    given = guided()
    return {name: given[name] for name in ("sampler", "chains", "seed", "cond", "uncond")} | {
        "denoiser": DENOISER, "shape": SHAPE, "guidance": 2.0, "backend": None, "mask": None, "precision": "float32",
    }  # fmt: skip


def submit_arguments() -> Given:
    return guided() | {
        "noise": None, "known": None, "mask": None, "callback": None, "every": 1, "finish": None, "priority": 0,
        "weight": 1.0, "deadline": None, "block": False, "guidance_rule": None, "guidance_schedule": [1.0, 2.0],
        "blend": blend(),
    }  # fmt: skip


def made(**given: Any) -> None:
    with ulam.Engine(**given):
        pass


def submitted(**given: Any) -> list[torch.Tensor]:
    with ulam.Engine(DENOISER, SHAPE, 4, branches=1) as engine:
        job = engine.submit(**given)
        return [engine.run()[job]]


def told(method: str, **given: Any) -> None:
    with ulam.Engine(DENOISER, SHAPE, 4) as engine:
        engine.submit(DDIM(2), 1)
        getattr(engine, method)(**given)


def job() -> Given:
    with ulam.Engine(DENOISER, SHAPE, 4) as engine:
        return {"job": engine.submit(DDIM(2), 1)}


VALID: dict[str, tuple[Callable[..., Any], Callable[[], Given]]] = {
    "sample": (ulam.sample, sample_arguments),
    "sample, inpainting": (lambda **given: ulam.sample(DENOISER, shape=SHAPE, progress=False, **given), inpainted),
    "Engine": (made, engine_arguments),
    "Policy": (lambda **given: [ulam.Policy(**given)().clone()], policy_arguments),
    "submit": (submitted, submit_arguments),
    "cancel": (lambda **given: told("cancel", **given), job),
    "predicted_end": (lambda **given: told("predicted_end", **given), job),
    "Denoiser": (ulam.Denoiser, lambda: {
        "net": net, "schedule": SCHEDULE, "predicts": "eps", "time": "auto", "derivatives": "auto",
        "second_time": None, "guide": net,
    }),
    "APG": (ulam.guidance.APG, lambda: {"eta": 0.5, "norm": 2.0, "momentum": -0.5}),
    "CFGZero": (ulam.guidance.CFGZero, lambda: {"zero_steps": 1}),
    "Ladder": (ulam.Ladder, lambda: {"rungs": (2, 1), "tolerance": 0.1}),
    "NetworkOptions": (ulam.NetworkOptions, lambda: {
        "autocast": None, "channels_last": False, "compile": False, "doubled": False, "gradients": False,
        "weights": None,
    }),
    "tune": (ulam.tune, lambda: {
        "denoiser": DENOISER, "shape": SHAPE, "sampler": DDPM(2), "slots": 4, "accuracy": 0.5, "cond": None,
        "guidance": None, "uncond": None, "device": "cpu", "backend": None, "dtype": torch.float32, "options": None,
        "doubled": True, "seed": 1, "budget": 1e-3, "cache": False, "progress": False,
    }),
    "shared": (ulam.shared, lambda: {"tensor": of_chains()}),
    "Energy": (ulam.Energy, lambda: {"fn": net, "score": None, "cond": None, "dtype": None, "rows": 2,
                                     "chain_kernel": "off"}),
}  # fmt: skip
NOT_HERE = {
    "Job": "submit makes it", "NetworkError": "raised, not called", "Preview": "given to a callback",
    "Program": "made by samplers and read from JSON, where its own tests give it wrong values",
    "QueueFull": "raised, not called", "Tuned": "tune makes it",
    "Report": "an engine's own", "Result": "an engine's own",
    "backends": "no argument", "keep_freed_memory": "no argument",
}  # fmt: skip
EXTRA = ("submit", "ULAM_BACKEND", "norms", "timesteps", "steps", "net", "levels", "step")
# What a function of the caller's makes of it: a class in its place, names that it has not.
CALLERS_OWN = ("noise = type", "callback = type", "finish = type", "net = type", "guide = type")


def test_nothing_public_is_forgotten() -> None:
    public = {name for name in ulam.__all__ if callable(getattr(ulam, name))}
    assert public == {name for name in VALID if name in ulam.__all__} | set(NOT_HERE)
    assert all(isinstance(getattr(ulam, name), types.ModuleType | str) for name in set(ulam.__all__) - public)


@pytest.mark.parametrize(("name", "argument"), [(name, a) for name, (_, make) in VALID.items() for a in make()])
def test_a_hostile_argument_is_right_or_named(name: str, argument: str) -> None:
    function, make = VALID[name]
    found = [what for what in failures(function, make, argument, EXTRA) if not what.startswith(CALLERS_OWN)]
    assert not found, "\n".join(found)
