"""Langevin and Metropolis operations, exact and readable: see :mod:`ulam_kernels.mcmc.checks`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.densities import Density
from ulam_kernels.mcmc import DIVERGED, PATH_STAGE
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
            velocity = _thermostat(velocity, _column(keep), _column(noise_scale), _normals(x, seed, chain, draw, noise))
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
    diverged: torch.Tensor | None,
) -> None:
    chains = _Chains(density, params, x, coef, v, scale, (lo, hi), leapfrog)
    step = (chains.ula, chains.mala, chains.baoab, chains.hmc)[sampler]
    first = _ids(seed, chain, draw)
    for i in range(steps):
        step((first[0], first[1], first[2] + np.uint64(16 * i)))
        if (i + 1) % thin == 0:
            if draws is not None:
                draws[:, i // thin] = torch.from_numpy(chains.x)
            if energies is not None:
                energies[:, i // thin] = torch.from_numpy(chains.energy)
            if moments is not None:
                wide = torch.from_numpy(chains.x.astype(np.float64)).to(moments.device)
                moments[:, 0] += wide
                moments[:, 1] += wide * wide
    _write(x, chains.x)
    if v is not None:
        _write(v, chains.v)
    if accepted is not None:
        accepted += torch.from_numpy(chains.accepted).to(accepted.device)
    if diverged is not None:
        diverged += torch.from_numpy(chains.diverged).to(diverged.device)


class _Chains:
    """The state of whole chains: x, v, and the energy and score at x."""

    def __init__(
        self,
        density: Density,
        params: torch.Tensor,
        x: torch.Tensor,
        coef: torch.Tensor,
        v: torch.Tensor | None,
        scale: torch.Tensor | None,
        bounds: tuple[float, float],
        leapfrog: int,
    ) -> None:
        self.density, self.params = density, params.cpu().numpy()
        self.coef = [column[:, None] for column in coef.cpu().numpy().T]
        self.scale, self.bounds, self.leapfrog = _flat(scale), bounds, leapfrog
        self.x = _rows(x).copy()
        self.v = np.zeros_like(self.x) if v is None else _rows(v).copy()
        self.energy, self.score = self.target(self.x)
        self.accepted, self.diverged = np.zeros((2, len(x)), np.int64)

    def target(self, x: RealArray) -> tuple[Float64Array, RealArray]:
        return energy_and_score(self.density, self.params, x)

    def normals(self, ids: Ids) -> RealArray:
        return noise_v1.normals(*ids, tag=0, offset=0, count=self.x.shape[1]).astype(self.x.dtype)

    def proposed(self, ids: Ids) -> RealArray:
        step, noise_scale = self.coef[:2]
        return _langevin(self.x, self.score, step, noise_scale, self.scale, *self.bounds, self.normals(ids))

    def ula(self, ids: Ids) -> None:
        self.x = self.proposed(ids)
        self.energy, self.score = self.target(self.x)

    @np.errstate(all="ignore")
    def mala(self, ids: Ids) -> None:
        proposal = self.proposed(ids)
        energy, score = self.target(proposal)
        step, beta = self.coef[0][:, 0], self.coef[2][:, 0]
        states = (self.x, proposal, self.score, score)
        self.select(ids, mala_log_ratio(*states, self.energy - energy, step, beta, self.scale), proposal, energy, score)

    def baoab(self, ids: Ids) -> None:
        kick, drift, keep, noise_scale = self.coef
        v = _kick(self.v, self.score, kick, self.scale)
        x = _kick(self.x, v, drift, self.scale)
        v = _thermostat(v, keep, noise_scale, self.normals(ids))
        self.x = _kick(x, v, drift, self.scale)
        self.energy, self.score = self.target(self.x)
        self.v = _kick(v, self.score, kick, self.scale)

    @np.errstate(all="ignore")
    def hmc(self, ids: Ids) -> None:
        whole, beta, width = self.varied_step(ids), self.coef[2][:, 0].astype(np.float64), self.coef[3]
        half = mul(self.x.dtype.type(0.5), whole)
        x, score, energy = self.x, self.score, self.energy
        v = mul(width, self.normals(ids))
        norm = sum_of_squares(v)
        for leap in range(self.leapfrog):
            v = _kick(v, score, whole if leap else half, self.scale)
            x = _kick(x, v, whole, self.scale)
            energy, score = self.target(x)
        v = _kick(v, score, half, self.scale)
        ratio = ((self.energy - energy) + 0.5 * (norm - sum_of_squares(v))) * beta
        self.select(ids, ratio, x, energy, score)

    def varied_step(self, ids: Ids) -> RealArray:
        """h (1 + jitter u) ``[B, 1]``, u = z_0 / |z| uniform on [-1, 1] from three normals of the step's path."""
        step, jitter = self.coef[:2]
        path = (ids[0], ids[1], ids[2] + np.uint64(PATH_STAGE))
        a, b, c = noise_v1.normals(*path, tag=0, offset=0, count=3).astype(np.float64).T
        u = (a / np.sqrt((a * a + b * b) + c * c))[:, None]
        varied: RealArray = (step.astype(np.float64) * (1 + jitter.astype(np.float64) * u)).astype(step.dtype)
        return varied

    def select(self, ids: Ids, ratio: Float64Array, x: RealArray, energy: Float64Array, score: RealArray) -> None:
        yes = metropolis(ratio, ids)
        self.x = np.where(yes[:, None], x, self.x)
        self.score = np.where(yes[:, None], score, self.score)
        self.energy = np.where(yes, energy, self.energy)
        self.accepted += yes
        self.diverged += ~(ratio >= DIVERGED)


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
    drifted = _kick(x, score if scale is None else mul(scale, score), step, scale)
    return clip(_kick(drifted, z, noise_scale, scale), kind(lo), kind(hi))


def _kick(v: RealArray, force: RealArray, size: RealArray, scale: RealArray | None) -> RealArray:
    """``fma(mul(size, L), force, v)``."""
    return fma(size if scale is None else mul(size, scale), force, v)


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
