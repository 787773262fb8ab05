"""Independent float64 executions and closed forms that the tests hold programs against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers.schedulers.scheduling_ddpm as diffusers_ddpm
import numpy as np
import numpy.typing as npt
import torch
from diffusers import DDIMScheduler

from ulam import Program, schedules

Array = npt.NDArray[np.float64]


def execute(
    program: Program,
    x: Array,
    output: Callable[[int, Array], Array],
    noise: Callable[[int], Array],
    unguided: Callable[[int, Array], Array] | None = None,
) -> Array:
    """The state after every row, [rows, *x.shape], by DESIGN's row formula term by term, in float64.

    output(row, c_in x) is what the network returns: like x, or with twice x's leading axis on learned rows. All of x is
    one chain to the rows that need a quantile or norms; nothing is blended. unguided: the unguided branch's output, by
    default `output`.
    """
    states, R = [], program.registers
    registers = [x, *(np.zeros_like(x) for _ in range(R - 1))]
    for row in range(len(program)):
        m = v = np.zeros_like(x)
        if program.evaluates[row]:
            m = output(row, program.c_in[row] * registers[0])
            if len(m) == 2 * len(x):
                m, v = m[: len(x)], m[len(x) :]
        if register := int(program.unguided[row]):
            registers[register] = m if unguided is None else unguided(row, program.c_in[row] * registers[0])
        D, lo, hi = program.kx[row] * registers[0] + program.km[row] * m, program.lo[row], program.hi[row]
        z = noise(row)
        if program.threshold[row]:
            s = np.clip(np.quantile(abs(D), lo), 1, hi)
            D = np.clip(D, -s, s) / s
        elif program.normalise[row]:
            g = (z**2).sum() / (D**2).sum()
            D, z = g * D, np.sqrt(g) * z
        else:
            D = np.clip(D, lo, hi)
        if program.learned[row]:
            z = np.exp(program.lv_m[row] * v + program.lv_b[row]) * z
        terms = [*registers, D, m, z]
        new = [sum(a * term for a, term in zip(program.A[row, j], terms, strict=True)) for j in range(R)]
        registers = [n if w else r for n, w, r in zip(new, program.writes[row], registers, strict=True)]
        states.append(registers[0])
    return np.array(states)


def gaussian_output(predicts: str, alpha: float, sigma: float, mean: float, std: float) -> tuple[float, float]:
    """(slope, offset) of the ideal network for data N(mean, std^2): m = slope x + offset at (alpha, sigma).

    x ~ N(alpha mean, alpha^2 std^2 + sigma^2), so E[x_0 | x] and E[eps | x] are the usual linear regressions,
    and the other predictions are their definitions.
    """
    power = alpha**2 * std**2 + sigma**2
    eps = np.array([sigma / power, -sigma * alpha * mean / power])
    x0 = np.array([alpha * std**2 / power, sigma**2 * mean / power])
    outputs = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "score": -eps / sigma, "flow": eps - x0}
    slope, offset = outputs[predicts]
    return float(slope), float(offset)


def affine_rows(program: Program, levels: tuple[Array, Array], mean: float, std: float) -> list[tuple[float, ...]]:
    """Each row as (gain, offset, noise): x' = gain x + offset + noise z, under the ideal network.

    For unclipped one-register programs whose network outputs are affine in x (`gaussian_output`).
    """
    rows = []
    for row, (alpha, sigma) in enumerate(zip(*levels, strict=True)):
        slope, offset = gaussian_output(program.predicts, alpha, sigma, mean, std)
        on_x, on_D, on_m, on_z = program.A[row, 0]
        kx, km = program.kx[row], program.km[row]
        gain = on_x + on_D * (kx + km * slope) + on_m * slope
        rows.append((gain, (on_D * km + on_m) * offset, on_z))
    return rows


def in_float64(scheduler: Any, schedule: schedules.VariancePreserving) -> Any:
    """A diffusers scheduler on our own alphas_cumprod, in float64."""
    scheduler.alphas_cumprod = torch.from_numpy(schedule.alphas_cumprod.copy())
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def run_diffusers(scheduler: Any, x: Array, outputs: Array, noises: Array, monkeypatch: Any, **step: Any) -> Array:
    """The state after every step of a diffusers scheduler, from recorded outputs and noises."""
    states = []
    for row, t in enumerate(scheduler.timesteps):
        noise = torch.from_numpy(noises[row])[None]
        if isinstance(scheduler, DDIMScheduler):
            step["variance_noise"] = noise
        else:
            monkeypatch.setattr(diffusers_ddpm, "randn_tensor", lambda *_, z=noise, **__: z)
        x_t, m = torch.from_numpy(x)[None], torch.from_numpy(outputs[row])[None]
        x = scheduler.step(m, t, x_t, **step).prev_sample[0].numpy()
        states.append(x)
    return np.array(states)


def impulses(n: int, noisy_end: bool = False) -> tuple[Array, Array, Array]:
    """x [K, 1], outputs [n, K, 1], noises [n, K, 1] as unit vectors, K = 1 + 2n; no noise on the last row."""
    unit = np.eye(1 + 2 * n)[:, :, None]
    noises = unit[1 + n :].copy()
    noises[-1] *= noisy_end
    return unit[0], unit[1 : 1 + n], noises
