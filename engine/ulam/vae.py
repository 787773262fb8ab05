"""VAEs and hierarchical VAEs over user networks: ancestral sampling, the ELBO latent by latent, posterior collapse.

log p(x) >= E_q[log p(x | z_1)] - sum_k E_q KL(q(z_k | z_{k+1}, x) || p(z_k | z_{k+1})) with p(z_L) = N(0, I) at the top
[Kingma & Welling 2014, eq. 3; Sonderby 2016; Luo 2022, eq. 24]. All Gaussians are diagonal; a network that models one
returns twice the channels, the mean and the logarithm of the standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch

import ulam_kernels
from ulam_kernels import Table
from ulam_kernels.arguments import described, positive, real, switch, whole
from ulam_kernels.validation import check_batch

from .arguments import chain_ids, check_shape, resolve_device, seed_int64
from .engine.arguments import check_slots
from .estimation.probes import MOST_PROBES
from .estimation.uncertainty import WithError, mean_and_error
from .evaluation import check_halves, check_like
from .noise import LATENT, POSTERIOR, Purpose

ChainIds: TypeAlias = "int | range | Sequence[int] | torch.Tensor"
Network: TypeAlias = Callable[..., torch.Tensor]
MOMENTS = "the mean, then the log standard deviation"


@dataclass(frozen=True)
class Level:
    """One latent variable z_k of shape ``shape``.

    prior: from z_{k+1} ``[B, ...]`` to mean and log standard deviation of p(z_k | z_{k+1}), ``[B, 2 C, ...]`` for a
    shape (C, ...); None at the top, where p is standard normal. posterior: from (x, z_{k+1}), at the top from x alone,
    to those of q(z_k | z_{k+1}, x); needed only for the ELBO. Raises TypeError or ValueError naming the argument.
    """

    shape: tuple[int, ...]
    prior: Network | None = None
    posterior: Network | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", check_shape(self.shape, least=1))
        for name, network in (("prior", self.prior), ("posterior", self.posterior)):
            if network is not None and not callable(network):
                raise TypeError(f"{name}: got {described(network)}, expected a network, or None")


@dataclass(frozen=True)
class Elbo(WithError[torch.Tensor]):
    """The evidence lower bound of each example in nats, ``[B]`` float64: value = reconstruction - sum of kl.

    stderr: its Monte Carlo error over the samples of q (nan for one sample). reconstruction: E_q log p(x | z_1).
    kl: ``[B, L]``, one column per latent, top first. bits_per_dim: of the whole batch.
    """

    reconstruction: torch.Tensor
    kl: torch.Tensor
    bits_per_dim: float


@dataclass(frozen=True)
class HierarchicalVAE:
    """z_L -> ... -> z_1 -> x with a network for every conditional; ``levels`` from the top, z_L, down to z_1.

    decoder: from z_1 to the mean of x ``[B, *x_shape]``, ``scale`` being the standard deviation of p(x | z_1); with
    scale=None to mean and log standard deviation ``[B, 2 C, ...]``. Networks are called as they are: put modules into
    eval mode before sampling. Raises TypeError or ValueError naming the argument.
    """

    levels: Sequence[Level]
    decoder: Network
    scale: float | None = 1.0
    _row: Table = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (
            not isinstance(self.levels, Sequence)
            or not self.levels
            or not all(isinstance(level, Level) for level in self.levels)
        ):
            raise TypeError(f"levels: got {described(self.levels)}, expected a sequence of ulam.vae.Level, not empty")
        if self.levels[0].prior is not None:
            raise ValueError("levels[0].prior: got a network, expected None: the top latent is standard normal")
        for k, level in enumerate(self.levels):
            if k and not callable(level.prior):
                raise TypeError(
                    f"levels[{k}].prior: got {described(level.prior)}, expected a network of the latent above"
                )
        if not callable(self.decoder):
            raise TypeError(f"decoder: got {described(self.decoder)}, expected a network")
        if self.scale is not None:
            positive(self.scale, "scale")
        object.__setattr__(self, "levels", tuple(self.levels))
        object.__setattr__(self, "_row", _gaussian_row())

    # -------------------------------------------------------------------------------------------- sampling

    def sample(
        self,
        chains: ChainIds,
        seed: int = 0,
        *,
        noise: bool = False,
        temperature: float = 1.0,
        slots: int = 256,
        device: torch.device | str = "cpu",
        backend: str | None = None,
    ) -> torch.Tensor:
        """Draw z_L, ..., z_1 and x from the top; ``[chains, *x_shape]``, row i is chain i.

        Each latent is one fused operation z = mean + exp(log std) noise with noise-v1 of (seed, chain, k) for the k-th
        latent from the top. The networks always see ``slots`` chains, so a chain's bits do not depend on how many are
        asked for. noise: draw x from p(x | z_1) in place of its mean E[x | z_1], which averages over all x that share
        z_1 and so is blurred. temperature: scales the noise of the latents, at least 0. device, backend: see
        :class:`ulam.Engine`. Raises TypeError or ValueError naming the argument.
        """
        ids, slots = chain_ids(chains).to(resolve_device(device)), check_slots(slots)
        if (temperature := real(temperature, "temperature")) < 0:
            raise ValueError(f"temperature: got {described(temperature)}, expected at least 0")
        switch(noise, "noise")
        if not len(ids):
            raise ValueError("chains: got none, expected at least 1")
        parts = []
        with torch.inference_mode():
            for part in torch.split(ids, slots):
                padded = torch.cat([part, part.new_zeros(slots - len(part))])
                parts.append(self._ancestral(padded, seed, noise, temperature, backend)[: len(part)].clone())
        return torch.cat(parts)

    def _ancestral(
        self, ids: torch.Tensor, seed: int, noise: bool, temperature: float, backend: str | None
    ) -> torch.Tensor:
        z: torch.Tensor | None = None
        for row, level in enumerate(self.levels):
            shape = (len(ids), *level.shape)
            if level.prior is None:
                moments = torch.zeros(len(ids), 2 * level.shape[0], *level.shape[1:], device=ids.device)
            else:
                moments = check_halves(level.prior(z), shape, MOMENTS, f"levels[{row}].prior")
            z = self._draw(moments, ids, seed, row, LATENT, temperature, backend)
        x = self.decoder(z)
        if self.scale is not None:
            if not noise:
                return x
            x = torch.cat([x, torch.full_like(x, math.log(self.scale))], dim=1)
        if x.shape[1] % 2:
            raise ValueError(f"decoder: got shape {list(x.shape)}, expected 2 C channels, {MOMENTS}")
        return self._draw(x, ids, seed, len(self.levels), LATENT, 1.0, backend) if noise else x.chunk(2, dim=1)[0]

    def _draw(
        self,
        moments: torch.Tensor,
        ids: torch.Tensor,
        seed: int,
        row: int,
        purpose: Purpose,
        temperature: float,
        backend: str | None,
    ) -> torch.Tensor:
        """mean + exp(log std) temperature z: one row of the fused step, its learned-variance form."""
        channels = moments.shape[1] // 2
        state = torch.empty(1, len(ids), channels, *moments.shape[2:], dtype=torch.float32, device=ids.device)
        if temperature == 0:
            return moments[:, :channels].float()
        if temperature != 1:
            lift = moments.new_full((1,), temperature).log()
            moments = torch.cat([moments[:, :channels], moments[:, channels:] + lift], dim=1)
        ulam_kernels.step(
            state,
            self._row if ids.device.type == "cpu" else _gaussian_row(ids.device),
            torch.zeros_like(ids),
            model=moments,
            seed=torch.full_like(ids, seed_int64(seed)),
            chain=ids,
            draw=torch.full_like(ids, purpose.draw(row)),
            backend=backend,
        )
        return state[0]

    # ------------------------------------------------------------------------------------------------ the bound

    def elbo(self, x: torch.Tensor, *, samples: int = 1, seed: int = 0) -> Elbo:
        """The bound of x ``[B, *x_shape]``, from ``samples`` draws of q each (one to train). Gradients flow.

        KL terms are exact given the latents above [Kingma & Welling 2014, app. B]; p(x | z_1) is a Gaussian density.
        Raises TypeError or ValueError naming the argument or network.
        """
        check_batch(x, "x")
        whole(samples, "samples", 1, MOST_PROBES)
        for k, level in enumerate(self.levels):
            if level.posterior is None:
                raise ValueError(f"levels[{k}].posterior: got None, expected a network, which the ELBO needs")
        draws = [self._bound(x, seed, sample) for sample in range(samples)]
        reconstruction = torch.stack([r for r, _ in draws])
        kl = torch.stack([k for _, k in draws])
        value, error = mean_and_error(reconstruction - kl.sum(2))
        bits = float(-value.detach().mean()) / (x[0].numel() * math.log(2))
        return Elbo(value, error, reconstruction.mean(0), kl.mean(0), bits)

    def _bound(self, x: torch.Tensor, seed: int, sample: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.arange(len(x), device=x.device)
        z: torch.Tensor | None = None
        terms = []
        for row, level in enumerate(self.levels):
            assert level.posterior is not None
            shape = (len(x), *level.shape)
            given = level.posterior(x) if z is None else level.posterior(x, z)
            mean, log_std = check_halves(given, shape, MOMENTS, f"levels[{row}].posterior").chunk(2, dim=1)
            if level.prior is None:
                prior_mean, prior_log = torch.zeros_like(mean), torch.zeros_like(log_std)
            else:
                prior_mean, prior_log = check_halves(level.prior(z), shape, MOMENTS, f"levels[{row}].prior").chunk(
                    2, dim=1
                )
            terms.append(gaussian_kl(mean, log_std, prior_mean, prior_log))
            noise = torch.empty(shape, dtype=torch.float32, device=x.device)
            draw = torch.full_like(ids, POSTERIOR.draw(sample * 64 + row))
            ulam_kernels.fill_normal(noise, seed=torch.full_like(ids, seed_int64(seed)), chain=ids, draw=draw)
            z = mean + log_std.exp() * noise.to(mean.dtype)
        out = self.decoder(z)
        if self.scale is None:
            mean, log_std = check_halves(out, x.shape, MOMENTS, "decoder").chunk(2, dim=1)
        else:
            mean, log_std = out, torch.full_like(out, math.log(self.scale))
        check_like(mean, x.shape, "decoder", why=" like this x")
        return gaussian_log_density(x, mean, log_std), torch.stack(terms, dim=1)

    def active_units(self, x: torch.Tensor, *, threshold: float = 0.01, seed: int = 0) -> list[torch.Tensor]:
        """For every latent z_k which elements carry information, Var_x E_q[z_k | x] > threshold, ``[*shape]`` bool.

        A latent whose elements are all inactive has collapsed to its prior [Burda 2016, section 5.2]. x is
        ``[B, *x_shape]``, B at least 2. Raises TypeError or ValueError naming the argument or network.
        """
        check_batch(x, "x")
        real(threshold, "threshold")
        if len(x) < 2:
            raise ValueError(f"x: got {len(x)} examples, expected at least 2 to compare")
        active: list[torch.Tensor] = []
        ids = torch.arange(len(x), device=x.device)
        z: torch.Tensor | None = None
        with torch.no_grad():
            for row, level in enumerate(self.levels):
                if level.posterior is None:
                    raise ValueError(f"levels[{row}].posterior: got None, expected a network")
                given = level.posterior(x) if z is None else level.posterior(x, z)
                moments = check_halves(given, (len(x), *level.shape), MOMENTS, f"levels[{row}].posterior")
                active.append(moments.chunk(2, dim=1)[0].double().var(0) > threshold)
                z = self._draw(moments.float(), ids, seed, row, POSTERIOR, 1.0, None)
        return active


class GaussianVAE(HierarchicalVAE):
    """One latent z ~ N(0, I) of ``latent_shape``: decoder z -> x, encoder x -> mean and log std of q(z | x)."""

    def __init__(
        self,
        decoder: Network,
        latent_shape: Sequence[int],
        encoder: Network | None = None,
        scale: float | None = 1.0,
    ) -> None:
        if encoder is not None and not callable(encoder):
            raise TypeError(f"encoder: got {described(encoder)}, expected a network, or None")
        super().__init__([Level(check_shape(latent_shape, "latent_shape", 1), None, encoder)], decoder, scale)


def gaussian_kl(
    mean: torch.Tensor, log_std: torch.Tensor, prior_mean: torch.Tensor, prior_log_std: torch.Tensor
) -> torch.Tensor:
    """KL(N(mean, std^2) || N(prior_mean, prior_std^2)) of diagonal Gaussians in nats, ``[B]`` float64."""
    off, ratio = (mean - prior_mean) * (-prior_log_std).exp(), 2 * (log_std - prior_log_std)
    return ((ratio.exp() + off**2 - 1 - ratio) / 2).flatten(1).double().sum(1)


def gaussian_log_density(x: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """log N(x; mean, std^2) in nats, ``[B]`` float64."""
    off = (x - mean) * (-log_std).exp()
    return (-(off**2) / 2 - log_std - math.log(2 * math.pi) / 2).flatten(1).double().sum(1)


def _gaussian_row(device: torch.device | str = "cpu") -> Table:
    """The row x = m + exp(v) z, m and v being the halves of a network's output."""
    zero, one = np.zeros(1), np.ones(1)
    A = np.zeros((1, 1, 4))
    A[0, 0, 2] = A[0, 0, 3] = 1.0
    writes, learned = np.ones((1, 1), dtype=bool), np.ones(1, dtype=bool)
    return Table.pack(zero, zero, zero - np.inf, zero + np.inf, one, zero, one, A, writes, learned, device=device)
