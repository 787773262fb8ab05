"""Exponential integrators in log-SNR: what DPM-Solver, DEIS and UniPC have in common.

Between two levels s and t, with h = lambda_t - lambda_s, lambda = log(alpha / sigma) and tau = (lambda - lambda_s) / h,
the probability-flow ODE is solved exactly but for the integral of the network's estimate m [Lu 2022a, prop. 3.1;
Lu 2022b, prop. 4.1]:

    data form (m = D):     x_t = (sigma_t / sigma_s) x_s + alpha_t int_0^1  h exp(-h (1 - tau)) D(tau) dtau
    noise form (m = eps):  x_t = (alpha_t / alpha_s) x_s - sigma_t int_0^1  h exp( h (1 - tau)) eps(tau) dtau

With m constant both are alpha_t D + sigma_t eps (DDIM). Higher orders add `scale` sum_j v_j (m_j - m_0), estimates at
other levels tau_j whose weights v come from the moments of exp(-g (1 - tau)), g = h (data form) or -h (noise form).
The reverse SDE has g = 2h in the data form, twice the integral in the noise form, and noise [Lu 2022b]. With eta times
as much noise it has g = (1 + eta) h, or 1 + eta times the integral, and eta = 0 is the ODE [Xue 2023, eta = tau^2].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..programs.builder import ProgramBuilder
from ..programs.program import Flags
from ..schedules import Array
from .grid import Grid

Terms: TypeAlias = dict[str, Array | float]
Integers: TypeAlias = npt.NDArray[np.int_]
Target: TypeAlias = Callable[[int, float], Array]
EVERY = slice(0, -1), slice(-1, None)


def moments(g: float, count: int) -> Array:
    """[count] numbers c_k = int_0^1 g exp(-g (1 - tau)) tau^k dtau, k = 0, 1, ...; g may be +inf (then all are 1).

    c_k = g / (k + 1) M(1, k + 2, -g) with Kummer's function M, so small g loses no digits. c_0 = 1 - exp(-g).
    """
    if np.isposinf(g):
        return np.ones(count)
    k = np.arange(count)
    from scipy.special import hyp1f1  # slow to import, and few samplers come here

    return np.asarray(g / (k + 1) * hyp1f1(1, k + 2, -g), dtype=np.float64)


def weights(target: Array, nodes: Array) -> Array:
    """v, shaped like `nodes`, with sum_j v_j nodes_j^k = target_k for k = 1, 2, ... up to the number of nodes.

    A node at -inf (an estimate at zero terminal SNR) gets no weight, as in the limit.
    """
    v, finite = np.zeros_like(nodes), np.isfinite(nodes)
    k = np.arange(1, finite.sum() + 1)
    v[finite] = np.linalg.solve(nodes[finite] ** k[:, None], target[: len(k)])
    return v


def combined(*parts: tuple[Array | float, Mapping[str, Array | float]]) -> Terms:
    """The sum of factor times terms over `parts`."""
    total: Terms = {}
    for factor, terms in parts:
        for name, value in terms.items():
            total[name] = total.get(name, 0.0) + factor * value
    return total


@dataclass(frozen=True)
class Form:
    """The solver's unknown: D (data) or eps (noise); the ODE (eta = 0) or a reverse SDE.

    eta: a number or one a step. s_noise: a factor on the noise. clipped: whether D is clipped. A clipped D goes into
    the history itself, or as the eps = (x - alpha D) / sigma that goes with it (as in diffusers).
    """

    data: bool
    eta: Array | float = 0.0
    clipped: bool = False
    s_noise: float = 1.0

    def estimate(self, alpha: Array, sigma: Array) -> Terms:
        """m, the D or eps of a row at (alpha, sigma), in terms that a `ProgramBuilder` takes."""
        if self.data:
            return {"D": np.ones_like(sigma)}
        return {"x": 1 / sigma, "D": -alpha / sigma} if self.clipped else {"eps": np.ones_like(sigma)}

    def steps(self, grid: Grid, start: Integers, stop: Integers) -> Steps:
        """The steps from levels `start` to levels `stop`, indices [n]."""
        alpha_t, sigma_t, h = grid.alphas[stop], grid.sigmas[stop], grid.log_snr[stop] - grid.log_snr[start]
        far, eta = np.isinf(h), np.broadcast_to(self.eta, h.shape)
        if self.data:
            fall = eta * np.where(eta > 0, h, 0.0)
            along, std = sigma_t * np.exp(-fall), sigma_t * np.sqrt(-np.expm1(-2 * fall))
        else:  # from pure noise or to the data: the limits of the data form
            near = np.where(far | (eta == 0), 0.0, h)
            along = np.where(far & (eta > 0), 0.0, sigma_t * (1 - eta * np.expm1(near)))
            std = sigma_t * np.where(far, eta > 0, np.sqrt(eta * np.expm1(2 * near)))
        return Steps(
            form=self,
            alpha_s=grid.alphas[start],
            sigma_s=grid.sigmas[start],
            alpha_t=alpha_t,
            along=along,
            std=self.s_noise * std,
            h=h,
            g=(1 + eta) * h if self.data else -h,
            scale=alpha_t if self.data else sigma_t * (1 + eta),
        )


@dataclass(frozen=True)
class Steps:
    """x_t = alpha_t D + along eps + std z + scale sum_j v_j (m_j - m_0), all [n]; v from moments at g."""

    form: Form
    alpha_s: Array
    sigma_s: Array
    alpha_t: Array
    along: Array
    std: Array
    h: Array
    g: Array
    scale: Array

    @property
    def noiseless(self) -> Terms:
        """alpha_t D + along eps, with eps from x and D where D itself is at hand (kept as history, or clipped)."""
        if self.form.data or self.form.clipped:
            on_x = self.along / self.sigma_s
            return {"x": on_x, "D": self.alpha_t - on_x * self.alpha_s}
        return {"D": self.alpha_t, "eps": self.along}

    @property
    def first_order(self) -> Terms:
        """`noiseless` with the noise of an SDE."""
        return {**self.noiseless, "z": self.std}

    @property
    def exact(self) -> tuple[Array, Array]:
        """(a, b c_0) of `noiseless` as a x + b c_0 m_0, for an m_0 that does not belong to x; 0 where a is infinite."""
        if self.form.data:
            a = self.along / self.sigma_s
            return a, self.alpha_t - a * self.alpha_s
        a = np.divide(self.alpha_t, self.alpha_s, out=np.zeros_like(self.alpha_s), where=self.alpha_s > 0)
        return a, self.along - a * self.sigma_s

    @property
    def estimate(self) -> Terms:
        """m_0, the network's estimate at the start of the step."""
        return self.form.estimate(self.alpha_s, self.sigma_s)


