"""The loops of k-diffusion's and ComfyUI's samplers, restated: on y = x / alpha and u = sigma / alpha, in numpy.

On flow schedules ComfyUI runs the same formulas on x itself and u = t. A loop gets the state, the levels, a `Model` and
a source of noise, and returns the last state. Ours must respond in the same way to x_T, every output and every noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.integrate import quad

from oracles import execute
from ulam import Program
from ulam.samplers.grid import Grid, GridSampler
from ulam.schedules import FlowMatching, Schedule

Array = npt.NDArray[np.float64]
Noise = Callable[[], Array]


class Model:
    """D at (y, u) from outputs that are given in advance: one for each call, and one for its unguided branch."""

    def __init__(self, predicts: str, outputs: Iterator[tuple[Array, Array]], flow: bool) -> None:
        self.predicts, self.outputs, self.flow = predicts, outputs, flow
        self.asked: list[float] = []

    def __call__(self, y: Array, u: float) -> Array:
        return self.both(y, u)[0]

    def both(self, y: Array, u: float) -> tuple[Array, Array]:
        """(guided, unguided) D."""
        self.asked.append(float(u))
        guided, unguided = next(self.outputs)
        return self.data(y, u, guided), self.data(y, u, unguided)

    def data(self, y: Array, u: float, m: Array) -> Array:
        if self.predicts == "x0":
            return m
        if self.flow:
            assert self.predicts == "flow"
            return y - u * m
        if self.predicts == "v":  # y / sqrt(1 + u^2) = alpha y is x
            return y / (1 + u**2) - u / np.sqrt(1 + u**2) * m
        assert self.predicts == "eps"
        return y - u * m


def ours(program: Program, signal: tuple[Array, Array, Array, Array]) -> Array:
    """The last state: outputs to the evaluating rows in order, noises to those that add some."""
    x, outputs, unguided, noises = signal
    number = np.cumsum(program.evaluates) - 1
    adds = (program.A[:, :, -1] != 0).any(axis=1)
    draw = np.cumsum(adds) - 1
    return execute(
        program,
        x,
        lambda row, _: outputs[number[row]],
        lambda row: noises[draw[row]] if adds[row] else np.zeros_like(x),
        lambda row, _: unguided[number[row]],
    )[-1]


def responses(
    sampler: GridSampler, schedule: Schedule, predicts: str, loop: Callable[..., Array], **arguments: Any
) -> tuple[Array, Array, Grid, Array]:
    """(ours, the loop's, the grid, the u's the loop asked for): the last state's coefficients on all that goes in."""
    grid, program = sampler.grid(schedule), sampler.program(schedule, predicts)
    nfe, draws = program.nfe, int((program.A[:, :, -1] != 0).any(axis=1).sum())
    unit = np.eye(1 + 2 * nfe + draws)[:, :, None]
    x, outputs, unguided, noises = unit[0], unit[1 : 1 + nfe], unit[1 + nfe : 1 + 2 * nfe], unit[1 + 2 * nfe :]
    flow = isinstance(schedule, FlowMatching)
    first, last = (1.0, 1.0) if flow else (float(grid.alphas[0]), float(grid.alphas[-1]))
    levels = grid.sigmas if flow else grid.ratios
    given, draw = zip(outputs, unguided, strict=True), iter(noises)
    model = Model(predicts, iter(given), flow)
    theirs = loop(x / first, levels, model, lambda: next(draw), **arguments) * last
    assert next(given, None) is None and next(draw, None) is None  # it asked for all of them
    return ours(program, (x, outputs, unguided, noises)), theirs, grid, np.array(model.asked)


def ancestral(u: float, u_next: float, eta: float) -> tuple[float, float]:
    """(down, up) [k-diffusion, get_ancestral_step]."""
    up = min(u_next, eta * u_next * np.sqrt(1 - (u_next / u) ** 2))
    return np.sqrt(u_next**2 - up**2), up


