"""Random arguments of the Langevin and Metropolis operations, and what two backends make of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bit_comparison import same_bits
from ulam_kernels import densities, mcmc
from ulam_kernels.densities import Density
from ulam_kernels.mcmc import chains, metropolis, steps

Outputs = list[torch.Tensor]


def replace_backends(choose: Callable[[str | None], Any], put: Callable[..., None] = setattr) -> None:
    """Have the operations run on what ``choose`` gives for the name of a backend; ``put`` as ``setattr``."""
    for module in (steps, metropolis, chains):
        put(module, "operations_of", lambda name, *_: choose(name))


class Cases:
    """Everything random comes from one generator."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator)

    def ids(self, chains: int) -> dict[str, torch.Tensor]:
        """Seeds, chains and draws of all sizes; the first draw passes 2^32, where the key changes, after 3 steps."""
        names = ("seed", "chain", "draw")
        found = {name: torch.randint(-(2**62), 2**62, (chains,), generator=self.generator) for name in names}
        found["draw"] = found["draw"].abs() % 2**30 * 16
        found["draw"][:1] = 2**32 - 48
        return found

    def densities(self) -> list[Density]:
        half = self.normal(7, 7)
        full = densities.gaussian(self.normal(7), half @ half.T + torch.eye(7))
        stds = torch.tensor([0.7, 1.0, 0.4])
        return [
            densities.gaussian(self.normal(5), self.uniform(5) + 0.5), full,
            densities.mixture(self.uniform(3) + 0.1, self.normal(3, 7), stds),
            densities.mixture(torch.ones(1), self.normal(1, 2), 1.0), densities.double_well(1),
            densities.double_well(6, 1.0, 2.0), densities.double_well(128),
            densities.gaussian(self.normal(100), self.uniform(100) + 0.5), densities.rosenbrock(4),
            densities.funnel(5), densities.ring(2), densities.ring(33),
        ]  # fmt: skip

    def coef(self, sampler: str, chains: int) -> torch.Tensor:
        h, one, jitter = 0.05 + 0.05 * self.uniform(chains), torch.ones(chains), 0.6 * (torch.arange(chains) % 3 > 0)
        columns = {"ula": [h, (2 * h).sqrt(), one, one], "mala": [h, (2 * h).sqrt(), one, one],
                   "baoab": [h, h, 0.9 * one, 0.3 * one], "hmc": [h, jitter, one, one],
                   "ghmc": [h, 0.8 * one, one, one], "malt": [h, 0.7 + jitter / 3, one, one],
                   "mclmc": [5 * h, one + jitter, one, jitter], "mams": [5 * h, jitter, one, one]}  # fmt: skip
        return torch.stack(columns[sampler], 1).contiguous()

    def run(self, density: Density, sampler: str, chains: int, scaled: bool) -> Callable[[str], Outputs]:
        """A function of the backend that returns all that a launch writes."""
        d, ids, coef = density.dimension, self.ids(chains), self.coef(sampler, chains)
        x, v, moments = self.normal(chains, d), self.normal(chains, d), self.normal(chains, 2, d).double()
        scale = self.uniform(d) + 0.5 if scaled else None

        def launch(backend: str) -> Outputs:
            out = {
                "draws": torch.full((chains, 3, d), math.nan),
                "energies": torch.full((chains, 3), math.nan, dtype=torch.float64),
                "moments": moments.clone(),
            }
            if sampler in mcmc.WITH_TEST:
                out["accepted"], out["diverged"] = torch.zeros(2, chains, dtype=torch.int64)
            state, velocity = x.clone(), v.clone() if sampler in mcmc.WITH_VELOCITIES else None
            lo = -1.5 if sampler == "ula" else -math.inf
            options: dict[str, Any] = {"v": velocity, "leapfrog": 3, "scale": scale, "thin": 2, "lo": lo}
            mcmc.run(density, state, sampler, coef, 7, **ids, **options, **out, backend=backend)
            return [state, *([] if velocity is None else [velocity]), *out.values()]

        return launch

    def steps(self, chains: int, n: int) -> Iterator[tuple[str, Callable[[str], Outputs]]]:
        """Every operation of given scores, by name, as functions of the backend."""
        ids = self.ids(chains)
        x, s, v, y, t = (self.normal(chains, n) for _ in range(5))
        a, b, c, e = (self.uniform(chains) for _ in range(4))
        energies = (self.normal(chains).double(), self.normal(chains).double())
        scales, noises = (None, self.uniform(n) + 0.5), (None, self.normal(chains, n))

        def langevin(backend: str) -> Outputs:
            return [
                mcmc.langevin(x, s, a, b, scale=scale, lo=-1, hi=2, backend=backend, **_noise(ids, noise))
                for scale in scales
                for noise in noises
            ]

        def kick_drift(backend: str) -> Outputs:
            outputs = []
            for scale in scales:
                for noise in noises:
                    for drift, keep in ((None, None), (b, None), (b, c)):
                        state, velocity, heat = x.clone(), v.clone(), None if keep is None else e
                        mcmc.kick_drift(state, velocity, s, a, drift, keep=keep, noise_scale=heat, scale=scale,
                                        backend=backend, **_noise(ids, noise))  # fmt: skip
                        outputs += [state, velocity]
            return outputs

        def mala_accept(backend: str) -> Outputs:
            outputs = []
            for scale, beta in zip(scales, (None, c), strict=True):
                state, score, energy = x.clone(), s.clone(), energies[0].clone()
                near, near_score = x + 0.1 * (y - x), s + 0.1 * (t - s)
                outputs += mcmc.mala_accept(
                    state, near, score, near_score, energy, energies[1], 0.1 * a, inverse_temperature=beta,
                    scale=scale, backend=backend, **ids,
                )  # fmt: skip
                outputs += [state, score, energy]
            return outputs

        def accept(backend: str) -> Outputs:
            kept, energy = x.clone(), energies[0].clone()
            pairs = [(kept, y), (energy, energies[1])]
            return [mcmc.accept(energies[0] - energies[1], pairs, backend=backend, **ids), kept, energy]

        def squared_norm(backend: str) -> Outputs:
            return [mcmc.squared_norm(x, backend=backend)]

        for function in (langevin, kick_drift, mala_accept, accept, squared_norm):
            yield function.__name__, function


def _noise(ids: dict[str, torch.Tensor], noise: torch.Tensor | None) -> dict[str, Any]:
    return dict(ids) if noise is None else {"noise": noise}


def evaluated(density: Density, x: torch.Tensor) -> Callable[[str], Outputs]:
    def launch(backend: str) -> Outputs:
        energy, score = mcmc.evaluate(density, x, backend=backend)
        assert energy is not None
        return [energy, score]

    return launch


def agree(function: Callable[[str], Outputs], *backends: str) -> bool:
    """Whether the backends leave the same bits; any NaN equals any NaN."""
    first, *others = (function(backend) for backend in backends)
    return all(same_bits(a, b) for other in others for a, b in zip(first, other, strict=True))