def multistep_orders(grid: Grid, order: int, lower_order_final: bool, euler_at_final: bool) -> list[int]:
    """The order of every row: 1, 2, ... at the start and, as diffusers' DPM-Solver does it, at the end.

    lower_order_final: the last two rows have at most orders 2 and 1, on fewer than 15 rows. The last row has order 1
    with `euler_at_final` and where it ends at the data.
    """
    orders = np.minimum(np.arange(len(grid)) + 1, order)
    if lower_order_final and len(grid) < 15:
        orders[-2:] = np.minimum(orders[-2:], [2, 1][-len(orders) :])
    if euler_at_final or grid.sigmas[-1] == 0:
        orders[-1] = 1
    return [int(order) for order in orders]


def multistep(builder: ProgramBuilder, grid: Grid, form: Form, orders: Sequence[int], target: Target) -> None:
    """Rows x <- first order + scale sum_j v_j (m_j - m_0) on the last `orders[i]` estimates; r1, r2 keep past ones.

    target(order, g): the order - 1 numbers that sum_j v_j tau_j^k must equal.
    """
    n, past = len(grid), builder.registers - 1
    steps, v = form.steps(grid, np.arange(n), np.arange(1, n + 1)), np.zeros((n, past))
    for i, order in enumerate(orders):
        if order > 1:
            back = grid.log_snr[i - order + 1 : i][::-1]
            v[i, : order - 1] = weights(target(order, steps.g[i]), (back - grid.log_snr[i]) / steps.h[i])
    v *= steps.scale[:, None]
    x = combined((1.0, steps.first_order), (-v.sum(axis=1), steps.estimate))
    kept: dict[str, Terms] = {f"r{j}": {f"r{j - 1}": 1.0} if j > 1 else steps.estimate for j in range(1, past + 1)}
    append(builder, grid, {**x, **{f"r{j + 1}": v[:, j] for j in range(past)}}, kept)


def predicted_and_corrected(
    steps: Steps, v: Array, w: Array, omega: Array, corrects: Flags, again: bool = False
) -> tuple[Terms, dict[str, Terms]]:
    """(x, kept) of rows for `append`: each corrects the last step's prediction, and predicts from what comes of it.

        predictor  x_t   = a x^c_s + b (c_0 m_s + sum_j v_j (m_j - m_s)) + std z
        corrector  x^c_t = a x^c_s + b (c_0 m_s + sum_j w_j (m_j - m_s) + omega (m_t - m_s)) + std z

    with the same z. v, w: [n, past], with b in them, as omega [n]; corrects: [n] whether the next row corrects what a
    row predicts. r1 keeps the corrector's part that is known before m_t is, if any row is corrected; the registers
    behind it keep earlier m. again: x has been corrected already, by a row of its own.
    """
    # The row's own state is x, or, where it corrects the last step, r1 + u m.
    state_known, u = np.append(False, corrects[:-1]), np.append(0.0, omega[:-1])
    if again:
        state_known, u = np.zeros_like(state_known), np.zeros_like(u)
    a, b_c0 = (np.where(state_known, part, 0.0) for part in steps.exact)
    first = combined((1.0 - state_known, steps.noiseless), (a * u + b_c0, steps.estimate))
    if state_known.any():
        first["r1"] = a
    earlier = [f"r{j + 1 + corrects.any()}" for j in range(v.shape[1])]
    kept: dict[str, Terms] = {name: {earlier[j - 1]: 1.0} if j else steps.estimate for j, name in enumerate(earlier)}
    noise: Terms = {"z": steps.std}
    x = combined((1.0, first), (1.0, dict(zip(earlier, v.T, strict=True))), (-v.sum(axis=1), steps.estimate))
    if corrects.any():
        known = dict(zip(earlier, w.T, strict=True))
        kept["r1"] = combined((1.0, first), (1.0, known), (-w.sum(axis=1) - omega, steps.estimate)) | noise
    return x | noise, kept


def append(
    builder: ProgramBuilder, grid: Grid, x: Terms, kept: Mapping[str, Terms], rows: Sequence[slice] = EVERY
) -> None:
    """One row a noise level: all update x, all but the last update the registers in `kept`; coefficients [n].

    rows: which of them, the last in a slice that is open at its end.
    """
    for some in rows:
        times = grid.times[some]
        if len(times) == 0:
            continue
        updates: dict[str, Any] = {
            name: {term: np.broadcast_to(value, len(grid))[some] for term, value in terms.items()}
            for name, terms in {"x": x, **(kept if some.stop else {})}.items()
        }
        builder.rows(times, levels=(grid.alphas[:-1][some], grid.sigmas[:-1][some]), **updates)
