"""Arguments of every sampler, schedule, density and Markov chain, replaced by invalid values: right, or named."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import ulam
from hostile_arguments import Given, failures
from ulam import mcmc, samplers, schedules

VP = schedules.vp_linear(10)
CHAIN_SAMPLERS = {"BAOAB", "GHMC", "HMC", "MALA", "MALT", "MAMS", "MCLMC", "NUTS", "SGLD", "ULA", "ParallelTempering"}
MOVING = CHAIN_SAMPLERS - {"ULA", "ParallelTempering"}
DENSITIES = {"DoubleWell", "Funnel", "Gaussian", "GaussianMixture", "Ring", "Rosenbrock"}
TARGETS = {"DenoiserScore", "Energy", "Minibatch", "Model", "Score"}
PARAMETERS = {"CorrelationCholesky", "Interval", "Ordered", "Parameter", "Positive", "Real", "Simplex", "UnitInterval"}
NOT_HERE = {
    "Grid": "levels that a sampler has worked out", "GridSampler": "the base of the samplers",
    "Schedule": "abstract", "Continuous": "abstract", "Array": "a type", "Numbers": "a type",
    "EDM": "edm makes it", "FlowMatching": "flow makes it", "SubVP": "sub_vp makes it",
    "VarianceExploding": "ve makes it", "VariancePreserving": "from_betas and others make it",
    "Learned": "learned makes it", "Frozen": "frozen() makes it",
    **dict.fromkeys(("before", "correlation", "posterior"), "they read levels that a schedule gave"),
    "Chains": "what run returns", "Verdict": "what its verdict returns", "DualAveraging": "what run adapts steps with",
    "Tuning": "what run returns",
}  # fmt: skip


def energy(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(1) / 2


def log_prob(w: torch.Tensor) -> torch.Tensor:
    return -w.square().sum() / 2


def log_likelihood(w: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return -((y - w[0]) ** 2)


def rising(t: torch.Tensor) -> torch.Tensor:
    return 10 * t - 5


def needed(name: str) -> Given:
    """Arguments without a default, and some that are best not left at theirs."""
    two = torch.full((2,), 0.1)
    return {
        "AnnealedLangevin": {"levels": 2, "steps_per_level": 2},
        "named": {"name": "euler"},
        "RePaint": {"jump_length": 2, "jump_n_sample": 2},
        "Restart": {"restarts": ((2, 1, 0.02, 0.2),)},
        "ve": {"sigma_min": 0.1, "sigma_max": 10.0},
        "from_betas": {"betas": torch.tensor([0.1, 0.2, 0.3])},
        "from_alphas_cumprod": {"alphas_cumprod": torch.tensor([0.9, 0.5, 0.1])},
        "learned": {"gamma": rising},
        "zero_terminal_snr": {"schedule": VP}, "check_schedule": {"schedule": VP},
        "Gaussian": {"mean": torch.zeros(2), "covariance": torch.eye(2)},
        "GaussianMixture": {"means": torch.zeros(2, 2), "std": torch.ones(2), "weights": torch.ones(2)},
        "Energy": {"fn": energy},
        "Score": {"fn": torch.neg},
        "DenoiserScore": {"denoiser": ulam.Denoiser(lambda x, t: x * 0.5, VP), "sigma": two},
        "Model": {"log_prob": log_prob, "parameters": {"w": mcmc.Real((2,))}},
        "Minibatch": {
            "log_prior": log_prob, "log_likelihood": log_likelihood, "data": {"y": torch.arange(3.0)},
            "parameters": {"w": mcmc.Positive((2,))}, "batch": 2,
        },
        "Interval": {"lo": -1.0, "hi": 2.0}, "Simplex": {"n": 3}, "Ordered": {"n": 3}, "CorrelationCholesky": {"n": 2},
        "LowRank": {
            "scale": torch.tensor([1.0, 2.0]), "vectors": torch.tensor([[0.6, 0.8]]), "values": torch.tensor([2.0]),
            "center": torch.zeros(2),
        },
        "ParallelTempering": {"sampler": mcmc.MALA(0.1), "temperatures": torch.tensor([1.0, 2.0])},
        "ULA": {"step": two, "preconditioner": torch.ones(2), "noise_scale": two.clone(), "clip": (-3.0, 3.0)},
        **{name: {"step": two, "preconditioner": torch.ones(2)} for name in MOVING},
    }.get(name, {})  # fmt: skip


def arguments_of(function: Callable[..., Any]) -> Given:
    """The defaults of its arguments, few steps, and what it needs."""
    given = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_KEYWORD}
    few = {"steps": 10 if inspect.isfunction(function) else 3} if "steps" in given else {}
    return given | few | needed(function.__name__)


def compiled(sampler: Callable[..., Any], /, **given: Any) -> list[torch.Tensor]:
    program = sampler(**given).program(VP)
    return [torch.from_numpy(column.copy()) for column in (program.A, program.kx, program.km, program.time)]


def levels(schedule: Callable[..., Any], /, **given: Any) -> torch.Tensor:
    made = schedule(**given)
    made = made.frozen() if isinstance(made, schedules.Learned) else made
    times = np.arange(made.steps) if made.steps else made.grid(3)
    return torch.from_numpy(np.stack(made.levels(times)))


def drawn(density: Callable[..., Any], /, **given: Any) -> torch.Tensor:
    made = density(**given)
    return torch.cat([made.sample(2), made.score(torch.ones(2, made.dimension).double())])


@pytest.fixture(autouse=True)
def diverging() -> Iterator[None]:
    """Steps and temperatures may be too large: a run says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "[0-9]+ (divergent|of 2 chains)", RuntimeWarning)
        yield


