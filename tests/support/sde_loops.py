"""The loops of k-diffusion's and ComfyUI's samplers of reverse SDEs, restated in numpy, and the laws they tend to.

A loop gets the state x, the levels, a function that asks for D and a source of normals, and returns the last state. All
is said in alpha, sigma and lambda = log(alpha / sigma), as ComfyUI says it; with alpha = 1 that is k-diffusion's form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.integrate import quad

from law_cases import end_law
from ode_cases import recorded
from oracles import execute
from ulam import Program
from ulam.samplers.grid import Grid, GridSampler
from ulam.samplers.noise_levels import levels_at
from ulam.schedules import FlowMatching, Schedule

Array = npt.NDArray[np.float64]
Ask = Callable[[Array, float, float], Array]  # D of a state at (alpha, sigma)
Noise = Callable[[], Array]


class Levels:
    """alpha, sigma and lambda of the grid, and of a lambda between its levels."""

    def __init__(self, grid: Grid, schedule: Schedule) -> None:
        self.alpha, self.sigma, self.schedule = grid.alphas, grid.sigmas, schedule
        with np.errstate(divide="ignore"):
            self.lam = np.log(grid.alphas / grid.sigmas)
        self.flow = isinstance(schedule, FlowMatching)

    def at(self, lam: float) -> tuple[float, float]:
        u = np.exp(-lam)
        alpha, sigma = levels_at(self.schedule, u / (1 + u) if self.flow else u)
        return float(alpha), float(sigma)


def responses(
    sampler: GridSampler, schedule: Schedule, predicts: str, loop: Callable[..., Array], **arguments: Any
) -> tuple[Array, Array, Program]:
    """The last state's coefficients on x_T, every output and every noise, ours and the loop's."""
    grid, program = sampler.grid(schedule), sampler.program(schedule, predicts)
    adds = (program.A[:, :, -1] != 0).any(axis=(1))
    nfe, draws = program.nfe, int(adds.sum())
    unit = np.eye(1 + nfe + draws)[:, :, None]
    outputs, noises = unit[1 : 1 + nfe], unit[1 + nfe :]
    asked, drawn = iter(outputs), iter(noises)

    def ask(x: Array, alpha: float, sigma: float) -> Array:
        m = next(asked)
        return {
            "x0": m,
            "eps": (x - sigma * m) / alpha,
            "v": (alpha * x - sigma * m) / (alpha**2 + sigma**2),
            "flow": (x - sigma * m) / (alpha + sigma),
        }[predicts]

    theirs = loop(unit[0], Levels(grid, schedule), ask, lambda: next(drawn), **arguments)
    assert next(asked, None) is None and next(drawn, None) is None  # it took all of them
    evaluation, draw = np.cumsum(program.evaluates) - 1, np.cumsum(adds) - 1
    mine = execute(
        program,
        unit[0],
        lambda row, _: outputs[evaluation[row]],
        lambda row: noises[draw[row]] if adds[row] else np.zeros_like(unit[0]),
    )
    return mine[-1], theirs, program


def two_m_sde(x: Array, at: Levels, ask: Ask, noise: Noise, eta: float, s_noise: float, solver_type: str) -> Array:
    """dpmpp_2m_sde and dpmpp_2m_sde_heun."""
    last, way = None, 0.0
    for i in range(len(at.lam) - 1):
        D = ask(x, at.alpha[i], at.sigma[i])
        if at.sigma[i + 1] == 0:
            return D
        h = at.lam[i + 1] - at.lam[i]
        g = h * (1 + eta)
        new = at.sigma[i + 1] / at.sigma[i] * np.exp(-eta * h) * x + at.alpha[i + 1] * (1 - np.exp(-g)) * D
        if last is not None:
            factor = (1 - np.exp(-g)) / 2 if solver_type == "midpoint" else 1 - (1 - np.exp(-g)) / g
            new = new + at.alpha[i + 1] * factor * h / way * (D - last)
        x = new + (at.sigma[i + 1] * np.sqrt(1 - np.exp(-2 * eta * h)) * s_noise * noise() if eta * s_noise else 0)
        last, way = D, h
    return x


def three_m_sde(x: Array, at: Levels, ask: Ask, noise: Noise, eta: float, s_noise: float) -> Array:
    """dpmpp_3m_sde: phi_2 = 1 + (exp(-g) - 1) / g weighs the first difference, -phi_3 = 1/2 - phi_2 / g the second."""
    estimates: list[Array] = []
    ways: list[float] = []
    for i in range(len(at.lam) - 1):
        estimates.insert(0, ask(x, at.alpha[i], at.sigma[i]))
        if at.sigma[i + 1] == 0:
            return estimates[0]
        h = at.lam[i + 1] - at.lam[i]
        g = h * (1 + eta)
        phi_2 = 1 + np.expm1(-g) / g
        rise = -np.expm1(-g) * estimates[0]
        if i >= 1:
            first = (estimates[0] - estimates[1]) * h / ways[0]
            if i >= 2:
                second = (estimates[1] - estimates[2]) * h / ways[1]
                span = (ways[0] + ways[1]) / h
                rise = rise + phi_2 * (first - second) * ways[0] / (h * span)
                rise = rise - (phi_2 / g - 0.5) * (first - second) / span
            rise = rise + phi_2 * first
        x = at.sigma[i + 1] / at.sigma[i] * np.exp(-eta * h) * x + at.alpha[i + 1] * rise
        x = x + (at.sigma[i + 1] * np.sqrt(-np.expm1(-2 * eta * h)) * s_noise * noise() if eta * s_noise else 0)
        ways.insert(0, h)
    return x


def dpmpp_sde(x: Array, at: Levels, ask: Ask, noise: Noise, eta: float, s_noise: float, r: float) -> Array:
    """Two stages; the normals are increments of one Brownian path in sigma / alpha, or on flow schedules in sigma."""

    def ancestral(u: float, u_next: float) -> tuple[float, float]:
        up = min(u_next, eta * np.sqrt(u_next**2 * (u**2 - u_next**2) / u**2))
        return np.sqrt(u_next**2 - up**2), up

    for i in range(len(at.lam) - 1):
        alpha, sigma = at.alpha[i], at.sigma[i]
        D = ask(x, alpha, sigma)
        if at.sigma[i + 1] == 0:
            return D
        middle = at.at(at.lam[i] + r * (at.lam[i + 1] - at.lam[i]))
        u, u_m, u_t = sigma / alpha, middle[1] / middle[0], at.sigma[i + 1] / at.alpha[i + 1]
        path = (sigma, middle[1], at.sigma[i + 1]) if at.flow else (u, u_m, u_t)
        noisy = eta * s_noise > 0
        pieces = [np.sqrt(path[j] - path[j + 1]) * noise() if noisy else 0 * x for j in (0,)]
        down, up = ancestral(u, u_m)
        y = middle[0] * (
            down / u * x / alpha + (1 - down / u) * D + s_noise * up * pieces[0] / np.sqrt(path[0] - path[1])
        )
        D_m = ask(y, *middle)
        pieces.append(np.sqrt(path[1] - path[2]) * noise() if noisy else 0 * x)
        down, up = ancestral(u, u_t)
        mixed = (1 - 1 / (2 * r)) * D + D_m / (2 * r)
        increment = sum(pieces) / np.sqrt(path[0] - path[2])
        x = at.alpha[i + 1] * (down / u * x / alpha + (1 - down / u) * mixed + s_noise * up * increment)
    return x


def seeds(
    x: Array, at: Levels, ask: Ask, noise: Noise, eta: float, s_noise: float, places: list[float], solver_type: str
) -> Array:
    """seeds_2 (one place) and seeds_3 (two), and exp_heun_2_x0_sde (place 1, phi_2)."""
    for i in range(len(at.lam) - 1):
        D = ask(x, at.alpha[i], at.sigma[i])
        if at.sigma[i + 1] == 0:
            return D
        h, known, start, common, before = at.lam[i + 1] - at.lam[i], D, x, 0 * x, 0.0
        for place in [*places, 1.0]:
            last = place == 1.0 and before > 0
            alpha, sigma = (at.alpha[i + 1], at.sigma[i + 1]) if last else at.at(at.lam[i] + place * h)
            g = place * h * (1 + eta)
            c_0, c_1 = 1 - np.exp(-g), 1 - (1 - np.exp(-g)) / g
            slope = 0.0 if before == 0 else (c_0 / 2 if solver_type == "phi_1" else c_1) * place / before
            if eta * s_noise:
                way = (place - before) * h * eta
                common = common * np.exp(-way) + (np.sqrt(1 - np.exp(-2 * way)) * noise() if way > 0 else 0)
            x = sigma / at.sigma[i] * np.exp(-place * h * eta) * start + alpha * (c_0 * D + slope * (known - D))
            x = x + sigma * s_noise * common
            if not last:
                known = ask(x, alpha, sigma)
            before = place
    return x


def er_sde(
    x: Array, at: Levels, ask: Ask, noise: Noise, s_noise: float, phi: Callable[[Any], Any], max_stage: int
) -> Array:
    """er_sde, the integrals by 200 terms from the lower end."""
    u, estimates, slopes = at.sigma / at.alpha, [], []
    for i in range(len(u) - 1):
        estimates.append(ask(x, at.alpha[i], at.sigma[i]))
        if u[i + 1] == 0:
            return estimates[-1]
        r, dt = phi(u[i + 1]) / phi(u[i]), u[i + 1] - u[i]
        new = r * x / at.alpha[i] + (1 - r) * estimates[-1]
        if i >= 1:
            slopes.append((estimates[-1] - estimates[-2]) / (u[i] - u[i - 1]))
        if i >= 1 and max_stage >= 2:
            points = u[i + 1] - dt / 200 * np.arange(200)
            new = new + (dt + phi(u[i + 1]) * (-dt / 200 / phi(points)).sum()) * slopes[-1]
            if i >= 2 and max_stage >= 3:
                curve = (slopes[-1] - slopes[-2]) / ((u[i] - u[i - 2]) / 2)
                new = new + (dt**2 / 2 + phi(u[i + 1]) * ((points - u[i]) * -dt / 200 / phi(points)).sum()) * curve
        x = at.alpha[i + 1] * new
        std = np.sqrt(max(u[i + 1] ** 2 - (u[i] * r) ** 2, 0))
        x = x + (at.alpha[i + 1] * std * s_noise * noise() if s_noise and std else 0)
    return x


def conditional_errors(
    sampler: GridSampler, schedule: Schedule, slope: Callable[[float], float], start: float = 2.0
) -> Array:
    """|mean, variance - exact| of the last state from the point alpha start, under the ideal network of N(0.8, 0.25).

    slope(u): d log phi / d log u of the SDE dw = (phi' / phi) (w - D) du + noise that keeps the marginals, w = x /
    alpha and u = sigma / alpha; 1 + eta for the reverse SDE with eta times its strength. It is linear then.
    """
    mean, std = 0.8, 0.5
    grid = sampler.grid(schedule)
    program, levels = recorded(sampler, schedule, "x0")
    got = end_law(program, levels, (mean, std), (float(grid.alphas[0]) * start, 0.0))
    u_s, u_t, alpha = float(grid.ratios[0]), float(grid.ratios[-1]), float(grid.alphas[-1])
    gain = np.exp(-quad(lambda u: slope(u) * u / (std**2 + u**2), u_t, u_s, epsabs=1e-12, epsrel=1e-12, limit=200)[0])
    exact_mean = alpha * (mean + gain * (start - mean))
    exact_variance = alpha**2 * (std**2 + u_t**2 - gain**2 * (std**2 + u_s**2))
    return abs(np.array([got[0] - exact_mean, got[1] ** 2 - exact_variance]))