def rectified(s: float, s_next: float, eta: float) -> tuple[float, float, float]:
    """(down, gain, up) in t of a flow schedule: to `down`, then times gain, plus up z [ComfyUI's RF forms]."""
    down = s_next * (1 + (s_next / s - 1) * eta)
    gain = (1 - s_next) / (1 - down)
    return down, gain, np.sqrt(s_next**2 - (gain * down) ** 2)


def multistep(y: Array, levels: Array, model: Model, noise: Noise, weights: Callable[..., Any], order: int) -> Array:
    """y + sum_j weights_j d_{i-j}; D where the end is the data."""
    past: list[Array] = []
    for i, (u, u_next) in enumerate(itertools.pairwise(levels)):
        D = model(y, u)
        past = [(y - D) / u, *past][:order]
        now = weights(levels, i, len(past))
        y = D if u_next == 0 else y + sum(weight * d for weight, d in zip(now, past, strict=True))
    return y


def ipndm(levels: Array, i: int, order: int) -> Array:
    """Adams-Bashforth with equal steps [Liu 2022]."""
    table = {1: [1.0], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
    return (levels[i + 1] - levels[i]) * np.array(table[order])


def ipndm_v(levels: Array, i: int, order: int) -> Array:
    """Adams-Bashforth with the steps as they are: Lagrange's polynomials by quadrature."""
    return lagrange(levels, i, order, lambda u: u)


def deis_tab(levels: Array, i: int, order: int) -> Array:
    """The tAB-DEIS of EDM's levels taken to t of the VP SDE: Lagrange's polynomials in t, by quadrature in u."""
    sigma_min, sigma_max, t_min = 0.002, 80.0, 1e-3
    beta_d = 2 * (np.log(sigma_min**2 + 1) / t_min - np.log(sigma_max**2 + 1)) / (t_min - 1)
    beta_min = np.log(sigma_max**2 + 1) - beta_d / 2
    return lagrange(
        levels, i, order, lambda u: (np.sqrt(beta_min**2 + 2 * beta_d * np.log(u**2 + 1)) - beta_min) / beta_d
    )


def lagrange(levels: Array, i: int, order: int, time: Callable[[Any], Any]) -> Array:
    nodes = [time(levels[i - j]) for j in range(order)]

    def polynomial(u: float, j: int) -> float:
        others = [node for k, node in enumerate(nodes) if k != j]
        return float(np.prod([(time(u) - node) / (nodes[j] - node) for node in others]))

    ends = float(levels[i]), float(levels[i + 1])
    return np.array([quad(polynomial, *ends, (j,), epsabs=0, epsrel=1e-13, limit=400)[0] for j in range(order)])


def euler_ancestral(
    y: Array,
    levels: Array,
    model: Model,
    noise: Noise,
    eta: float,
    s_noise: float,
    form: str = "",
    cfg_pp: bool = False,
) -> Array:
    """form: "RF" for the one on flow schedules."""
    for u, u_next in itertools.pairwise(levels):
        D, D_u = model.both(y, u)
        if u_next == 0:
            y = D
        elif form == "RF":
            down, gain, up = rectified(u, u_next, eta)
            y = gain * (down / u * y + (1 - down / u) * D) + s_noise * up * noise()
        elif cfg_pp:
            a, a_next = (1 - u, 1 - u_next) if model.flow else (1.0, 1.0)
            down, up = ancestral(u / a if a else np.inf, u_next / a_next, eta)
            y = a_next * (D + down * (y - a * D_u) / u) + (s_noise * a_next * up * noise() if eta else 0)
        else:
            down, up = ancestral(u, u_next, eta)
            y = y + (y - D) / u * (down - u) + s_noise * up * noise()
    return y


def second_order_ancestral(
    y: Array, levels: Array, model: Model, noise: Noise, kind: str, eta: float, s_noise: float, cfg_pp: bool = False
) -> Array:
    """kind: "dpm_2" or "dpmpp_2s"; the RF forms on flow schedules."""
    for u, u_next in itertools.pairwise(levels):
        D, D_u = model.both(y, u)
        guide, a_next = D - D_u, 1 - u_next if model.flow else 1.0
        D = D_u if cfg_pp else D
        if model.flow:
            down, gain, up = rectified(u, u_next, eta)
        else:
            (down, up), gain = ancestral(u, u_next, eta), 1.0
        if down == 0:
            y = D
        else:
            if kind == "dpm_2" or not model.flow:
                middle = np.exp((np.log(u) + np.log(down)) / 2)
            elif u == 1:
                middle = 0.9999
            else:
                middle = 1 / (np.exp((np.log((1 - u) / u) + np.log((1 - down) / down)) / 2) + 1)
            there = middle / u * y + (1 - middle / u) * D
            D, D_u = model.both(there, middle)
            D = D_u if cfg_pp else D
            y = y + (there - D) / middle * (down - u) if kind == "dpm_2" else down / u * y + (1 - down / u) * D
            if eta > 0:
                y = gain * y + s_noise * up * noise()
        y = y + a_next * guide if cfg_pp else y
    return y


def heun_pp(y: Array, levels: Array, model: Model, noise: Noise) -> Array:
    end, first = levels[-1], levels[0]
    for i, (u, u_next) in enumerate(itertools.pairwise(levels)):
        d, h = (y - model(y, u)) / u, u_next - u
        if u_next == end:
            y = y + h * d
            continue
        y_1 = y + h * d
        d_1 = (y_1 - model(y_1, u_next)) / u_next
        if levels[i + 2] == end:
            share = u_next / (2 * first)
            y = y + h * ((1 - share) * d + share * d_1)
            continue
        u_2 = levels[i + 2]
        y_2 = y_1 + d_1 * (u_2 - u_next)
        d_2 = (y_2 - model(y_2, u_2)) / u_2
        b_1, b_2 = u_next / (3 * first), u_2 / (3 * first)
        y = y + h * ((1 - b_1 - b_2) * d + b_1 * d_1 + b_2 * d_2)
    return y


def gradient_estimation(
    y: Array, levels: Array, model: Model, noise: Noise, gamma: float, cfg_pp: bool = False
) -> Array:
    last = None
    for u, u_next in itertools.pairwise(levels):
        D, D_u = model.both(y, u)
        d, h = (y - (D_u if cfg_pp else D)) / u, u_next - u
        if u_next == 0:
            y = D
        else:
            y = D + d * u_next if cfg_pp else y + d * h
            y = y if last is None else y + (gamma - 1) * (d - last) * h
        last = d
    return y


def res_multistep(
    y: Array, levels: Array, model: Model, noise: Noise, eta: float, s_noise: float = 1.0, cfg_pp: bool = False
) -> Array:
    past: Array | None = None
    reached = u_before = np.nan
    for u, u_next in itertools.pairwise(levels):
        D, D_u = model.both(y, u)
        down, up = ancestral(u, u_next, eta) if eta else (u_next, 0.0)
        base = D_u if cfg_pp else D
        if down == 0 or past is None:
            y = D + (y - base) / u * down
        else:
            h, c_2 = np.log(u / down), np.log(reached / u_before) / np.log(u / down)
            phi_1 = (1 - np.exp(-h)) / h
            phi_2 = (1 - phi_1) / h
            y = y + D - D_u if cfg_pp else y
            y = np.exp(-h) * y + h * ((phi_1 - phi_2 / c_2) * base + phi_2 / c_2 * past)
        if u_next > 0 and eta:
            y = y + s_noise * up * noise()
        past, reached, u_before = base, down, u
    return y


def exp_heun(y: Array, levels: Array, model: Model, noise: Noise, eta: float, weights: str) -> Array:
    """SEEDS-2 at r = 1, in log-SNR; on flow schedules that of the schedule."""
    for u, u_next in itertools.pairwise(levels):
        D = model(y, u)
        if u_next == 0:
            y = D
            continue
        a, a_next = (1 - u, 1 - u_next) if model.flow else (1.0, 1.0)
        h = np.log(a_next / u_next) - np.log(a / u)
        g, z = h * (1 + eta), noise() if eta else 0.0
        std = u_next * np.sqrt(1 - np.exp(-2 * h * eta))
        kept = u_next / u * np.exp(-h * eta) * y
        D_2 = model(kept - a_next * np.expm1(-g) * D + std * z, u_next)
        if weights == "phi_1":
            y = kept - a_next * np.expm1(-g) * (D + D_2) / 2 + std * z
        else:
            b_2 = (np.expm1(-g) + g) / -g
            y = kept - a_next * ((np.expm1(-g) - b_2) * D + b_2 * D_2) + std * z
    return y


def dpm_fast(
    y: Array, levels: Array, model: Model, noise: Noise, nfe: int, eta: float = 0.0, s_noise: float = 1.0
) -> Array:
    """DPM-Solver of orders 3, ..., 3 and the rest, r_1 = 1/3 and r_2 = 2/3, from the first level to the last.

    With eta each step goes to a lower level, but not below the last, and noise is added.
    """
    nodes = np.linspace(-np.log(levels[0]), -np.log(levels[-1]), nfe // 3 + 2)
    orders = [3] * (nfe // 3 - 1) + [2, 1] if nfe % 3 == 0 else [3] * (nfe // 3) + [nfe % 3]
    for order, s, end in zip(orders, nodes[:-1], nodes[1:], strict=True):
        t = -np.log(max(ancestral(np.exp(-s), np.exp(-end), eta)[0], np.exp(-nodes[-1])))
        h = t - s
        eps = (y - model(y, np.exp(-s))) / np.exp(-s)

        def stage(r: float, more: Array | float) -> Array:
            """eps at s + r h, of y - sigma (expm1(r h) eps + more)."""
            sigma = np.exp(-(s + r * h))  # noqa: B023
            state = y - sigma * (np.expm1(r * h) * eps + more)  # noqa: B023
            return (state - model(state, sigma)) / sigma

        more: Array | float = 0.0
        if order == 2:
            more = np.expm1(h) * (stage(0.5, 0.0) - eps)
        elif order == 3:
            d_1 = stage(1 / 3, 0.0) - eps
            d_2 = stage(2 / 3, 2 * (np.expm1(2 * h / 3) / (2 * h / 3) - 1) * d_1) - eps
            more = 1.5 * (np.expm1(h) / h - 1) * d_2
        y = y - np.exp(-t) * (np.expm1(h) * eps + more)
        if eta and end < nodes[-1]:
            y = y + s_noise * np.sqrt(np.exp(-2 * end) - np.exp(-2 * t)) * noise()
    return y


def restart(y: Array, levels: Array, model: Model, noise: Noise, plan: tuple[Any, ...], s_noise: float = 1.0) -> Array:
    """Heun's method over pairs of levels, noise where a pair begins above the last one's end [Xu 2023; A1111]."""
    at = {int(np.argmin(abs(levels - low))): (steps, times, high) for steps, times, low, high in plan}
    pairs = []
    for i, pair in enumerate(itertools.pairwise(levels)):
        pairs.append(pair)
        if i + 1 in at:
            steps, times, high = at[i + 1]
            ends = levels[int(np.argmin(abs(levels - high)))], levels[i + 1]
            ramp = np.linspace(ends[0] ** (1 / 7), ends[1] ** (1 / 7), steps + 1) ** 7
            pairs += list(itertools.pairwise(ramp)) * times
    last = levels[0]
    for u, u_next in pairs:
        if u > last * (1 + 1e-9):
            y = y + s_noise * np.sqrt(u**2 - last**2) * noise()
        d, h = (y - model(y, u)) / u, u_next - u
        if u_next == 0:
            y = y + h * d
        else:
            y_2 = y + h * d
            y = y + h * (d + (y_2 - model(y_2, u_next)) / u_next) / 2
        last = u_next
    return y


def dpmpp_2m_cfg_pp(y: Array, levels: Array, model: Model, noise: Noise) -> Array:
    past, h_last = None, 0.0
    for u, u_next in itertools.pairwise(levels):
        D, D_u = model.both(y, u)
        if u_next == 0:
            y = D
            continue
        h = np.log(u / u_next)
        new = D + np.exp(-h) * (y - D_u)
        y = new if past is None else new + (1 - np.exp(-h)) * h / (2 * h_last) * (D - past)
        past, h_last = D_u, h
    return y
