"""Markov chains as their papers write them, in NumPy's float64, one chain at a time, with the normals of noise-v1."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ulam import noise
from ulam.noise import Purpose

Array = npt.NDArray[np.float64]


def small_run(
    target: Any, temperature: float, scale: Array | float
) -> tuple[torch.Tensor, dict[str, Any], dict[str, Any]]:
    """First states, settings of a sampler, arguments of a run; an `Oracle` of seed 5 makes each of its six chains."""
    start = target.sample(6, seed=3)
    settings = {"temperature": temperature, "preconditioner": np.ones(start.shape[1:]) * scale**2}
    options = {"x_init": start, "dtype": torch.float64, "steps": 8, "chains": 6, "seed": 5, "progress": False}
    return start, settings, options


class Oracle:
    """One chain of a density with a formula: its normals, its Metropolis tests, and what its samplers do."""

    def __init__(self, target: Any, chain: int, seed: int, temperature: float = 1.0, scale: Array | float = 1.0):
        self.target, self.chain, self.seed = target, chain, seed
        self.T, self.L = temperature, scale
        self.accepted: list[bool] = []

    def energy(self, x: Array) -> float:
        return -float(self.target.log_prob(torch.from_numpy(x)[None])[0])

    def score(self, x: Array) -> Array:
        return self.target.score(torch.from_numpy(x)[None])[0].numpy()

    def z(self, purpose: Purpose, step: int, shape: tuple[int, ...]) -> Array:
        return noise.normal_for(purpose, shape, seed=self.seed, chains=[self.chain], row=step)[0].double().numpy()

    def accepts(self, step: int, log_ratio: float) -> bool:
        """Whether u < exp(log_ratio), by the radius sqrt(-2 ln u) of the first two normals of the test."""
        radius = np.linalg.norm(self.z(noise.ACCEPTANCE, step, (2,)))
        self.accepted.append(bool(radius**2 > -2 * log_ratio))
        return self.accepted[-1]

    def leapfrog(self, x: Array, v: Array, h: float) -> tuple[Array, Array]:
        half = v + h / 2 * self.L * self.score(x)
        x = x + h * self.L * half
        return x, half + h / 2 * self.L * self.score(x)

    def first_velocity(self, shape: tuple[int, ...]) -> Array:
        return np.sqrt(self.T) * self.z(noise.FIRST_VELOCITY, 0, shape)

    def ghmc(self, x: Array, steps: int, h: float, leapfrog: int, friction: float) -> tuple[Array, Array]:
        v, keep = self.first_velocity(x.shape), np.exp(-friction * h * leapfrog)
        for step in range(steps):
            v = keep * v + np.sqrt(self.T * (1 - keep**2)) * self.z(noise.ROW, step, x.shape)
            y, w = x, v
            for _ in range(leapfrog):
                y, w = self.leapfrog(y, w, h)
            change = self.energy(y) + w @ w / 2 - self.energy(x) - v @ v / 2
            x, v = (y, w) if self.accepts(step, -change / self.T) else (x, -v)
        return x, v

    def kick(self, x: Array, u: Array, time: float) -> tuple[Array, float]:
        """The isokinetic kick by hyperbolic functions, and by how much the kinetic energy grows."""
        s = self.L * self.score(x) / self.T
        size = float(np.linalg.norm(s))
        delta, e = time * size / (len(x) - 1), s / size
        growth = np.cosh(delta) + (e @ u) * np.sinh(delta)
        turned = (u + e * (np.sinh(delta) + (e @ u) * (np.cosh(delta) - 1))) / growth
        return turned, (len(x) - 1) * float(np.log(growth))

    def isokinetic(self, x: Array, u: Array, h: float) -> tuple[Array, Array, float]:
        u, first = self.kick(x, u, h / 2)
        x = x + h * self.L * u
        u, second = self.kick(x, u, h / 2)
        return x, u, first + second

    def mclmc(self, x: Array, steps: int, h: float, length: float) -> tuple[Array, Array]:
        u = self.first_velocity(x.shape)
        u /= np.linalg.norm(u)
        nu = np.sqrt((np.exp(2 * h / length) - 1) / len(x))
        for step in range(steps):
            x, u, _ = self.isokinetic(x, u, h)
            u = u + nu * self.z(noise.ROW, step, x.shape)
            u /= np.linalg.norm(u)
        return x, u

    def mams(self, x: Array, steps: int, h: float, leapfrog: int, jitter: float) -> Array:
        for step in range(steps):
            z = self.z(noise.MAMS_PATH, step, (3,))
            here, u, growth = h * (1 + jitter * z[0] / np.linalg.norm(z)), self.z(noise.ROW, step, x.shape), 0.0
            y, u = x, u / np.linalg.norm(u)
            for _ in range(leapfrog):
                y, u, more = self.isokinetic(y, u, here)
                growth += more
            x = y if self.accepts(step, (self.energy(x) - self.energy(y)) / self.T - growth) else x
        return x

    def malt(self, x: Array, steps: int, h: float, leapfrog: int, friction: float) -> Array:
        keep = np.exp(-friction * h)
        for step in range(steps):
            v = np.sqrt(self.T) * self.z(noise.ROW, step, x.shape)
            between = self.z(noise.MALT_PATH, step, (leapfrog, *x.shape))
            y, change = x, 0.0
            for leap in range(leapfrog):
                start = self.energy(y) + v @ v / 2
                y, v = self.leapfrog(y, v, h)
                change += self.energy(y) + v @ v / 2 - start
                v = keep * v + np.sqrt(self.T * (1 - keep**2)) * between[leap]
            x = y if self.accepts(step, -change / self.T) else x
        return x