def moved(sampler: Callable[..., Any], /, **given: Any) -> torch.Tensor | None:
    return mcmc.run(mcmc.Gaussian([0.0, 1.0]), sampler(**given), chains=2, steps=2, seed=1, progress=False).draws


def preconditioned(mass: Callable[..., Any], /, **given: Any) -> torch.Tensor | None:
    return moved(mcmc.MALA, step=0.1, preconditioner=mass(**given))


def aimed(target: Callable[..., Any], /, **given: Any) -> torch.Tensor | None:
    return mcmc.run(target(**given), mcmc.ULA(0.1), chains=2, steps=2, shape=(2,), seed=1, progress=False).draws


def constrained(parameter: Callable[..., Any], /, **given: Any) -> torch.Tensor:
    model = mcmc.Model(log_prob, {"w": parameter(**given)})
    x = torch.ones(2, *model.shape, dtype=torch.float64)
    assert torch.allclose(model.unconstrain(model.constrain(x)), x, atol=1e-4)
    return model.log_prob(x)


def weighted_mean(**given: Any) -> torch.Tensor:
    chains = mcmc.run(mcmc.Gaussian([0.0, 1.0]), mcmc.SGLD(0.1), chains=2, steps=4, progress=False)
    return chains.weighted_mean(**given)


def run_arguments() -> Given:
    return {
        "target": mcmc.Gaussian([0.0, 1.0]), "sampler": mcmc.BAOAB(0.1), "chains": 2, "steps": 3, "shape": (2,),
        "seed": 1, "x_init": torch.ones(2, 2), "v_init": torch.ones(2, 2) * 2, "first_step": 1, "resume": None,
        "warmup": 1, "thin": 2, "adapt": None, "slots": 4, "store": True, "launch": True, "device": None,
        "backend": None, "dtype": None, "progress": False, "observables": {"r": energy}, "record": ["kinetic"],
    }  # fmt: skip


def run(**given: Any) -> list[torch.Tensor | None]:
    chains = mcmc.run(**given)
    return [chains.draws, chains.x, *(chains.observables or {}).values(), chains.kinetic]


def warmed(**given: Any) -> torch.Tensor | None:
    options: Given = {"chains": 2, "steps": 2, "warmup": 25, "seed": 1, "progress": False}
    return mcmc.run(mcmc.Gaussian([0.0, 1.0]), mcmc.MALA(), adapt=mcmc.Warmup(**given), **options).draws


def to_arviz(**given: Any) -> list[torch.Tensor]:
    pytest.importorskip("arviz", reason="the data are ArviZ's")
    chains = mcmc.run(mcmc.Gaussian([0.0, 1.0]), mcmc.MALA(0.1), chains=2, steps=4, progress=False)
    return [torch.from_numpy(values.values.copy()) for values in chains.to_arviz(**given).posterior.values()]


def way(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A call that does something with what a constructor makes."""
    if name in ("DynamicThreshold", "check_schedule"):
        return function
    ways = (
        (moved, CHAIN_SAMPLERS),
        (preconditioned, {"LowRank"}),
        (drawn, DENSITIES),
        (aimed, TARGETS),
        (constrained, PARAMETERS),
        (levels, schedules.__all__),
    )
    return partial(next((call for call, names in ways if name in names), compiled), function)


PUBLIC = {
    name: getattr(module, name)
    for module in (samplers, schedules, mcmc)
    for name in sorted({*module.__all__} - {*NOT_HERE})
}
VALID: dict[str, tuple[Callable[..., Any], Callable[[], Given]]] = {
    name: (way(name, function), partial(arguments_of, function)) for name, function in PUBLIC.items()
} | {
    "run": (run, run_arguments),
    "Chains.weighted_mean": (weighted_mean, lambda: {"of": torch.ones(2, 4, 2)}),
    "Model.constrain": (mcmc.Model(log_prob, {"w": mcmc.Real((2,))}).constrain, lambda: {"x": torch.ones(3, 2)}),
    "Model.unconstrain": (
        mcmc.Model(log_prob, {"w": mcmc.Real((2,))}).unconstrain, lambda: {"values": {"w": torch.ones(3, 2)}}
    ),
    "Warmup": (warmed, lambda: {"rate": 0.6, "mass": "diagonal"}),
    "Chains.to_arviz": (to_arviz, lambda: {"names": "w", "coords": {"axis": [1, 2]}, "dims": ["axis"]}),
    "Chains.to_arviz of elements": (to_arviz, lambda: {"names": ["u", "w"], "coords": None, "dims": None}),
}  # fmt: skip
# Of what they make, and what one argument counts and another says.
EXTRA = ("ULAM_BACKEND", "betas", "alphas_cumprod", "temperature", "steps")
CALLERS_OWN = ("fn = type", "gamma = type", "score = type", "cond = dict")


def test_arguments_are_known() -> None:
    """A sampler, schedule or density that is new is in the table by itself, if it needs nothing without a default."""
    for name, (_, make) in VALID.items():
        unknown = [argument for argument, value in make().items() if value is inspect.Parameter.empty]
        assert not unknown, f"{name}: say in needed() what {unknown} may be"
    assert all(callable(function) for function in PUBLIC.values())


@pytest.mark.parametrize(("name", "argument"), [(name, a) for name, (_, make) in VALID.items() for a in make()])
def test_a_hostile_argument_is_right_or_named(name: str, argument: str) -> None:
    function, make = VALID[name]
    found = [what for what in failures(function, make, argument, EXTRA) if not what.startswith(CALLERS_OWN)]
    assert not found, "\n".join(found)
