"""The loop of ComfyUI's sa_solver and sa_solver_pece, restated in numpy: predict, evaluate, correct, evaluate again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sde_loops import Array, Ask, Levels, Noise

NODES, WEIGHTS = np.polynomial.legendre.leggauss(40)


def lagrange(nodes: Array, s: float, t: float, tau: float) -> Array:
    """int_s^t (1 + tau^2) exp(-(1 + tau^2) (t - l)) L_j(l) dl by Gauss' rule, L_j Lagrange's polynomials of `nodes`."""
    lam = (s + t) / 2 + (t - s) / 2 * NODES
    weight = (t - s) / 2 * WEIGHTS * (1 + tau**2) * np.exp(-(1 + tau**2) * (t - lam))
    basis = [np.prod([(lam - b) / (a - b) for b in np.delete(nodes, j)], axis=0) for j, a in enumerate(nodes)]
    return np.array([(weight * line).sum() for line in basis])


def adams(nodes: Array, s: float, t: float, tau: float, simple: bool, corrects: bool) -> Array:
    """The weights of the estimates at `nodes`, over alpha_t; simple: those that two estimates have instead."""
    if not (simple and len(nodes) == 2):
        return lagrange(nodes, s, t, tau)
    g, whole = (1 + tau**2) * (t - s), -np.expm1(-(1 + tau**2) * (t - s))
    if corrects:
        return np.array([whole - g / 2, g / 2])  # the last level, this one
    earlier = g * (t - s) / 2 / (nodes[0] - s)
    return np.array([earlier, whole - earlier])


def sa_solver(
    x: Array,
    at: Levels,
    ask: Ask,
    noise: Noise,
    orders: tuple[int, int],
    tau_of: Callable[[float], float],
    s_noise: float,
    pece: bool,
    simple: bool,
) -> Array:
    """orders: of predictor and corrector; tau_of: tau where a step ends, of sigma (flow) or sigma / alpha."""
    n, lam, data = len(at.lam) - 1, at.lam, at.sigma[-1] == 0
    predicted, added, tau, h = x, 0 * x, 0.0, 0.0
    estimates: list[Array] = []
    for i in range(n):
        estimates.append(ask(predicted, at.alpha[i], at.sigma[i]))
        p, c = min(orders[0], i + 1), min(orders[1], i + 1)
        if i == 0 or (at.sigma[i + 1] == 0 and not pece):
            c = 0
        if data:
            p, c = min(p, n - 1 - i), min(c, n - i)
        if c == 0:
            x = predicted
        else:
            weights = adams(lam[i - c + 1 : i + 1], lam[i - 1], lam[i], tau, simple, corrects=True)
            x = at.sigma[i] / at.sigma[i - 1] * np.exp(-(tau**2) * h) * x + added
            x = x + at.alpha[i] * sum(w * m for w, m in zip(weights, estimates[-c:], strict=True))
            if pece:
                estimates[-1] = ask(x, at.alpha[i], at.sigma[i])
        if at.sigma[i + 1] == 0:
            return estimates[-1]
        tau = tau_of(float(at.sigma[i + 1] if at.flow else at.sigma[i + 1] / at.alpha[i + 1]))
        weights = adams(lam[i - p + 1 : i + 1], lam[i], lam[i + 1], tau, simple, corrects=False)
        h = lam[i + 1] - lam[i]
        added = at.sigma[i + 1] * np.sqrt(-np.expm1(-2 * tau**2 * h)) * s_noise * noise() if tau * s_noise else 0 * x
        predicted = at.sigma[i + 1] / at.sigma[i] * np.exp(-(tau**2) * h) * x + added
        predicted = predicted + at.alpha[i + 1] * sum(w * m for w, m in zip(weights, estimates[-p:], strict=True))
    return predicted
