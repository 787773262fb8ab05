"""Docstrings of the theory say what is raised where something is, and which paper a method is from."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

from ulam import bounds, mcmc, objectives, samplers, schedules, sure, tweedie, vae
from ulam.objectives import timesteps, weightings
from ulam.samplers.mcmc.chain_sampler import ChainSampler

MODULES = (samplers, schedules, mcmc, objectives, timesteps, weightings, tweedie, sure, vae, bounds)
REFUSES = re.compile(r"\braise \w+(Error)?\(|\b_?(check_\w+|number|positive|whole|whole_number|real|choice|switch)\(")
SAYS = re.compile(r"[Rr]aises|[Ee]rrors")
SOURCE = re.compile(r"\[[^]]*\b(19|20)\d\d|\bet al\. (19|20)\d\d|\[k-diffusion|no paper", re.DOTALL)
BARE = {  # tools beside methods, or conversions by definition, with no paper to name
    "ulam.objectives": {"Noised", "add_noise"},
    "ulam.tweedie": {"Estimate"},
    "ulam.sure": {"Sure", "Selection"},
    "ulam.bounds": {"Bound", "Likelihood", "ReverseChain"},
}


def public(module: Any) -> Iterator[tuple[str, Any]]:
    """Its functions and classes, without what it imports from elsewhere in ulam under a name of its own."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    for name in names:
        it = getattr(module, name)
        if (inspect.isclass(it) or inspect.isfunction(it)) and it.__module__.startswith(module.__name__):
            yield name, it


def made_by(it: Any) -> list[Any]:
    """The functions that run when it is called."""
    if inspect.isfunction(it):
        return [inspect.unwrap(it)]
    return [vars(it)[name] for name in ("__init__", "__post_init__") if name in vars(it)]


def refuses(it: Any) -> bool:
    written = [function for function in made_by(it) if not function.__code__.co_filename.startswith("<")]
    return any(REFUSES.search(inspect.getsource(function)) for function in written)


CASES = [(f"{module.__name__}.{name}", it) for module in MODULES for name, it in public(module)]


@pytest.mark.parametrize("it", [it for _, it in CASES if refuses(it)], ids=[name for name, it in CASES if refuses(it)])
def test_what_refuses_arguments_says_which_errors_it_raises(it: Any) -> None:
    assert SAYS.search(it.__doc__ or "")


def methods() -> list[tuple[str, Any]]:
    chains = [it for _, it in public(mcmc) if inspect.isclass(it) and issubclass(it, ChainSampler)]
    found = [(it.__name__, it) for it in [*samplers.catalogue().values(), *chains]]
    for module in (objectives, tweedie, sure, bounds):
        found += [
            (f"{module.__name__}.{name}", it)
            for name, it in public(module)
            if name not in BARE.get(module.__name__, ())
        ]
    return found


@pytest.mark.parametrize("it", [it for _, it in methods()], ids=[name for name, _ in methods()])
def test_a_method_says_where_it_is_from(it: Any) -> None:
    assert SOURCE.search(it.__doc__ or "")


def test_enough_is_looked_at() -> None:
    assert sum(refuses(it) for _, it in CASES) > 60 and len(methods()) > 60
    assert importlib.import_module("ulam.tweedie").mean in [it for _, it in CASES]
