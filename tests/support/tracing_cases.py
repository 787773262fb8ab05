"""One call of every operation of the kernels, as a function of tensors alone, for what traces, fakes or wraps it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

import ulam_kernels
from ulam_kernels import Table, densities, likelihood, mcmc, operator
from ulam_kernels.new_normal import new_normal

B, N = 3, 6
Tensors = tuple[torch.Tensor, ...]


class Case(NamedTuple):
    call: Callable[..., Tensors]  # gives what it writes and returns; what is written is made inside
    make: Callable[[torch.Generator], Tensors]
    operator: str  # of the graph


def operations() -> dict[str, Callable[..., Any]]:
    """Every public operation, as the decorator registers it: a new one is found here, and missed in CASES."""
    return {f.__name__: f for f in operator.functions.values() if not f.__name__.startswith("_")}


def _normal(*shape: int) -> Callable[[torch.Generator], torch.Tensor]:
    return lambda generator: torch.randn(shape, generator=generator)


def _ids(generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 1 << 40, (B,), generator=generator)


def _each(*makers: Callable[[torch.Generator], torch.Tensor]) -> Callable[[torch.Generator], Tensors]:
    return lambda generator: tuple(make(generator) for make in makers)


def _of(tensor: torch.Tensor) -> Callable[[torch.Generator], torch.Tensor]:
    return lambda generator: tensor.clone()


def _table() -> Table:
    zero, one = np.zeros(2), np.ones(2)
    matrix = np.array([[[0.9, 0.2, 0.3, 0.1]], [[0.5, 0.1, 0.2, 0.4]]])
    none = zero > 0
    return Table.pack(one, one, 0.9 * one, np.inf * one, zero, zero, 2 * one, matrix, ~none[:, None], none,
                      threshold=~none)  # fmt: skip


X, PER_CHAIN, IDS = _normal(B, N), _normal(B), _ids
WIDE = lambda generator: torch.randn(B, generator=generator).double()  # noqa: E731
TABLE, ROW = (_of(_table().coef), _of(_table().flags)), _of(torch.tensor([0, 1, 0]))
STATE = _normal(1, B, N)
DENSITY = densities.gaussian(torch.ones(N), torch.full((N,), 2.0))


def step(
    state: Any, coef: Any, flags: Any, row: Any, model: Any, seed: Any, chain: Any, draw: Any, like: Any
) -> Tensors:
    state, net_in, squares = state.clone(), torch.empty_like(like), torch.zeros(B, dtype=torch.int64)
    scales = torch.ones(B, 4)
    ulam_kernels.step(state, Table(coef, flags, 1), row, model=model, seed=seed, chain=chain, draw=draw, net_in=net_in,
                      scales=scales, squares=squares)  # fmt: skip
    return state, net_in, squares


def reduce(state: Any, coef: Any, flags: Any, row: Any, model: Any) -> Tensors:
    return (ulam_kernels.reduce(state, Table(coef, flags, 1), row, model=model, out=torch.empty(B, 4)),)


def blend(state: Any, known: Any, mask: Any, a: Any, b: Any, seed: Any, chain: Any, draw: Any) -> Tensors:
    state = state.clone()
    ulam_kernels.blend(state, known, mask, a, b, seed=seed, chain=chain, draw=draw)
    return (state,)


def fill_normal(like: Any, seed: Any, chain: Any, draw: Any) -> Tensors:
    out = torch.empty_like(like)
    return (ulam_kernels.fill_normal(out, seed=seed, chain=chain, draw=draw, tag=1, scale=2.0, offset=5),)


def fill_normal_new(seed: Any, chain: Any, draw: Any) -> Tensors:
    return (new_normal((2, 3), seed=seed, chain=chain, draw=draw, tag=1),)


def affine(x: Any, m: Any, a: Any, b: Any) -> Tensors:
    return (ulam_kernels.affine(x, m, a, b),)


def affine_out(x: Any, m: Any, a: Any, b: Any) -> Tensors:
    out = torch.empty_like(x)
    return (ulam_kernels.affine(x, m, a, b, out),)


def look_up(times: Any, row: Any, guidance: Any) -> Tensors:
    out, weight, interval = torch.empty_like(guidance), torch.empty_like(guidance), torch.zeros(2, B)
    ulam_kernels.look_up(times, row, out, guidance=guidance, interval=interval, weight=weight)
    return out, weight


def advance(cursor: Any, model: Any) -> Tensors:
    cursor, now = cursor.clone(), torch.zeros(2, B, dtype=torch.int64)
    ulam_kernels.advance(cursor, now, model=model)
    return cursor, now


def torch_normal(like: Any) -> Tensors:
    return (ulam_kernels.torch_normal(torch.empty_like(like)),)


def langevin(x: Any, score: Any, step: Any, noise_scale: Any, seed: Any, chain: Any, draw: Any) -> Tensors:
    return (mcmc.langevin(x, score, step, noise_scale, seed=seed, chain=chain, draw=draw),)


def langevin_out(x: Any, score: Any, step: Any, noise_scale: Any, noise: Any) -> Tensors:
    out = torch.empty_like(x)
    return (mcmc.langevin(x, score, step, noise_scale, noise=noise, out=out),)


def langevin_in_place(x: Any, score: Any, step: Any, noise_scale: Any, scale: Any, noise: Any) -> Tensors:
    x = x.clone()
    return (mcmc.langevin(x, score, step, noise_scale, scale=scale, noise=noise, out=x, lo=-1, hi=0.5),)


def mala_accept(x: Any, y: Any, s: Any, t: Any, e: Any, f: Any, h: Any, seed: Any, chain: Any, draw: Any) -> Tensors:
    x, s, e = x.clone(), s.clone(), e.clone()
    return (*mcmc.mala_accept(x, y, s, t, e, f, h, seed=seed, chain=chain, draw=draw), x, s, e)


def kick_drift(x: Any, v: Any, score: Any, kick: Any, drift: Any) -> Tensors:
    x, v = x.clone(), v.clone()
    mcmc.kick_drift(x, v, score, kick, drift)
    return x, v


def squared_norm(x: Any) -> Tensors:
    return (mcmc.squared_norm(x),)


def accept(log_ratio: Any, kept: Any, proposed: Any, seed: Any, chain: Any, draw: Any) -> Tensors:
    kept = kept.clone()
    return mcmc.accept(log_ratio, [(kept, proposed)], seed=seed, chain=chain, draw=draw), kept


def evaluate(x: Any) -> Tensors:
    energy, score = mcmc.evaluate(DENSITY, x)
    assert energy is not None
    return energy, score


def evaluate_score(x: Any) -> Tensors:
    return (mcmc.evaluate(DENSITY, x, energy=False)[1],)


def run(x: Any, coef: Any, seed: Any, chain: Any, draw: Any) -> Tensors:
    x = x.clone()
    mcmc.run(DENSITY, x, "ula", coef, 3, seed=seed, chain=chain, draw=draw)
    return (x,)


def gaussian_kl(a: Any, b: Any, c: Any, d: Any) -> Tensors:
    return (likelihood.gaussian_kl(a, b, c, d),)


def discretised_log_likelihood(x: Any, mean: Any, log_scale: Any) -> Tensors:
    return (likelihood.discretised_log_likelihood(x, mean, log_scale),)


def moments(x: Any, y: Any) -> Tensors:
    return (ulam_kernels.moments(x, y),)


STREAM = (IDS, IDS, IDS)
CURSOR = _of(torch.arange(6 * B).view(6, B))
CASES = {
    "step": Case(step, _each(STATE, *TABLE, ROW, X, *STREAM, X), "step"),
    "reduce": Case(reduce, _each(STATE, *TABLE, ROW, X), "reduce"),
    "blend": Case(blend, _each(STATE, X, X, PER_CHAIN, PER_CHAIN, *STREAM), "blend"),
    "fill_normal": Case(fill_normal, _each(X, *STREAM), "fill_normal"),
    "fill_normal of a new tensor": Case(fill_normal_new, _each(*STREAM), "fill_normal_new"),
    "affine": Case(affine, _each(X, X, PER_CHAIN, PER_CHAIN), "affine"),
    "affine with out": Case(affine_out, _each(X, X, PER_CHAIN, PER_CHAIN), "affine_out"),
    "moments": Case(moments, _each(X, X), "moments"),
    "look_up": Case(look_up, _each(_normal(5), ROW, PER_CHAIN), "look_up"),
    "advance": Case(advance, _each(CURSOR, X), "advance"),
    "torch_normal": Case(torch_normal, _each(X), "normal_"),
    "langevin": Case(langevin, _each(X, X, PER_CHAIN, PER_CHAIN, *STREAM), "langevin"),
    "langevin with out": Case(langevin_out, _each(X, X, PER_CHAIN, PER_CHAIN, X), "langevin_out"),
    "langevin in place": Case(
        langevin_in_place, _each(X, X, PER_CHAIN, PER_CHAIN, _normal(N), X), "langevin_in_place"
    ),
    "mala_accept": Case(mala_accept, _each(X, X, X, X, WIDE, WIDE, PER_CHAIN, *STREAM), "mala_accept"),
    "kick_drift": Case(kick_drift, _each(X, X, X, PER_CHAIN, PER_CHAIN), "kick_drift"),
    "squared_norm": Case(squared_norm, _each(X), "squared_norm"),
    "accept": Case(accept, _each(WIDE, X, X, *STREAM), "accept"),
    "evaluate": Case(evaluate, _each(X), "evaluate"),
    "evaluate without energies": Case(evaluate_score, _each(X), "evaluate_score"),
    "run": Case(run, _each(X, _normal(B, 4), *STREAM), "run"),
    "gaussian_kl": Case(gaussian_kl, _each(X, X, X, X), "gaussian_kl"),
    "discretised_log_likelihood": Case(discretised_log_likelihood, _each(X, X, X), "discretised_log_likelihood"),
}  # fmt: skip


def inputs(case: Case, seed: int) -> Tensors:
    return case.make(torch.Generator().manual_seed(seed))
