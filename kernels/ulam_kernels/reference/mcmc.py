"""Langevin and Metropolis operations, exact and readable: see :mod:`ulam_kernels.mcmc` for what each does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.densities import Density
from ulam_kernels.reference import noise as noise_v1
from ulam_kernels.reference.arithmetic import RealArray, fma, mul
from ulam_kernels.reference.densities import energy_and_score
from ulam_kernels.reference.operands import clip
from ulam_kernels.reference.reduce import LANES, sum_of_squares

Float64Array = npt.NDArray[np.float64]
UInt64Array = npt.NDArray[np.uint64]
BoolArray = npt.NDArray[np.bool_]
Ids = tuple[UInt64Array, UInt64Array, UInt64Array]  # seed, chain, draw


def langevin(
    x: torch.Tensor,
    score: torch.Tensor,
    step: torch.Tensor,
    noise_scale: torch.Tensor,
    scale: torch.Tensor | None,
    lo: float,
    hi: float,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    z = _normals(x, seed, chain, draw, noise)
    value = _langevin(_rows(x), _rows(score), _column(step), _column(noise_scale), _flat(scale), lo, hi, z)
    _write(out, value)


def mala_accept(
    x: torch.Tensor,
    proposal: torch.Tensor,
    score: torch.Tensor,
    proposal_score: torch.Tensor,
    energy: torch.Tensor,
    proposal_energy: torch.Tensor,
    step: torch.Tensor,
    inverse_temperature: torch.Tensor | None,
    scale: torch.Tensor | None,
    seed: torch.Tensor,
    chain: torch.Tensor,
    draw: torch.Tensor,
    accepted: torch.Tensor,
    log_ratio: torch.Tensor,
) -> None:
    states = (_rows(x), _rows(proposal), _rows(score), _rows(proposal_score))
    beta = np.ones(len(x)) if inverse_temperature is None else inverse_temperature.cpu().numpy()
    difference = _float64(energy) - _float64(proposal_energy)
    ratio = mala_log_ratio(*states, difference, step.cpu().numpy(), beta, _flat(scale))
    log_ratio.copy_(torch.from_numpy(ratio))
    pairs = [(x, proposal), (score, proposal_score), (energy, proposal_energy)]
    accept(log_ratio, pairs, seed, chain, draw, accepted)


def kick_drift(
    x: torch.Tensor,
    v: torch.Tensor,
    score: torch.Tensor,
    kick: torch.Tensor,
    drift: torch.Tensor | None,
    keep: torch.Tensor | None,
    noise_scale: torch.Tensor | None,
    scale: torch.Tensor | None,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
) -> None:
    velocity = _kick(_rows(v), _rows(score), _column(kick), _flat(scale))
    if drift is not None:
        position = _kick(_rows(x), velocity, _column(drift), _flat(scale))
        if keep is not None and noise_scale is not None:
            velocity = _thermostat(
                velocity, _column(keep), _column(noise_scale), _normals(x, seed, chain, draw, noise)
            )
            position = _kick(position, velocity, _column(drift), _flat(scale))
        _write(x, position)
    _write(v, velocity)


def squared_norm(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(torch.from_numpy(sum_of_squares(_rows(x))))


def accept(
    log_ratio: torch.Tensor,
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    seed: torch.Tensor,
    chain: torch.Tensor,
    draw: torch.Tensor,
    accepted: torch.Tensor,
) -> None:
    accepted.copy_(torch.from_numpy(metropolis(_float64(log_ratio), _ids(seed, chain, draw))))
    for kept, proposed in pairs:
        kept[accepted] = proposed[accepted]


def evaluate(
    density: Density, params: torch.Tensor, x: torch.Tensor, energy: torch.Tensor | None, score: torch.Tensor
) -> None:
    e, s = energy_and_score(density, params.cpu().numpy(), _rows(x))
    _write(score, s)
    if energy is not None:
        energy.copy_(torch.from_numpy(e))


def run(
    density: Density,
    params: torch.Tensor,
    x: torch.Tensor,
    sampler: int,
    coef: torch.Tensor,
    steps: int,
    seed: torch.Tensor,
    chain: torch.Tensor,
    draw: torch.Tensor,
    v: torch.Tensor | None,
    leapfrog: int,
    scale: torch.Tensor | None,
    lo: float,
    hi: float,
    thin: int,
    draws: torch.Tensor | None,
    energies: torch.Tensor | None,
    moments: torch.Tensor | None,
    accepted: torch.Tensor | None,
) -> None:
    numbers = params.cpu().numpy()
    target = lambda position: energy_and_score(density, numbers, position)  # noqa: E731
    first = _ids(seed, chain, draw)
    c = [column[:, None] for column in coef.cpu().numpy().T]
    position, flat = _rows(x).copy(), _flat(scale)
    velocity = np.zeros_like(position) if v is None else _rows(v).copy()
    energy, score = target(position)
    count: npt.NDArray[np.int64] = np.zeros(len(x), np.int64)
    for i in range(steps):
        ids = (first[0], first[1], first[2] + np.uint64(16 * i))
        z = noise_v1.normals(*ids, tag=0, offset=0, count=x.shape[1]).astype(position.dtype)
        if sampler in (0, 1):  # ula, mala
            proposal = _langevin(position, score, c[0], c[1], flat, lo, hi, z)
            new_energy, new_score = target(proposal)
        elif sampler == 2:  # baoab
            velocity = _kick(velocity, score, c[0], flat)
            proposal = _kick(position, velocity, c[1], flat)
            velocity = _thermostat(velocity, c[2], c[3], z)
            proposal = _kick(proposal, velocity, c[1], flat)
            new_energy, new_score = target(proposal)
            velocity = _kick(velocity, new_score, c[0], flat)
        else:
            half = mul(position.dtype.type(0.5), c[0])
            momentum = mul(c[3], z)
            kinetic = sum_of_squares(momentum)
            proposal, new_score, new_energy = position, score, energy
            for leap in range(leapfrog):
                momentum = _kick(momentum, new_score, c[0] if leap else half, flat)
                proposal = _kick(proposal, momentum, c[0], flat)
                new_energy, new_score = target(proposal)
            momentum = _kick(momentum, new_score, half, flat)
        keep = np.ones(len(x), bool)
        with np.errstate(all="ignore"):
            difference = energy - new_energy
            if sampler == 1:
                states = (position, proposal, score, new_score)
                ratio = mala_log_ratio(*states, difference, c[0][:, 0], c[2][:, 0], flat)
                keep = metropolis(ratio, ids)
            elif sampler == 3:
                ratio = (difference + 0.5 * (kinetic - sum_of_squares(momentum))) * c[2][:, 0].astype(np.float64)
                keep = metropolis(ratio, ids)
        position = np.where(keep[:, None], proposal, position)
        score = np.where(keep[:, None], new_score, score)
        energy = np.where(keep, new_energy, energy)
        count += keep
        if (i + 1) % thin == 0:
            if draws is not None:
                draws[:, i // thin] = torch.from_numpy(position)
            if energies is not None:
                energies[:, i // thin] = torch.from_numpy(energy)
            if moments is not None:
                wide = torch.from_numpy(position.astype(np.float64)).to(moments.device)
                moments[:, 0] += wide
                moments[:, 1] += wide * wide
    _write(x, position)
    if v is not None:
        _write(v, velocity)
    if accepted is not None:
        accepted += torch.from_numpy(count).to(accepted.device)


def metropolis(log_ratio: Float64Array, ids: Ids) -> BoolArray:
    """Whether ``u < exp(log_ratio)`` ``[B]``, as ``r r > -2 log_ratio`` with r = sqrt(-2 ln u)."""
    word = noise_v1.words(*ids, 2, np.zeros(1, np.uint64))[:, 0, 0]
    r = noise_v1.radius(word).astype(np.float64)
    accepted: BoolArray = r * r > -2.0 * log_ratio
    return accepted


@np.errstate(all="ignore")
def mala_log_ratio(
    x: RealArray,
    proposal: RealArray,
    score: RealArray,
    proposal_score: RealArray,
    difference: Float64Array,
    step: RealArray,
    beta: RealArray,
    scale: RealArray | None,
) -> Float64Array:
    """``(E - E' - 1/2 sum_i (s_i + s'_i) (x'_i - x_i + step / 2 P_i (s'_i - s_i))) / T`` ``[B]``."""
    a, b, s, t = (array.astype(np.float64) for array in (x, proposal, score, proposal_score))
    half = 0.5 * step.astype(np.float64)[:, None]
    if scale is not None:
        wide = scale.astype(np.float64)
        half = (half * wide) * wide
    terms = (s + t) * ((b - a) + half * (t - s))
    ratio: Float64Array = (difference - 0.5 * ordered_sum(terms)) * beta.astype(np.float64)
    return ratio


def ordered_sum(terms: Float64Array) -> Float64Array:
    """Sums ``[B]`` of ``[B, n]`` in 1024 lanes, which are then halved, as in ``sum_of_squares``."""
    lanes = np.zeros((len(terms), LANES))
    for first in range(0, terms.shape[1], LANES):
        part = terms[:, first : first + LANES]
        lanes[:, : part.shape[1]] += part
    while (half := lanes.shape[1] // 2) > 0:
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def _langevin(
    x: RealArray,
    score: RealArray,
    step: RealArray,
    noise_scale: RealArray,
    scale: RealArray | None,
    lo: float,
    hi: float,
    z: RealArray,
) -> RealArray:
    kind = x.dtype.type
    moved = _thermal(_kick(x, score if scale is None else mul(scale, score), step, scale), noise_scale, scale, z)
    return clip(moved, kind(lo), kind(hi))


def _kick(v: RealArray, force: RealArray, size: RealArray, scale: RealArray | None) -> RealArray:
    """``fma(mul(size, L), force, v)``."""
    return fma(size if scale is None else mul(size, scale), force, v)


def _thermal(x: RealArray, size: RealArray, scale: RealArray | None, z: RealArray) -> RealArray:
    return _kick(x, z, size, scale)


def _thermostat(v: RealArray, keep: RealArray, noise_scale: RealArray, z: RealArray) -> RealArray:
    return fma(noise_scale, z, mul(keep, v))


def _normals(
    x: torch.Tensor,
    seed: torch.Tensor | None,
    chain: torch.Tensor | None,
    draw: torch.Tensor | None,
    noise: torch.Tensor | None,
) -> RealArray:
    if noise is not None:
        return _rows(noise)
    assert seed is not None and chain is not None and draw is not None
    z = noise_v1.normals(*_ids(seed, chain, draw), tag=0, offset=0, count=x[0].numel())
    return z.astype(_rows(x).dtype)


def _rows(tensor: torch.Tensor) -> RealArray:
    rows: RealArray = tensor.detach().cpu().reshape(len(tensor), -1).numpy()
    return rows


def _flat(scale: torch.Tensor | None) -> RealArray | None:
    return None if scale is None else scale.detach().cpu().reshape(-1).numpy()


def _column(coefficient: torch.Tensor) -> RealArray:
    return _rows(coefficient)


def _float64(tensor: torch.Tensor) -> Float64Array:
    wide: Float64Array = tensor.cpu().numpy()
    return wide


def _ids(seed: torch.Tensor, chain: torch.Tensor, draw: torch.Tensor) -> Ids:
    a, b, c = (tensor.cpu().numpy().view(np.uint64) for tensor in (seed, chain, draw))
    return a, b, c


def _write(out: torch.Tensor, values: RealArray) -> None:
    out.copy_(torch.from_numpy(np.ascontiguousarray(values)).reshape(out.shape))
