"""Hostile arguments at the kernels' door: each is refused in one line that names it, before any work is done."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import ulam_kernels
from ulam_kernels import densities, likelihood, mcmc
from ulam_kernels.densities import Density

B, D = 4, 3
REFUSALS = (TypeError, ValueError, OverflowError)


def ids() -> dict[str, torch.Tensor]:
    return {name: torch.arange(B) for name in ("seed", "chain", "draw")}


def rows() -> torch.Tensor:
    return torch.linspace(-1, 1, B * D).reshape(B, D).contiguous()


def each(value: float = 0.1) -> torch.Tensor:
    return torch.full((B,), value)


def wide() -> torch.Tensor:
    return torch.zeros(B, dtype=torch.float64)


def counts() -> torch.Tensor:
    return torch.zeros(B, dtype=torch.int64)


# What works: for each function its arguments, made anew for each call.
GOOD: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]] = {
    "langevin": (mcmc.langevin, lambda: {
        "x": rows(), "score": rows(), "step": each(), "noise_scale": each(), "scale": torch.ones(D), "lo": -2.0,
        "hi": 2.0, "out": rows(), "backend": "cpu", **ids()}),
    "langevin of noise": (mcmc.langevin, lambda: {
        "x": rows(), "score": rows(), "step": each(), "noise_scale": each(), "noise": rows()}),
    "mala_accept": (mcmc.mala_accept, lambda: {
        "x": rows(), "proposal": rows(), "score": rows(), "proposal_score": rows(), "energy": wide(),
        "proposal_energy": wide(), "step": each(), "inverse_temperature": each(1.0), "scale": torch.ones(D),
        "backend": "cpu", **ids()}),
    "kick_drift": (mcmc.kick_drift, lambda: {
        "x": rows(), "v": rows(), "score": rows(), "kick": each(), "drift": each(), "keep": each(),
        "noise_scale": each(), "scale": torch.ones(D), "backend": "cpu", **ids()}),
    "squared_norm": (mcmc.squared_norm, lambda: {"x": rows(), "backend": "cpu"}),
    "accept": (mcmc.accept, lambda: {
        "log_ratio": wide(), "pairs": [(rows(), rows()), (wide(), wide())], "backend": "cpu", **ids()}),
    "evaluate": (mcmc.evaluate, lambda: {
        "density": densities.double_well(D), "x": rows(), "energy": True, "backend": "cpu"}),
    "run": (mcmc.run, lambda: {
        "density": densities.double_well(D), "x": rows(), "sampler": "mala", "coef": torch.ones(B, 4), "steps": 4,
        "leapfrog": 2, "scale": torch.ones(D), "thin": 2, "draws": torch.zeros(B, 2, D),
        "energies": torch.zeros(B, 2, dtype=torch.float64), "moments": torch.zeros(B, 2, D, dtype=torch.float64),
        "accepted": counts(), "diverged": counts(), "backend": "cpu", **ids()}),
    "run of ula": (mcmc.run, lambda: {
        "density": densities.double_well(D), "x": rows(), "sampler": "ula", "coef": torch.ones(B, 4), "steps": 4,
        "lo": -1.0, "hi": 1.0, **ids()}),
    "run of baoab": (mcmc.run, lambda: {
        "density": densities.double_well(D), "x": rows(), "sampler": "baoab", "coef": torch.ones(B, 4), "steps": 4,
        "v": rows(), **ids()}),
    "gaussian_kl": (likelihood.gaussian_kl, lambda: {
        "mean_a": rows(), "log_var_a": rows(), "mean_b": rows(), "log_var_b": each(), "backend": "cpu"}),
    "discretised_log_likelihood": (likelihood.discretised_log_likelihood, lambda: {
        "x": rows(), "mean": rows(), "log_scale": rows(), "bins": 256, "cdf": "tanh", "backend": "cpu"}),
    "moments": (ulam_kernels.moments, lambda: {"x": rows(), "y": rows(), "backend": "cpu"}),
    "fill_normal": (ulam_kernels.fill_normal, lambda: {
        "out": rows(), "tag": 1, "scale": 2.0, "offset": 5, "backend": "cpu", **ids()}),
    "Density": (Density, lambda: {
        "name": "mixture", "kind": densities.MIXTURE, "dimension": D, "components": 2,
        "params": torch.ones(2 + 2 + 2 * D, dtype=torch.float64)}),
    "gaussian": (densities.gaussian, lambda: {"mean": torch.zeros(D), "precision": torch.eye(D)}),
    "mixture": (densities.mixture, lambda: {
        "weights": torch.ones(2), "means": torch.zeros(2, D), "stds": torch.ones(2)}),
    "double_well": (densities.double_well, lambda: {"dimension": D, "height": 1.0, "separation": 1.0}),
    "rosenbrock": (densities.rosenbrock, lambda: {"dimension": 4, "a": 5.0, "b": 0.05}),
    "funnel": (densities.funnel, lambda: {"dimension": D, "std": 3.0}),
    "ring": (densities.ring, lambda: {"dimension": D, "radius": 3.0, "std": 0.3}),
}  # fmt: skip
OPTIONAL = {
    "langevin": ("scale", "out"), "mala_accept": ("inverse_temperature", "scale"), "kick_drift": ("scale",),
    "run": ("scale", "draws", "energies", "moments", "accepted", "diverged"),
}  # fmt: skip
ANY_REAL = ("gaussian", "mixture")  # take tensors of any real type, with holes too


def no_numbers() -> list[Any]:
    return [None, [1.0], "1", 1j, {}, np.zeros(2), torch.zeros(()), torch.zeros(B), object(), True, math.nan,
            -math.inf]  # fmt: skip


def no_tensors(good: torch.Tensor, function: str) -> Iterator[Any]:
    """In place of a tensor: other things, and tensors of another type, device or layout."""
    yield from (None, good.tolist(), "x", 3, math.nan, good.numpy(), object())
    yield from (good.to(torch.complex64), good > 0, good.to("meta"))
    if good.dim():
        yield good.to_sparse()
    if function in ANY_REAL:
        return
    yield good.to(torch.float32 if good.dtype == torch.int64 else torch.int64)
    if function != "fill_normal":  # fills float16
        yield good.to(torch.float16)
    if good.dim() and function != "Density":  # which copies
        yield torch.stack([good, good], -1)[..., 0]  # with holes


def hostile(function: str, name: str, good: Any) -> Iterator[Any]:
    if isinstance(good, torch.Tensor):
        for value in no_tensors(good, function):
            fine = value is None and name in OPTIONAL.get(function, ())
            if not fine and not (name == "stds" and isinstance(value, int)):
                yield value
    elif isinstance(good, bool):
        yield from (None, 1, "yes", [], torch.tensor(True))
    elif isinstance(good, int):
        yield from no_numbers()
        yield from (1.0, 2.5, math.inf, -1, -(2**70), 2**60, 2**70, 10**5000)
    elif isinstance(good, float):
        yield from (value for value in no_numbers() if (name, str(value)) != ("lo", "-inf"))
        yield 10**400
        if name not in ("lo", "hi"):
            yield from (math.inf, 1e39, 2**200)
            if function != "fill_normal":
                yield from (0.0, -1.0)
    elif isinstance(good, str):
        yield from (5, [], "a\nb", torch.zeros(3), b"cpu", object())
        if name != "backend":
            yield None
        if name != "name":
            yield from ("", "x")
    elif isinstance(good, Density):
        yield from (None, "gaussian", 3, object(), Density)
    else:
        assert name == "pairs"
        x, e = rows(), wide()
        yield from (None, 3, x, [None], [(x,)], [(x, x, x)], [(x, None)], [(None, x)], [(x, e)], [(x.half(), x.half())],
                    [(x, x)] * 5, [([1.0], [1.0])], [(x.to("meta"), x)], [(x.T, x.T)], "ab", ["ab"], iter([(x, x)]),
                    [(x, x[:2])])  # fmt: skip


CASES = [(function, name) for function, (_, make) in GOOD.items() for name in make()]
FREE = (("squared_norm", "x"), ("evaluate", "x"), ("fill_normal", "out"))  # of any shape, or count of chains
SHAPED = [
    (function, name)
    for function, name in CASES
    if isinstance(GOOD[function][1]()[name], torch.Tensor) and (function, name) not in FREE
]


@pytest.mark.parametrize("function", GOOD)
def test_what_works_works(function: str) -> None:
    operation, make = GOOD[function]
    operation(**make())


def refusal(function: str, name: str, value: object) -> str:
    """What is refused: in one line, and before anything is written."""
    operation, make = GOOD[function]
    arguments = make() | {name: value}
    dense = {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor) and v.layout == torch.strided}
    before = {k: v.clone() for k, v in dense.items() if v.device.type == "cpu"}
    with pytest.raises(REFUSALS) as caught:
        operation(**arguments)
        pytest.fail(f"{function}({name}={type(value).__name__} {str(value)[:60]}) was accepted")
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300, message
    assert all(torch.equal(dense[k], v) for k, v in before.items()), f"{name} was refused after work was done"
    return message


@pytest.mark.parametrize(("function", "name"), CASES)
def test_a_hostile_argument_is_refused_in_one_line_that_names_it(function: str, name: str) -> None:
    for value in hostile(function, name, GOOD[function][1]()[name]):
        message = refusal(function, name, value)
        names = message if value is None else message.partition(": ")[0]
        assert name in re.findall(r"\w+", names), (value, message)


@pytest.mark.parametrize(("function", "name"), SHAPED)
def test_a_tensor_of_another_shape_is_refused(function: str, name: str) -> None:
    """By its own name, or by that of one that no longer fits it."""
    arguments = GOOD[function][1]()
    good = arguments[name]
    for value in (good.new_zeros(2, 0, 7), good.new_zeros(()), torch.cat([good, good]), good[:1], good[..., None]):
        if function == "mixture" and name == "stds" and value.shape in ((), (1,)):
            continue  # one for all
        message = refusal(function, name, value)
        assert set(arguments) & set(re.findall(r"\w+", message.partition(": ")[0])), (value, message)


def test_numbers_of_other_libraries_are_numbers() -> None:
    x, y = rows(), rows()
    arguments = {"coef": torch.ones(B, 4), "sampler": "ula", **ids()}
    mcmc.run(densities.double_well(D, 2.0), x, steps=6, thin=2, lo=-1.0, **arguments)
    density = densities.double_well(np.int64(D), np.float32(2.0))
    mcmc.run(density, y, steps=np.int32(6), thin=np.uint8(2), lo=np.float64(-1.0), **arguments)
    assert torch.equal(x, y)


def test_the_scale_of_noise_is_a_finite_number_of_its_dtype() -> None:
    out = torch.zeros(B, D, dtype=torch.float64)
    ulam_kernels.fill_normal(out, scale=1e300, **ids())
    assert out.isfinite().all() and out.all()
    for scale in (math.inf, -math.inf, math.nan):
        with pytest.raises(ValueError, match=r"^scale: got"):
            ulam_kernels.fill_normal(out, scale=scale, **ids())


def test_a_density_keeps_its_numbers() -> None:
    params = torch.tensor([1.0, 2.0], dtype=torch.float64)
    density = Density("double_well", densities.DOUBLE_WELL, D, 0, params)
    expected = mcmc.evaluate(density, rows())[1]
    params.fill_(7.0)
    again = Density("double_well", densities.DOUBLE_WELL, D, 0, density.params)
    assert torch.equal(mcmc.evaluate(again, rows())[1], expected)


@pytest.mark.parametrize("kind", range(7))
def test_every_formula_has_its_count_of_numbers(kind: int) -> None:
    d, components = 4, 3 if kind == densities.MIXTURE else 0
    right = {densities.GAUSSIAN_DIAGONAL: 8, densities.GAUSSIAN: 20, densities.MIXTURE: 18}.get(kind, 2)
    for count in range(24):
        params = torch.ones(count, dtype=torch.float64)
        if count == right:
            Density("made", kind, d, components, params)
        else:
            with pytest.raises(ValueError, match=rf"^params: got shape \[{count}\], expected \[{right}\]"):
                Density("made", kind, d, components, params)


CRASHES = [
    "Density('gaussian', 0, 128, 0, one[:1])",
    "Density('gaussian', 1, 128, 0, one[:2])",
    "Density('mixture', 2, 2, 10**6, one[:6])",
    "Density('mixture', 2, 2, 64, one[:6])",
    "Density('ring', 6, 2, 0, one[:0])",
    "Density('odd', 99, 2, 0, one[:2])",
    "Density('odd', -1, 2, 0, one[:2])",
    "Density('well', 3, 10**6, 0, one[:2])",
]


@pytest.mark.parametrize("made", CRASHES)
def test_what_read_past_the_heap_is_refused(made: str) -> None:
    """In a process of its own: where it is accepted, the process may die."""
    program = f"""
import torch
from ulam_kernels import mcmc
from ulam_kernels.densities import Density
one = torch.ones(64, dtype=torch.float64)
try:
    density = {made}
except (TypeError, ValueError) as refusal:
    print("refused:", refusal)
else:
    print(mcmc.evaluate(density, torch.zeros(4, density.dimension)))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, f"died with {ran.returncode}"
    assert ran.stdout.startswith("refused: ") and ran.stdout.count("\n") == 1, ran.stdout
